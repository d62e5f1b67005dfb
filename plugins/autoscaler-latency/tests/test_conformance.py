"""The conformance suite of autoscalers."""

from __future__ import annotations

from taskq.testing import AutoscalerSuite, PackagingSuite


class TestConformance(AutoscalerSuite):
    name = "latency"


class TestPackaging(PackagingSuite):
    kind = "autoscaler"
    name = "latency"

"""The conformance suite of autoscalers."""

from __future__ import annotations

from taskq.testing import AutoscalerSuite


class TestConformance(AutoscalerSuite):
    name = "simple"

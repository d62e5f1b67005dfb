"""The conformance suite of pools."""

from __future__ import annotations

from taskq.testing import PackagingSuite, PoolSuite


class TestConformance(PoolSuite):
    name = "prefork"


class TestPackaging(PackagingSuite):
    kind = "pool"
    name = "prefork"

"""The conformance suite of pools."""

from __future__ import annotations

from taskq.testing import PackagingSuite, PoolSuite


class TestConformance(PoolSuite):
    name = "asyncio"


class TestSeveralLoops(PoolSuite):
    name = "asyncio"
    options = {"loops": 3, "loop": "asyncio"}  # noqa: RUF012  as in the suite


class TestPackaging(PackagingSuite):
    kind = "pool"
    name = "asyncio"

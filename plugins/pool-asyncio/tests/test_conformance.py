"""The conformance suite of pools, with ``async def`` tasks and with ``def`` tasks."""

from __future__ import annotations

import pytest
from taskq.testing import PackagingSuite, PoolSuite


class TestCoroutines(PoolSuite):
    name = "asyncio"
    asynchronous = True


class TestFunctions(PoolSuite):
    name = "asyncio"


class TestSeveralLoops(PoolSuite):
    name = "asyncio"
    asynchronous = True
    options = {"loops": 3, "loop": "asyncio"}  # noqa: RUF012  as in the suite


class TestPackaging(PackagingSuite):
    kind = "pool"
    name = "asyncio"

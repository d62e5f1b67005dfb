"""The conformance suite of pools."""

from __future__ import annotations

from taskq.testing import PoolSuite


class TestConformance(PoolSuite):
    name = "threads"

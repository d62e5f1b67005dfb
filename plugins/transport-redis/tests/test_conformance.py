"""The conformance kit on a real server."""

from __future__ import annotations

import pytest

from taskq.testing import PackagingSuite, TransportSuite


class TestConformance(TransportSuite):
    scheme = "redis"

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "redis"

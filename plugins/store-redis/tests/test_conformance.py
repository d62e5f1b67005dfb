"""The conformance kits on a real server."""

from __future__ import annotations

import pytest

from taskq.testing import CoordinationSuite, PackagingSuite, StoreSuite


class TestConformance(StoreSuite):
    scheme = "redis"

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestCoordination(CoordinationSuite):
    scheme = "redis"

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "redis"

"""The conformance kit on a real server."""

from __future__ import annotations

import pytest
import redis

from taskq.testing import PackagingSuite, TransportSuite


def keys(url: str) -> set[str]:
    with redis.Redis.from_url(url) as client:
        return {key.decode() for key in client.keys("*")}


class TestConformance(TransportSuite):
    scheme = "redis"

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012

    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "redis"

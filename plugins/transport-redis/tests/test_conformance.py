"""The conformance kit on a real server."""

from __future__ import annotations

import pytest
import redis

from taskq.testing import PackagingSuite, TransportSuite


def keys(url: str) -> set[str]:
    with redis.Redis.from_url(url) as client:
        return {key.decode() for key in client.keys("*")}


class OnAServer(TransportSuite):
    scheme = "redis"

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)


class TestConformance(OnAServer):
    @pytest.fixture
    def url(self, redis_url: str) -> str:
        return redis_url


class TestOnRedis7(OnAServer):
    random_s = 2.0

    @pytest.fixture
    def url(self, old_redis_url: str) -> str:
        return old_redis_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "redis"

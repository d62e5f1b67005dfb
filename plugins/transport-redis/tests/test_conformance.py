"""The conformance kit on real servers."""

from __future__ import annotations

from taskq.testing import PackagingSuite, TransportSuite
from tests.support.redis_servers import NODES_BESIDE_THE_PROXY, OnCluster, OnRedis, OnValkey


class TestConformance(OnValkey, TransportSuite):
    pass


class TestOnRedis7(OnRedis, TransportSuite):
    random_s = 2.0


class TestOnACluster(OnCluster, TransportSuite):
    random_s = 2.0
    skip_reasons = NODES_BESIDE_THE_PROXY


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "redis"

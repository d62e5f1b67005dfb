"""The conformance kits on real servers."""

from __future__ import annotations

from taskq.testing import CoordinationSuite, PackagingSuite, StoreSuite
from tests.support.redis_servers import NODES_BESIDE_THE_PROXY, OnCluster, OnRedis, OnValkey


class TestConformance(OnValkey, StoreSuite):
    pass


class TestCoordination(OnValkey, CoordinationSuite):
    pass


class TestOnRedis7(OnRedis, StoreSuite):
    pass


class TestCoordinationOnRedis7(OnRedis, CoordinationSuite):
    pass


class TestOnACluster(OnCluster, StoreSuite):
    skip_reasons = NODES_BESIDE_THE_PROXY


class TestCoordinationOnACluster(OnCluster, CoordinationSuite):
    pass


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "redis"

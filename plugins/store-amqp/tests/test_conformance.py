"""The conformance kit on a real server."""

from __future__ import annotations

from taskq.testing import PackagingSuite, StoreSuite
from tests.support.rabbitmq_servers import OnRabbit


class TestConformance(OnRabbit, StoreSuite):
    pass


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "amqp"

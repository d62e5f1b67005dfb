"""The conformance kit on a real server, with quorum and with classic queues."""

from __future__ import annotations

from taskq.testing import PackagingSuite, TransportSuite
from tests.support.rabbitmq_servers import OnRabbit


class TestQuorum(OnRabbit, TransportSuite):
    random_s = 2.0


class TestClassic(OnRabbit, TransportSuite):
    options = {"queue_type": "classic"}  # noqa: RUF012
    random_s = 2.0


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "amqp"

"""The conformance kit on a real server, with quorum and with classic queues."""

from __future__ import annotations

import pytest

from taskq.testing import PackagingSuite, TransportSuite


class OnAServer(TransportSuite):
    scheme = "amqp"

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0, "heartbeat": 1}  # noqa: RUF012

    @pytest.fixture
    def url(self, rabbitmq_url: str) -> str:
        return rabbitmq_url


class TestQuorum(OnAServer):
    pass


class TestClassic(OnAServer):
    options = {"queue_type": "classic"}  # noqa: RUF012


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "amqp"

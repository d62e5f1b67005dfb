"""The conformance kit on a real server."""

from __future__ import annotations

import pytest

from taskq.testing import PackagingSuite, StoreSuite


class TestConformance(StoreSuite):
    scheme = "amqp"

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012

    @pytest.fixture
    def url(self, rabbitmq_url: str) -> str:
        return rabbitmq_url


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "amqp"

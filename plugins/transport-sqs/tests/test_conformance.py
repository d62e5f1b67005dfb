"""The conformance kit on ElasticMQ, or on whatever TASKQ_TEST_ELASTICMQ_URL names."""

from __future__ import annotations

import pytest

from taskq.testing import PackagingSuite, TransportSuite


class OnAServer(TransportSuite):
    scheme = "sqs"
    slack_s = 3.0  # leases are whole seconds

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012


class TestStandard(OnAServer):
    @pytest.fixture
    def url(self, sqs_url: str) -> str:
        return sqs_url


class TestFifo(OnAServer):
    options = {"kind": "fifo"}  # noqa: RUF012

    @pytest.fixture
    def url(self, sqs_url: str) -> str:
        return sqs_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "sqs"

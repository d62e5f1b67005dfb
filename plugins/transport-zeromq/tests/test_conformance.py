"""The conformance kit on real hubs, without and with a journal."""

from __future__ import annotations

import pytest

from taskq.spi import Url, parse_urls
from taskq.testing import PackagingSuite, TransportSuite
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.link import Link, make_target
from taskq_transport_zeromq.options import ZeroMQOptions
from taskq_transport_zeromq.transport import ERRORS


def keys(url: str) -> set[str]:
    link = Link(make_target(parse_urls(url), ZeroMQOptions(), ERRORS))
    try:
        return set(protocol.decode_any(link.request(protocol.Keys)))
    finally:
        link.close()


class OnAHub(TransportSuite):
    scheme = "zeromq"

    fault_options = {"timeout": 1.0, "connect_timeout": 1.0}  # noqa: RUF012

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)

    def through_proxy(self, url: Url, port: int) -> Url:
        return Url(url.scheme, None, None, "127.0.0.1", port)


class TestConformance(OnAHub):
    @pytest.fixture
    def url(self, zeromq_url: str) -> str:
        return zeromq_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "zeromq"

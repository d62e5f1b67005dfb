"""The conformance kit on real hubs, without and with a journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.spi import Url, parse_urls
from taskq.testing import PackagingSuite, TransportSuite
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.link import Link
from taskq_lib_zeromq.target import make_target
from taskq_transport_zeromq.options import ZeroMQOptions
from taskq_transport_zeromq.transport import ERRORS
from tests.support.zeromq_hubs import HubForge


def keys(url: str) -> set[str]:
    link = Link(make_target(parse_urls(url), ZeroMQOptions(), ERRORS))
    try:
        return set(protocol.decode_any(link.request(protocol.Keys)))
    finally:
        link.close()


class OnAHub(TransportSuite):
    scheme = "zeromq"

    fault_options = {"timeout": 1.0, "connect_timeout": 3.0}  # noqa: RUF012

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)

    def through_proxy(self, url: Url, port: int) -> Url:
        return Url(url.scheme, None, None, "127.0.0.1", port)


class TestConformance(OnAHub):
    @pytest.fixture
    def url(self, zeromq_url: str) -> str:
        return zeromq_url


@pytest.fixture
def durable_url(zeromq_hubs: HubForge, tmp_path: Path) -> Iterator[str]:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"), results_full="refuse")
    yield hub.url
    hub.kill()


class TestWithAJournal(OnAHub):
    random_s = 2.0

    @pytest.fixture
    def url(self, durable_url: str) -> str:
        return durable_url


class TestPackaging(PackagingSuite):
    kind = "transport"
    name = "zeromq"

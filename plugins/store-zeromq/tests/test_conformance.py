"""The conformance kits on real hubs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskq.spi import parse_urls
from taskq.testing import CoordinationSuite, PackagingSuite, StoreSuite
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.link import Link
from taskq_lib_zeromq.target import make_target
from taskq_store_zeromq.options import ZeroMQStoreOptions
from taskq_store_zeromq.store import ERRORS
from tests.support.zeromq_hubs import HubForge


def keys(url: str) -> set[str]:
    link = Link(make_target(parse_urls(url), ZeroMQStoreOptions(), ERRORS))
    try:
        return set(protocol.decode_any(link.request(protocol.Keys)))
    finally:
        link.close()


class OnAHub(StoreSuite):
    scheme = "zeromq"

    fault_options = {"timeout": 1.0, "connect_timeout": 3.0}  # noqa: RUF012

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)


class CoordinationOnAHub(CoordinationSuite):
    scheme = "zeromq"

    fault_options = {"timeout": 1.0, "connect_timeout": 3.0}  # noqa: RUF012

    def server_keys(self, url: str) -> set[str] | None:
        return keys(url)


class TestConformance(OnAHub):
    @pytest.fixture
    def url(self, zeromq_url: str) -> str:
        return zeromq_url


class TestCoordination(CoordinationOnAHub):
    @pytest.fixture
    def url(self, zeromq_url: str) -> str:
        return zeromq_url


@pytest.fixture
def durable_url(zeromq_hubs: HubForge, tmp_path: Path) -> Iterator[str]:
    hub = zeromq_hubs.start(journal=str(tmp_path / "journal"), results_full="refuse")
    yield hub.url
    hub.kill()


class TestWithAJournal(OnAHub):
    @pytest.fixture
    def url(self, durable_url: str) -> str:
        return durable_url


class TestCoordinationWithAJournal(CoordinationOnAHub):
    @pytest.fixture
    def url(self, durable_url: str) -> str:
        return durable_url


class TestPackaging(PackagingSuite):
    kind = "result_store"
    name = "zeromq"

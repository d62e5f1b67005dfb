"""Empty databases, and what opens the plugin on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from taskq.spi import TransportConfig, parse_urls
from taskq_transport_sqlalchemy.options import SqlTransportOptions
from taskq_transport_sqlalchemy.transport import SqlTransport
from tests.support.sql import engine_url, mariadb, postgresql, sqlite, url  # noqa: F401  fixtures
from tests.support.steps import opening


@pytest.fixture
def open_transport() -> Iterator[Callable[..., SqlTransport]]:
    """A function that opens transports, closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(url: str, *, lease_s: float = 30.0, **options: Any) -> SqlTransport:
            config = TransportConfig(urls=parse_urls(url), options=SqlTransportOptions(**options), lease_s=lease_s)
            return stack.enter_context(opening(SqlTransport(config)))

        yield make


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:  # noqa: F811  the fixture
    """The application's own engine on the same database."""
    found = sa.create_engine(engine_url(url))
    yield found
    found.dispose()

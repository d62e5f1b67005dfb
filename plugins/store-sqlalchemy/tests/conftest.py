"""Empty databases, and what opens the plugin on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskq.spi import StoreConfig, parse_urls
from taskq_store_sqlalchemy.options import SqlStoreOptions
from taskq_store_sqlalchemy.store import SqlStore
from tests.support.sql import mariadb, postgresql, sqlite, url  # noqa: F401  fixtures
from tests.support.steps import opening


@pytest.fixture
def open_store() -> Iterator[Callable[..., SqlStore]]:
    """A function that opens stores, closed after the test."""
    with contextlib.ExitStack() as stack:

        def make(url: str, **options: Any) -> SqlStore:
            config = StoreConfig(urls=parse_urls(url), options=SqlStoreOptions(**options))
            return stack.enter_context(opening(SqlStore(config)))

        yield make

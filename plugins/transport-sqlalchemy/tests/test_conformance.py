"""The conformance kit on every database that the transport speaks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from taskq.testing import TransportSuite

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "sqlite+sqlalchemy": "sqlite"}


class SqlSuite(TransportSuite):
    """What is the same everywhere."""

    fault_options = {"connect_timeout": 1.0, "command_timeout": 2.0, "lock_timeout": 1.0}  # noqa: RUF012

    @contextmanager
    def database(self, url: str) -> Iterator[Any]:
        scheme, _, rest = url.partition("://")
        engine = sa.create_engine(f"{DRIVERS[scheme]}://{rest}")
        with engine.connect() as connection:
            yield connection
        engine.dispose()

    def server_keys(self, url: str) -> set[str]:
        with self.database(url) as connection:
            return set(sa.inspect(connection).get_table_names())


class TestPostgreSQL(SqlSuite):
    scheme = "postgresql"

    @pytest.fixture
    def url(self, postgresql: str) -> str:
        return postgresql


class TestMariaDB(SqlSuite):
    scheme = "mysql"

    @pytest.fixture
    def url(self, mariadb: str) -> str:
        return mariadb


class TestSQLite(SqlSuite):
    scheme = "sqlite+sqlalchemy"

    @pytest.fixture
    def url(self, sqlite: str) -> str:
        return sqlite

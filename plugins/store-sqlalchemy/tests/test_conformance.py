"""The conformance kit on every database that the store speaks."""

from __future__ import annotations

import pytest

from taskq.testing import CoordinationSuite, StoreSuite


class OnPostgreSQL:
    scheme = "postgresql"
    fault_options = {"connect_timeout": 1.0, "command_timeout": 2.0, "lock_timeout": 1.0}  # noqa: RUF012

    @pytest.fixture
    def url(self, postgresql: str) -> str:
        return postgresql


class OnMariaDB:
    scheme = "mysql"
    fault_options = OnPostgreSQL.fault_options

    @pytest.fixture
    def url(self, mariadb: str) -> str:
        return mariadb


class OnSQLite:
    scheme = "sqlite+sqlalchemy"
    fault_options = OnPostgreSQL.fault_options

    @pytest.fixture
    def url(self, sqlite: str) -> str:
        return sqlite


class TestPostgreSQL(OnPostgreSQL, StoreSuite):
    pass


class TestMariaDB(OnMariaDB, StoreSuite):
    pass


class TestSQLite(OnSQLite, StoreSuite):
    pass


class TestCoordinationOnPostgreSQL(OnPostgreSQL, CoordinationSuite):
    pass


class TestCoordinationOnMariaDB(OnMariaDB, CoordinationSuite):
    pass


class TestCoordinationOnSQLite(OnSQLite, CoordinationSuite):
    pass

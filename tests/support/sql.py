"""An empty database for each test of the SQL plugins: the module's, cleaned, which is quicker than making one."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

DRIVERS = {"postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql", "sqlite+sqlalchemy": "sqlite+pysqlite"}


def engine_url(url: str) -> str:
    """Return a taskq URL as one of SQLAlchemy."""
    scheme, _, rest = url.partition("://")
    return f"{DRIVERS[scheme]}://{rest}"


def emptied(url: str) -> str:
    """Drop all tables of a database that an earlier test may have made."""
    engine = sa.create_engine(engine_url(url), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with engine.connect() as connection:
        for name in sa.inspect(connection).get_table_names():
            connection.exec_driver_sql(f"DROP TABLE {name}")
    return url


@pytest.fixture
def postgresql(postgresql_url: str) -> str:
    return emptied(postgresql_url)


@pytest.fixture
def mariadb(mariadb_url: str) -> str:
    return emptied(mariadb_url)


@pytest.fixture
def sqlite(tmp_path: Path) -> str:
    return f"sqlite+sqlalchemy:///{tmp_path}/taskq.db"


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("postgresql", marks=pytest.mark.server),
        pytest.param("mariadb", marks=pytest.mark.server),
    ]
)
def url(request: pytest.FixtureRequest) -> str:
    """An empty database of each kind."""
    found: str = request.getfixturevalue(request.param)
    return found

"""Creates the tables, moves older ones forward, and refuses newer ones; safe when many processes open at once."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from taskq_lib_sqlalchemy.database import Database, transaction
from taskq_lib_sqlalchemy.errors import Problem
from taskq_lib_sqlalchemy.tables import Tables

Migration = Callable[[Connection, Tables], None]
INSTANCE = "instance"
"""The version table's row with a random number that tells this set of tables from every other in the world."""


@dataclass(frozen=True)
class Component:
    """Tables that have one version together.

    ``migrations[n]`` turns version n + 1 into version n + 2. It must be repeatable: MariaDB and MySQL commit every
    definition statement by itself. New tables are made from scratch in the newest version.
    """

    name: str
    distribution: str
    tables: tuple[str, ...]
    migrations: Sequence[Migration] = field(default=())

    @property
    def version(self) -> int:
        """The version that this code works with."""
        return 1 + len(self.migrations)


MESSAGES = Component("messages", "taskq-transport-sqlalchemy", ("queues", "consumers", "messages"))
RESULTS = Component("results", "taskq-store-sqlalchemy", ("results", "entries", "times"))


def ensure(database: Database, component: Component) -> int:
    """Make sure that a component's tables are there in this code's version; return the instance's number.

    Raises:
        SchemaMismatch or StoreSchemaMismatch: newer tables, or missing or older ones that may not be changed.
        The other errors of the database's family.
    """

    def work(connection: Connection) -> int:
        tables = database.tables(connection.dialect)
        found = _versions(connection, tables)
        if found.get(component.name) != component.version:
            _check(database, component, found.get(component.name))
            with _alone(connection, tables):
                found = _versions(connection, tables)  # somebody else may have been quicker
                _check(database, component, found.get(component.name))
                _move(connection, tables, component, found)
                found = _versions(connection, tables)
        return found[INSTANCE]

    return database.run(work, "preparing the tables")


def _versions(connection: Connection, tables: Tables) -> dict[str, int]:
    table = tables.version
    if not sa.inspect(connection).has_table(table.name, schema=table.schema):
        return {}
    return {row.component: row.version for row in connection.execute(sa.select(table.c.component, table.c.version))}


def _check(database: Database, component: Component, found: int | None) -> None:
    prefix = database.options.table_prefix
    here = f"the {component.name} tables ({prefix}*) on {database.current.text}"
    if found is not None and found > component.version:
        raise database.errors.make(
            Problem.SCHEMA,
            f"{here} have version {found}, this {component.distribution} knows {component.version}: "
            f"upgrade {component.distribution}, or choose another table_prefix",
        )
    if found != component.version and not database.options.create_tables:
        state = "are missing" if found is None else f"have version {found}"
        raise database.errors.make(
            Problem.SCHEMA,
            f"{here} {state}, this {component.distribution} needs version {component.version}, "
            "and create_tables is off: open once with create_tables on, as a user who may create tables",
        )


def _move(connection: Connection, tables: Tables, component: Component, found: dict[str, int]) -> None:
    current = found.get(component.name)
    if tables.schema is not None and not found:
        connection.execute(sa.schema.CreateSchema(tables.schema, if_not_exists=True))
    if not found:
        tables.version.create(connection, checkfirst=True)
    version = tables.version
    if INSTANCE not in found:
        connection.execute(version.insert().values(component=INSTANCE, version=secrets.randbits(62)))
    if current is None:
        for name in component.tables:
            table = tables.metadata.tables[tables.qualified(name)]
            table.create(connection, checkfirst=True)
            for index in table.indexes:  # made already, unless an earlier attempt ended between table and index
                index.create(connection, checkfirst=True)
        for statement in tables.storage_parameters(component.tables):
            connection.exec_driver_sql(statement)
        connection.execute(version.insert().values(component=component.name, version=component.version))
        return
    for step in range(current, component.version):
        component.migrations[step - 1](connection, tables)
        connection.execute(version.update().where(version.c.component == component.name).values(version=step + 1))


@contextmanager
def _alone(connection: Connection, tables: Tables) -> Iterator[None]:
    """Keep every other opener out while tables change; all or nothing where the server can."""
    if connection.dialect.name != "mysql":
        with transaction(connection):
            if connection.dialect.name == "postgresql":
                number = zlib.crc32(f"taskq {tables.schema} {tables.prefix}".encode())
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))
            yield
        return
    lock = f"taskq {tables.prefix}"
    if connection.scalar(sa.text("SELECT GET_LOCK(SHA1(CONCAT(DATABASE(), :lock)), 60)"), {"lock": lock}) != 1:
        raise TimeoutError("another process has been creating the tables for 60 s")
    try:
        yield
    finally:
        connection.execute(sa.text("SELECT RELEASE_LOCK(SHA1(CONCAT(DATABASE(), :lock)))"), {"lock": lock})

"""Making, moving and refusing tables."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from taskq.errors import SchemaMismatch, StoreSchemaMismatch
from taskq.spi import SYSTEM_CLOCK, Outbound, Subscription, TransportConfig, parse_urls
from taskq_lib_sqlalchemy import schema
from taskq_lib_sqlalchemy.database import Database
from taskq_lib_sqlalchemy.errors import STORE_ERRORS, TRANSPORT_ERRORS
from taskq_lib_sqlalchemy.options import DatabaseOptions
from taskq_lib_sqlalchemy.schema import Component, ensure
from taskq_transport_sqlalchemy.options import SqlTransportOptions
from taskq_transport_sqlalchemy.transport import SqlTransport
from tests.support.steps import opening


@contextmanager
def database(url: str, *, store: bool = False, **options: Any) -> Iterator[Database]:
    errors = STORE_ERRORS if store else TRANSPORT_ERRORS
    found = Database(parse_urls(url), DatabaseOptions(**options), errors=errors, clock=SYSTEM_CLOCK)
    try:
        yield found
    finally:
        found.close()


def opened(url: str, **options: Any) -> AbstractContextManager[SqlTransport]:
    return opening(SqlTransport(TransportConfig(urls=parse_urls(url), options=SqlTransportOptions(**options))))


def set_version(url: str, component: str, version: int) -> None:
    with database(url) as found:
        table = found.tables().version
        found.run(
            lambda c: c.execute(table.update().where(table.c.component == component).values(version=version)), "testing"
        )


def test_many_openers_at_once_make_one_set_of_tables(url: str) -> None:
    barrier = threading.Barrier(6)
    instances: list[int] = []
    errors: list[BaseException] = []

    def work(component: Component) -> None:
        try:
            with database(url) as found:
                barrier.wait(10)
                instances.append(ensure(found, component))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(c,)) for c in (schema.MESSAGES, schema.RESULTS) * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors, errors[0]
    assert len(instances) == 6
    assert len(set(instances)) == 1


def test_newer_tables_are_refused_naming_both_versions(url: str) -> None:
    with opened(url):
        pass
    set_version(url, "messages", 7)
    with pytest.raises(SchemaMismatch, match=r"version 7.*knows 1.*upgrade taskq-transport-sqlalchemy"), opened(url):
        pass
    with database(url, store=True) as found:
        ensure(found, schema.RESULTS)
    set_version(url, "results", 3)
    with database(url, store=True) as found, pytest.raises(StoreSchemaMismatch, match="version 3"):
        ensure(found, schema.RESULTS)


def test_without_leave_to_create_missing_tables_are_refused(url: str) -> None:
    with pytest.raises(SchemaMismatch, match=r"missing.*create_tables"), opened(url, create_tables=False):
        pass
    with opened(url):
        pass
    with opened(url, create_tables=False) as transport:
        assert not transport.send([Outbound(id="a", queue="q", payload=b"")])


def _add_column(connection: sa.Connection, tables: Any) -> None:
    if "colour" not in {c["name"] for c in sa.inspect(connection).get_columns(tables.queues.name)}:
        connection.exec_driver_sql(f"ALTER TABLE {tables.queues.name} ADD COLUMN colour VARCHAR(10)")


def _fill_column(connection: sa.Connection, tables: Any) -> None:
    connection.exec_driver_sql(f"UPDATE {tables.queues.name} SET colour = COALESCE(colour, 'new')")


def test_older_tables_are_moved_forward_once_by_many_openers(url: str) -> None:
    with opened(url) as transport:
        transport.send([Outbound(id="a", queue="q", payload=b"kept")])
    newer = Component("messages", "x", schema.MESSAGES.tables, migrations=(_add_column, _fill_column))
    barrier = threading.Barrier(4)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with database(url) as found:
                barrier.wait(10)
                ensure(found, newer)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors, errors[0]
    with database(url) as found:
        name = found.tables().queues.name
        rows = found.run(lambda c: c.exec_driver_sql(f"SELECT name, colour FROM {name}").all(), "testing")
        assert [tuple(row) for row in rows] == [("q", "new")]
        versions = found.run(lambda c: schema._versions(c, found.tables()), "testing")
        assert versions["messages"] == 3
    with pytest.raises(SchemaMismatch, match="version 3"), opened(url):
        pass


def test_older_tables_are_left_alone_without_leave(url: str) -> None:
    with opened(url):
        pass
    newer = Component("messages", "x", schema.MESSAGES.tables, migrations=(_add_column,))
    with database(url, create_tables=False) as found, pytest.raises(SchemaMismatch, match=r"have version 1.*version 2"):
        ensure(found, newer)


def test_a_failed_migration_leaves_the_version(url: str) -> None:
    with opened(url):
        pass

    def broken(connection: sa.Connection, tables: Any) -> None:
        _add_column(connection, tables)
        connection.exec_driver_sql("SELECT * FROM no_such_table_at_all")

    newer = Component("messages", "x", schema.MESSAGES.tables, migrations=(broken,))
    with database(url) as found, pytest.raises(SchemaMismatch, match="no_such_table_at_all"):
        ensure(found, newer)
    with opened(url) as transport:
        assert not transport.send([Outbound(id="a", queue="q", payload=b"")])
    mended = Component("messages", "x", schema.MESSAGES.tables, migrations=(_add_column,))
    with database(url) as found:
        ensure(found, mended)


def test_prefixes_keep_applications_apart(url: str) -> None:
    with opened(url, table_prefix="one_") as one, opened(url, table_prefix="two_") as two:
        assert one.instance != two.instance
        one.send([Outbound(id="a", queue="q", payload=b"one's")])
        consumer = two.consumer()
        consumer.subscribe([Subscription("q")])
        assert not consumer.fetch(1, 0.1).deliveries


def test_tables_may_live_in_a_schema(postgresql: str) -> None:
    with opened(postgresql, schema="Jobs") as transport:
        consumer = transport.consumer()
        consumer.subscribe([Subscription("q")])
        transport.send([Outbound(id="a", queue="q", payload=b"x")])
        assert [d.payload for d in consumer.fetch(1, 5.0).deliveries] == [b"x"]
        assert transport.stats(["q"])["q"].in_flight == 1
    with database(postgresql) as found:
        names = found.run(lambda c: sa.inspect(c).get_table_names(schema="Jobs"), "testing")
        assert "taskq_messages" in names
        assert not found.run(lambda c: sa.inspect(c).get_table_names(), "testing")
        found.run(lambda c: c.exec_driver_sql('DROP SCHEMA "Jobs" CASCADE'), "testing")

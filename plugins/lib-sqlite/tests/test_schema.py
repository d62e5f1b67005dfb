"""Versions of the tables."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from taskq.errors import SchemaMismatch, StoreSchemaMismatch
from taskq_lib_sqlite import Kind, Trouble, close_database, open_database, schema


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "q.db")


def make(path: str) -> None:
    close_database(open_database(path))


def set_version(path: str, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE taskq_meta SET value = ? WHERE name = 'version'", (version,))


def version(path: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        return schema.found_version(connection)


def tables(path: str) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_a_new_file_gets_the_newest_tables(path: str) -> None:
    make(path)
    assert version(path) == schema.VERSION


def test_somebody_elses_tables_stay(path: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.execute("INSERT INTO customers VALUES ('Ada')")
        connection.execute("PRAGMA user_version = 77")
    make(path)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM customers").fetchall() == [("Ada",)]
        assert connection.execute("PRAGMA user_version").fetchone() == (77,)
    assert all(name.startswith(("taskq_", "sqlite_", "customers")) for name in tables(path))


def test_tables_of_a_newer_taskq_are_refused_and_untouched(path: str) -> None:
    make(path)
    set_version(path, schema.VERSION + 1)
    before = tables(path)
    with pytest.raises(Trouble) as caught:
        open_database(path)
    for said in (f"have version {schema.VERSION + 1}", f"up to {schema.VERSION}", "upgrade taskq-lib-sqlite"):
        assert said in str(caught.value)
    for store, expected in ((False, SchemaMismatch), (True, StoreSchemaMismatch)):
        error = caught.value.typed(store=store)
        assert type(error) is expected
        assert not error.retryable
    assert tables(path) == before


def test_an_upgrade_by_another_process_is_noticed(path: str) -> None:
    database = open_database(path)
    database.check_file()
    set_version(path, schema.VERSION + 1)
    with pytest.raises(Trouble) as caught:
        database.check_file()
    assert caught.value.kind is Kind.SCHEMA
    close_database(database)


def test_older_tables_are_migrated(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 2)
    monkeypatch.setitem(schema.MIGRATIONS, schema.VERSION - 1, ["ALTER TABLE taskq_queue ADD COLUMN a"])
    monkeypatch.setitem(
        schema.MIGRATIONS, schema.VERSION, ["UPDATE taskq_queue SET a = 1", "ALTER TABLE taskq_queue ADD COLUMN b"]
    )
    database = open_database(path)
    assert database.read("SELECT a, b FROM taskq_queue") == []
    close_database(database)
    assert version(path) == schema.VERSION


def test_a_migration_that_fails_changes_nothing(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path)
    known = schema.VERSION
    monkeypatch.setattr(schema, "VERSION", known + 1)
    monkeypatch.setitem(
        schema.MIGRATIONS, known + 1, ["CREATE TABLE taskq_new (a)", "ALTER TABLE nonsense ADD COLUMN a"]
    )
    with pytest.raises(Trouble):
        open_database(path)
    assert version(path) == known
    assert "taskq_new" not in tables(path)


def test_a_version_without_a_step_is_refused(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(path)
    monkeypatch.setattr(schema, "VERSION", schema.VERSION + 1)
    with pytest.raises(Trouble, match="cannot bring them to"):
        open_database(path)


def test_the_order_of_messages_needs_no_sorting() -> None:
    """The tables of places are their own indexes: an index that somebody adds would cost every message."""
    with closing(sqlite3.connect(":memory:")) as connection:
        schema.migrate(connection, "memory")
        indexed = {
            row[0] for row in connection.execute("SELECT tbl_name FROM sqlite_master WHERE sql LIKE 'CREATE INDEX%'")
        }
    assert not indexed & {"taskq_message", "taskq_ready", "taskq_held", "taskq_delayed"}

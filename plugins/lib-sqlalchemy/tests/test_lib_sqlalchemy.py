"""The parts that need no server: URLs, errors, records, tables, waking."""

from __future__ import annotations

import os
import sqlite3
import threading
import time

import psycopg
import pymysql
import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from taskq.errors import (
    AuthenticationFailed,
    ConfigError,
    ConnectionFailed,
    ConnectionLost,
    SchemaMismatch,
    StorageFull,
    StoreError,
    StoreSchemaMismatch,
    StoreUnavailable,
    TransportError,
    UrlError,
)
from taskq.spi import Record, Url
from taskq_lib_sqlalchemy.bell import Bell
from taskq_lib_sqlalchemy.errors import STORE_ERRORS, TRANSPORT_ERRORS, Problem, classify
from taskq_lib_sqlalchemy.local import neighbours
from taskq_lib_sqlalchemy.options import DatabaseOptions
from taskq_lib_sqlalchemy.records import pushes, waves
from taskq_lib_sqlalchemy.servers import Server
from taskq_lib_sqlalchemy.tables import Tables


def server(url: str, **options: object) -> Server:
    return Server(Url.parse(url), DatabaseOptions(**options))  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize(
    ("url", "driver"),
    [
        ("postgresql://u@h/db", "postgresql+psycopg"),
        ("mysql://u@h/db", "mysql+pymysql"),
        ("mariadb://u@h/db", "mysql+pymysql"),
        ("sqlite+sqlalchemy:///tmp/x.db", "sqlite+pysqlite"),
    ],
)
def test_the_scheme_chooses_the_driver(url: str, driver: str) -> None:
    assert server(url).url.drivername == driver


def test_a_password_is_used_and_never_shown() -> None:
    found = server("postgresql://u:p%40ss@h:5433/db")
    assert (found.url.password, found.url.port, found.url.database) == ("p@ss", 5433, "db")
    assert "p@ss" not in found.text
    assert "***" in found.text


@pytest.mark.parametrize(
    ("rest", "path"),
    [
        ("///tmp/x.db", "/tmp/x.db"),
        ("////tmp/x.db", "/tmp/x.db"),
        ("////x.db", "/x.db"),
        ("///x.db", f"{os.getcwd()}/x.db"),
        ("//data/x.db", f"{os.getcwd()}/data/x.db"),
    ],
)
def test_files_are_named_as_in_the_sqlite_transport(rest: str, path: str) -> None:
    assert server(f"sqlite+sqlalchemy:{rest}").database == path


@pytest.mark.parametrize("rest", ["//", "///", "///tmp/", "//u@h/x.db"])
def test_what_is_no_file_is_refused(rest: str) -> None:
    with pytest.raises(UrlError, match=r"sqlite\+sqlalchemy:///queue\.db"):
        server(f"sqlite+sqlalchemy:{rest}")


def test_a_server_without_a_database_is_refused() -> None:
    with pytest.raises(ConfigError, match="name the database"):
        server("postgresql://u@h")


def test_a_socket_may_stand_for_the_host() -> None:
    assert server("mysql://u@%2Frun%2Fmysqld%2Fmysqld.sock/db").url.query["unix_socket"] == "/run/mysqld/mysqld.sock"
    assert server("postgresql://u@%2Frun%2Fpostgresql/db").url.host == "/run/postgresql"


def test_verifying_needs_trusted_certificates() -> None:
    assert server("postgresql://h/db", tls="verify").arguments["sslrootcert"] == "system"
    assert server("postgresql://h/db", tls="verify", tls_ca="/ca.pem").arguments["sslrootcert"] == "/ca.pem"
    context = server("mysql://h/db", tls="verify").arguments["ssl"]
    assert context.check_hostname
    assert not server("mysql://h/db", tls="require").arguments["ssl"].check_hostname
    assert server("mysql://h/db", tls="off").arguments["ssl_disabled"] is True


# ----------------------------------------------------------------------------------------------------------- errors


def postgres_error(state: str) -> Exception:
    return psycopg.errors.lookup(state)("message")


def sqlite_error(code: int) -> Exception:
    error = sqlite3.OperationalError("message")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "dialect", "problem"),
    [
        (postgres_error("40P01"), "postgresql", Problem.CONFLICT),
        (postgres_error("40001"), "postgresql", Problem.CONFLICT),
        (postgres_error("53100"), "postgresql", Problem.FULL),
        (postgres_error("55P03"), "postgresql", Problem.BUSY),
        (postgres_error("57014"), "postgresql", Problem.BUSY),
        (postgres_error("57P01"), "postgresql", Problem.LOST),
        (postgres_error("08006"), "postgresql", Problem.LOST),
        (postgres_error("42P01"), "postgresql", Problem.SCHEMA),
        (postgres_error("25006"), "postgresql", Problem.READ_ONLY),
        (postgres_error("22021"), "postgresql", Problem.VALUE),
        (psycopg.OperationalError("server closed the connection"), "postgresql", Problem.LOST),
        (psycopg.DataError("cannot adapt"), "postgresql", Problem.VALUE),
        (pymysql.err.OperationalError(1213, "Deadlock found"), "mysql", Problem.CONFLICT),
        (pymysql.err.OperationalError(1205, "Lock wait timeout"), "mysql", Problem.BUSY),
        (pymysql.err.OperationalError(2013, "Lost connection"), "mysql", Problem.LOST),
        (pymysql.err.InterfaceError(0, ""), "mysql", Problem.LOST),
        (pymysql.err.OperationalError(1114, "The table is full"), "mysql", Problem.FULL),
        (pymysql.err.DataError(1406, "Data too long"), "mysql", Problem.VALUE),
        (pymysql.err.ProgrammingError(1146, "no table"), "mysql", Problem.SCHEMA),
        (sqlite_error(5), "sqlite", Problem.BUSY),
        (sqlite_error(5 | 2 << 8), "sqlite", Problem.BUSY),
        (sqlite_error(13), "sqlite", Problem.FULL),
        (sqlite_error(26), "sqlite", Problem.SCHEMA),
        (sqlite_error(8), "sqlite", Problem.READ_ONLY),
        (sqlite3.OperationalError("no such table: x"), "sqlite", Problem.SCHEMA),
        (OSError(28, "No space left on device"), "sqlite", Problem.FULL),
        (ConnectionResetError(), "mysql", Problem.LOST),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"), "postgresql", Problem.VALUE),
    ],
)
def test_errors_are_told_apart(error: Exception, dialect: str, problem: Problem) -> None:
    assert classify(error, dialect) is problem
    wrapped = sa.exc.DBAPIError("SELECT 1", {}, error)
    if not isinstance(error, (OSError, UnicodeError)):
        assert classify(wrapped, dialect) is problem


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('connection failed: FATAL:  database "nope" does not exist', Problem.NO_DATABASE),
        ('connection failed: FATAL:  password authentication failed for user "u"', Problem.AUTHENTICATION),
        ('connection failed: FATAL:  role "u" does not exist', Problem.AUTHENTICATION),
        ("connection failed: Connection refused", Problem.UNREACHABLE),
        ("connection timeout expired", Problem.UNREACHABLE),
    ],
)
def test_errors_of_connecting_are_told_apart(text: str, problem: Problem) -> None:
    assert classify(psycopg.OperationalError(text), "postgresql", connecting=True) is problem


@pytest.mark.parametrize(
    ("problem", "transport", "store", "retryable"),
    [
        (Problem.UNREACHABLE, ConnectionFailed, StoreUnavailable, True),
        (Problem.NO_DATABASE, ConnectionFailed, StoreUnavailable, True),
        (Problem.LOST, ConnectionLost, StoreUnavailable, True),
        (Problem.BUSY, TransportError, StoreUnavailable, True),
        (Problem.FULL, StorageFull, StoreUnavailable, True),
        (Problem.AUTHENTICATION, AuthenticationFailed, StoreError, False),
        (Problem.SCHEMA, SchemaMismatch, StoreSchemaMismatch, False),
        (Problem.VALUE, TransportError, StoreError, False),
    ],
)
def test_each_side_has_its_errors(problem: Problem, transport: type, store: type, retryable: bool) -> None:
    for family, kind in ((TRANSPORT_ERRORS, transport), (STORE_ERRORS, store)):
        error = family.make(problem, "text")
        assert type(error) is kind
        assert error.retryable is retryable  # type: ignore[attr-defined]
    assert kind.retryable or not retryable


# ---------------------------------------------------------------------------------------------------------- records


def record(task_id: str, reply: str | None = None, **fields: object) -> Record:
    return Record(id=task_id, state="SUCCESS", payload=b"", reply=reply, **fields)  # type: ignore[arg-type]


def test_waves_name_no_id_twice_and_keep_each_ids_order() -> None:
    batch = [record("b"), record("a"), record("b", attempt=1), record("c"), record("b", attempt=2)]
    found = [[(row.place, row.record.id) for row in wave] for wave in waves(batch)]
    assert found == [[(1, "a"), (0, "b"), (3, "c")], [(2, "b")], [(4, "b")]]


def test_pushes_are_as_few_as_fit() -> None:
    batch = [record(f"id-{i:04}", "one") for i in range(1000)] + [record("x", "two"), record("nobody")]
    told = list(pushes(batch, max_bytes=4000))
    assert [channel for channel, _ in told] == ["one", "one", "two"]
    assert all(len(text) <= 4000 for _, text in told)
    assert " ".join(text for channel, text in told if channel == "one").split(" ") == [
        f"id-{i:04}" for i in range(1000)
    ]


def test_pushes_leave_out_what_is_not_terminal() -> None:
    assert list(pushes([record("a", "one", terminal=False)])) == []


def test_an_id_that_cannot_be_told_makes_the_caller_look() -> None:
    assert list(pushes([record("with space", "one"), record("x" * 9000, "two")])) == [("one", ""), ("two", "")]


# ----------------------------------------------------------------------------------------------------------- tables


@pytest.mark.parametrize("prefix", ["", "Upper_", "1st_", "a-b", "x" * 32, 'a"b'])
def test_a_bad_prefix_is_refused(prefix: str) -> None:
    with pytest.raises(ConfigError, match="table_prefix"):
        Tables(postgresql.dialect(), prefix=prefix, schema=None)


def test_a_schema_is_for_postgresql() -> None:
    names = Tables(postgresql.dialect(), prefix="q_", schema="Jobs").names()
    assert names["messages"] == '"Jobs".q_messages'
    with pytest.raises(ConfigError, match="schema"):
        Tables(mysql.dialect(), prefix="q_", schema="jobs")


# ------------------------------------------------------------------------------------------------------------ waking


def test_a_bell_is_sticky_and_rings_once() -> None:
    bell = Bell()
    for _ in range(100_000):  # far more than a pipe holds
        bell.ring()
    started = time.monotonic()
    bell.wait(5.0)
    assert time.monotonic() - started < 4.0
    started = time.monotonic()
    bell.wait(0.05)
    assert time.monotonic() - started >= 0.045


def test_a_bell_ends_a_wait_on_another_thread() -> None:
    bell = Bell()
    thread = threading.Thread(target=bell.wait, args=(10.0,))
    thread.start()
    bell.ring()
    thread.join(5.0)
    assert not thread.is_alive()


def test_neighbours_know_of_their_queues_only() -> None:
    class Listener:
        queues = ("mine",)
        looks = 0

        def look(self) -> None:
            self.looks += 1

    listener = Listener()
    near = neighbours(123456789)
    near.add_consumer(listener)
    near.sent(["other"])
    assert listener.looks == 0
    near.sent(["other", "mine"])
    assert listener.looks == 1
    near.drop_consumer(listener)
    near.sent(["mine"])
    assert listener.looks == 1

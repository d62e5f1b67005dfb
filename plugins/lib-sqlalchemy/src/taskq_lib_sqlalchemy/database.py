"""Connections to one database: pooled for calls from any thread, dedicated ones for a consumer's threads.

All connections are in autocommit mode; ``transaction`` brackets what belongs together. So a single statement is a
single round trip, and nothing is left open by accident.
"""

from __future__ import annotations

import os
import random
import select
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.pool import QueuePool

from taskq.errors import TaskQError, UrlError
from taskq.spi import Clock, Url
from taskq_lib_sqlalchemy.errors import DRIVER_ERRORS, ErrorFamily, Problem, classify
from taskq_lib_sqlalchemy.options import DatabaseOptions
from taskq_lib_sqlalchemy.servers import Server
from taskq_lib_sqlalchemy.tables import Tables

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection, Dialect, Engine

T = TypeVar("T")
_CONFLICT_TRIES = 8
_OPEN = "taskq transaction"
_ABANDONED: list[Any] = []
"""A parent process's connections: kept for ever, since collecting them would close them under the parent."""


def commit_unknown(error: BaseException) -> bool:
    """Whether the connection broke while this error's statement or commit was under way: it may have taken effect."""
    return getattr(error, "taskq_commit_unknown", False)


class Database:
    """One database on one of several fail-over servers."""

    def __init__(self, urls: Sequence[Url], options: DatabaseOptions, *, errors: ErrorFamily, clock: Clock) -> None:
        self.options = options
        self.errors = errors
        self.clock = clock
        self.servers = [Server(url, options) for url in urls]
        self.dialect = self.servers[0].dialect
        if self.dialect == "sqlite" and len(self.servers) > 1:
            raise UrlError(f"a file has no fail-over servers: {len(self.servers)} URLs were given, give one")
        self.where = "; ".join(server.text for server in self.servers)
        self.current = self.servers[0]
        self.closed = False
        self.inherited = False
        """Whether a parent process made this."""
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._links: weakref.WeakSet[Link] = weakref.WeakSet()
        self._driver_errors: tuple[type[BaseException], ...] = DRIVER_ERRORS
        self._tables: Tables | None = None
        _databases.add(self)

    # ------------------------------------------------------------------------------------------------- connecting

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            TransportClosed or StoreError: opened by the parent process, or closed.
        """
        engine = self._engine
        if engine is not None:
            return engine
        if self.closed:
            raise self.errors.closed(f"{self.where} has been closed here")
        if self.inherited:
            raise self.errors.closed(
                f"{self.where} was opened by the parent process, whose connections its child {os.getpid()} must not "
                "touch: open it anew here"
            )
        with self._lock:
            if self._engine is None:
                self._engine = self._make_engine()
            return self._engine

    def _make_engine(self) -> Engine:
        engine: Engine = sa.create_engine(
            self.current.url,
            creator=lambda: self._connect(engine),
            poolclass=QueuePool,
            pool_size=self.options.pool_size,
            max_overflow=self.options.pool_size,
            pool_timeout=self.options.lock_timeout,
            pool_use_lifo=True,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            hide_parameters=True,
        )
        module: Any = engine.dialect.loaded_dbapi
        self._driver_errors = (*DRIVER_ERRORS, module.Error)
        sa.event.listen(engine, "checkout", _check_idle)
        return engine

    def _connect(self, engine: Engine) -> Any:
        """Open a driver connection to the first server that takes it, the last good one before the others."""
        failed: list[TaskQError] = []
        for server in sorted(self.servers, key=lambda s: s is not self.current):
            connection = None
            try:
                connection = server.connector(engine.dialect)()
                self._prepare(connection)
                if len(self.servers) > 1 and self._read_only(connection):
                    raise self.errors.make(Problem.READ_ONLY, f"{server.text} is read-only: a replica?")
                self.current = server
                return connection
            except TaskQError as error:
                failed.append(error)
            except self._driver_errors as error:
                failed.append(self._connect_error(error, server))
            except BaseException:
                if connection is not None:
                    _quietly(connection.close)
                raise
            if connection is not None:
                _quietly(connection.close)
        if len(failed) == 1:
            raise failed[0]
        raise self.errors.make(
            Problem.UNREACHABLE, f"none of {len(failed)} servers could be used: " + " · ".join(map(str, failed))
        ) from failed[-1]

    def _connect_error(self, error: BaseException, server: Server) -> TaskQError:
        problem = classify(error, self.dialect, connecting=True)
        if problem is Problem.NO_DATABASE:
            made = self.errors.make(
                problem, f"there is no database {server.database!r} on {server.text}; {server.how_to_create()}"
            )
        elif self.dialect == "sqlite" and problem is Problem.UNREACHABLE:
            folder = os.path.dirname(server.database)
            advice = "check the rights on it" if os.path.isdir(folder) else f"create the folder {folder}"
            made = self.errors.make(problem, f"cannot open the database file {server.database}: {error}; {advice}")
        else:
            made = self.errors.translate(error, problem, what="connecting to the database", where=server.text)
        made.__cause__ = error
        return made

    def _prepare(self, connection: Any) -> None:
        options = self.options
        cursor = connection.cursor()
        if self.dialect == "postgresql":
            cursor.execute(
                "SELECT set_config('statement_timeout', %s, false), set_config('lock_timeout', %s, false), "
                "set_config('idle_in_transaction_session_timeout', %s, false), "
                "set_config('application_name', 'taskq', false)",
                [f"{int(t * 1000)}" for t in (options.command_timeout, options.lock_timeout, options.command_timeout)],
            )
            connection.commit()
        elif self.dialect == "mysql":
            # READ COMMITTED: no gap locks, so claims and inserts at a queue's tail do not meet.
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute(
                "SET SESSION time_zone = '+00:00', innodb_lock_wait_timeout = %s, "
                "sql_mode = 'STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION'",
                (max(1, round(options.lock_timeout)),),
            )
        else:
            cursor.execute("PRAGMA journal_mode=WAL")
            cursor.execute(f"PRAGMA synchronous={options.synchronous.upper()}")
            cursor.execute("PRAGMA temp_store=MEMORY")
            cursor.execute("PRAGMA cache_size=-16000")
        cursor.close()

    def _read_only(self, connection: Any) -> bool:
        """Whether a server takes no writes. PostgreSQL's client has looked already (``target_session_attrs``)."""
        if self.dialect != "mysql":
            return False
        cursor = connection.cursor()
        cursor.execute("SELECT @@global.read_only")
        return bool(int(cursor.fetchone()[0]))

    def tables(self, dialect: Dialect | None = None) -> Tables:
        """Return the tables, as this server's dialect wants them; exact once a connection has been made."""
        if self._tables is None:
            self._tables = Tables(
                dialect or self.engine.dialect, prefix=self.options.table_prefix, schema=self.options.schema
            )
        return self._tables

    # ---------------------------------------------------------------------------------------------------- running

    def run(self, work: Callable[[Connection], T], what: str) -> T:
        """Run work on a pooled connection; deadlocks and serialization failures are repeated.

        Raises:
            TransportError or StoreError: by this database's family; see also ``commit_unknown``.
        """
        for attempt in range(_CONFLICT_TRIES):
            try:
                with self.engine.connect() as connection, _discarding(connection):
                    return work(connection)
            except self._driver_errors as error:
                self._raise_or_repeat(error, attempt, what)
        raise AssertionError("unreachable")

    def _raise_or_repeat(self, error: BaseException, attempt: int, what: str) -> None:
        problem = classify(error, self.dialect)
        if problem is Problem.CONFLICT and attempt + 1 < _CONFLICT_TRIES:
            time.sleep(random.uniform(0, 0.005 * 2**attempt))  # noqa: S311  spreads the contenders, guards nothing
            return
        translated = self.errors.translate(error, problem, what=what, where=self.current.text)
        if problem is Problem.READ_ONLY and len(self.servers) > 1 and self._engine is not None:
            self._engine.dispose()  # another server is the primary now; idle connections still know the old one
        if problem is Problem.LOST and commit_unknown(error):
            _mark(translated)
        raise translated from error

    def translated(self, error: BaseException, what: str) -> TaskQError:
        """Return the error to raise for what a statement on somebody else's connection raised."""
        if isinstance(error, TaskQError):
            return error
        return self.errors.translate(error, classify(error, self.dialect), what=what, where=self.current.text)

    def link(self, *, setup: Callable[[Connection], None] | None = None, listens: bool = False) -> Link:
        """Return a dedicated connection, opened at first use; ``setup`` runs whenever it has been opened.

        ``listens``: the server may say something unasked.
        """
        link = Link(self, setup, listens)
        self._links.add(link)
        return link

    def close(self) -> None:
        """Close every connection; ``closed`` must be unset before it can be used again."""
        self.closed = True
        for link in list(self._links):
            link.close()
        engine, self._engine = self._engine, None
        if engine is not None:
            engine.dispose()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's connections without touching them."""
        self.inherited = True
        self._lock = threading.Lock()  # another of the parent's threads may have held it
        _ABANDONED.append((self._engine, [link.abandon() for link in self._links]))
        self._engine = None


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _after_fork() -> None:
    for database in list(_databases):
        database.abandon()


os.register_at_fork(after_in_child=_after_fork)


class Link:
    """A connection that one thread keeps: opened at first use, opened again after it broke."""

    def __init__(self, database: Database, setup: Callable[[Connection], None] | None, listens: bool) -> None:
        self.database = database
        self._setup = setup
        self._listens = listens
        self._connection: Connection | None = None
        self._driver: Any = None

    @property
    def connected(self) -> bool:
        """Whether a connection is open, as far as known."""
        return self._connection is not None

    def connection(self) -> Connection:
        """Return the open connection, or open one."""
        if self._connection is not None and not self._listens and _said_goodbye(self._driver):
            self.close()
        if self._connection is None:
            connection = self._connection = self.database.engine.connect()
            connection.detach()  # not counted in the pool
            self._driver = connection.connection.dbapi_connection
            if self._setup is not None:
                self._setup(connection)
        return self._connection

    def driver(self) -> Any:
        """Return the driver's own connection."""
        self.connection()
        return self._driver

    def run(self, work: Callable[[Connection], T], what: str) -> T:
        """As ``Database.run``, on this connection."""
        for attempt in range(_CONFLICT_TRIES):
            try:
                return work(self.connection())
            except self.database._driver_errors as error:
                if classify(error, self.database.dialect) is not Problem.CONFLICT or not self._clean():
                    self.close()
                self.database._raise_or_repeat(error, attempt, what)
            except BaseException:
                self.close()  # interrupted between question and answer: its state is unknown
                raise
        raise AssertionError("unreachable")

    def _clean(self) -> bool:
        return self._connection is not None and not self._connection.invalidated and not self._connection.closed

    def abandon(self) -> object:
        """Let go of the connection without touching it."""
        abandoned = (self._connection, self._driver)
        self._connection = self._driver = None
        return abandoned

    def close(self) -> None:
        """Close the connection; the next use opens another."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        driver, self._driver = self._driver, None
        _quietly(driver.close)  # the pool, to which it does not belong any more, will not
        _drop(connection)


class Answer:
    """What a statement brought: rows as tuples (none where it brings none), and how many it touched."""

    __slots__ = ("lastrowid", "rowcount", "rows")

    def __init__(self, cursor: Any) -> None:
        self.rows: list[tuple[Any, ...]] = cursor.fetchall() if cursor.description is not None else []
        self.rowcount: int = cursor.rowcount
        self.lastrowid: Any = getattr(cursor, "lastrowid", None)

    def column(self) -> list[Any]:
        """Return the first value of every row."""
        return [row[0] for row in self.rows]

    def value(self) -> Any:
        """Return the first value of the first row, None where there is no row."""
        return self.rows[0][0] if self.rows else None


def execute(connection: Connection, sql: str, parameters: dict[str, Any] | None = None) -> Answer:
    """Run one statement on the driver's own cursor: SQLAlchemy's would cost more than a short statement itself."""
    driver: Any = connection.connection.dbapi_connection
    if connection.dialect.name == "postgresql":
        return Answer(driver.execute(sql, parameters, binary=True))
    cursor = driver.cursor()
    cursor.execute(sql, parameters or ())
    return Answer(cursor)


def execute_many(connection: Connection, sql: str, parameters: Sequence[dict[str, Any]]) -> None:
    """Run one statement for each set of parameters."""
    driver: Any = connection.connection.dbapi_connection
    driver.cursor().executemany(sql, parameters)


@contextmanager
def transaction(connection: Connection, *, immediate: bool = True) -> Iterator[None]:
    """Bracket statements; on an exception nothing of them remains.

    A connection that breaks while the commit is under way leaves the outcome unknown: the error is marked, see
    ``commit_unknown``.
    """
    if connection.info.get(_OPEN):  # part of a larger one
        yield
        return
    begin = "BEGIN"
    if connection.dialect.name == "sqlite" and immediate:
        begin = "BEGIN IMMEDIATE"  # the write lock now, not in the middle: a later upgrade could not wait for it
    execute(connection, begin)
    connection.info[_OPEN] = True
    try:
        yield
    except BaseException:
        connection.info.pop(_OPEN, None)
        try:
            execute(connection, "ROLLBACK")
        except Exception:
            connection.invalidate()
        raise
    connection.info.pop(_OPEN, None)
    try:
        execute(connection, "COMMIT")
    except BaseException as error:
        if connection.dialect.name == "sqlite":
            try:  # a full disk or a busy file leaves the transaction open
                execute(connection, "ROLLBACK")
            except Exception:
                connection.invalidate()
        else:
            _mark(error)
        raise


@contextmanager
def single_statement() -> Iterator[None]:
    """Bracket one writing statement that commits itself: a connection that breaks leaves its outcome unknown."""
    try:
        yield
    except BaseException as error:
        _mark(error)
        raise


def _mark(error: BaseException) -> None:
    error.taskq_commit_unknown = True  # type: ignore[attr-defined]


@contextmanager
def _discarding(connection: Connection) -> Iterator[None]:
    """Close rather than reuse a connection on which something other than a plain database error happened."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except BaseException:
        _drop(connection)
        raise


def _drop(connection: Connection) -> None:
    _quietly(connection.invalidate)
    _quietly(connection.close)


def _quietly(close: Callable[[], object]) -> None:
    try:
        close()
    except Exception:  # it is broken already, which is why it is closed
        return


def _check_idle(driver_connection: Any, record: Any, proxy: Any) -> None:
    """Notice, without a round trip, that the server has closed a pooled connection meanwhile."""
    if _said_goodbye(driver_connection):
        raise sa.exc.DisconnectionError("the server closed this connection while it was idle")


def _said_goodbye(driver_connection: Any) -> bool:
    """Whether an idle connection, which has nothing to read, has something to read."""
    socket = _socket_of(driver_connection)
    return socket is not None and _readable(socket)


def _socket_of(driver_connection: Any) -> int | None:
    pgconn = getattr(driver_connection, "pgconn", None)
    if pgconn is not None:
        return int(pgconn.socket) if pgconn.status == 0 else None
    sock = getattr(driver_connection, "_sock", None)
    return int(sock.fileno()) if sock is not None else None


def _readable(fd: int) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(0))

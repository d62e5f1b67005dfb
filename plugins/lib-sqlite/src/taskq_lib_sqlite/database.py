"""One open database file per process: two connections, the locks around them, and what a fork does to them.

All writes of a process go through one connection under one lock. A second writing connection would gain nothing, as
SQLite lets one transaction write at a time, and would lose much: each commit of one throws away the page cache of the
other, and they would wait for each other by sleeping.

**Fork.** SQLite keeps its file locks per process and its book-keeping of them in memory that a child inherits, so a
child that opens the same file believes that it holds locks which only its parent has. Therefore a fork first waits
for the running transaction and closes the connections. The parent opens them again when it next needs them; in the
child the inherited object is refused, and a new one may be opened.
"""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, TypeVar

from taskq_lib_sqlite import schema
from taskq_lib_sqlite.bells import Bells
from taskq_lib_sqlite.location import CONVENTIONS, make_default_directory
from taskq_lib_sqlite.trouble import Kind, Trouble, explain

R = TypeVar("R")

log = logging.getLogger("taskq.sqlite")

OLDEST_SQLITE = (3, 24, 0)  # ON CONFLICT DO UPDATE
BUSY_TIMEOUT_S = 10.0

_PRAGMAS = (
    "PRAGMA cache_size=-8000",  # KiB
    "PRAGMA temp_store=MEMORY",
    "PRAGMA secure_delete=OFF",
    "PRAGMA wal_autocheckpoint=2000",  # pages
    "PRAGMA journal_size_limit=67108864",
)


def _is_busy(exc: sqlite3.Error) -> bool:
    return (getattr(exc, "sqlite_errorcode", None) or 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class Transaction:
    """``with transaction as connection:`` is one write transaction; the object may be used again and again.

    ``durable``: the commit returns when the data is on the disk. Otherwise a power loss may undo the last
    transactions, in order and whole, and a crash of the process undoes none.

    Raises:
        Trouble: whatever SQLite refuses, inside the block as well.
    """

    __slots__ = ("_database", "_level", "_max_size", "_patience")

    def __init__(self, database: Database, *, durable: bool, patience: float, max_size: int = 0) -> None:
        self._database = database
        self._level = "FULL" if durable else "NORMAL"
        self._patience = patience
        self._max_size = max_size

    def __enter__(self) -> sqlite3.Connection:
        database = self._database
        if not database.lock.acquire(timeout=self._patience):
            raise Trouble(Kind.BUSY, f"{database.path} stayed locked by another thread for {self._patience:g} s")
        try:
            connection = database.writer or database.connect()
            try:
                self._begin(connection)
            except sqlite3.OperationalError as exc:
                if not _is_busy(exc):
                    raise
                retry_busy(lambda: self._begin(connection), self._patience)
        except BaseException as exc:
            database.lock.release()
            if isinstance(exc, sqlite3.Error):
                raise explain(exc, database.path) from exc
            raise
        return connection

    def _begin(self, connection: sqlite3.Connection) -> None:
        database = self._database
        if database.level != self._level:
            connection.execute("PRAGMA synchronous=" + self._level)
            database.level = self._level
        if database.max_size != self._max_size:
            pages = self._max_size // database.page_size if self._max_size else 0xFFFFFFFE
            connection.execute(f"PRAGMA max_page_count={pages}").close()
            database.max_size = self._max_size
        connection.execute("BEGIN IMMEDIATE")

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        database = self._database
        connection = database.writer
        try:
            if connection is not None:
                if kind is None:
                    connection.execute("COMMIT")
                    if database.new_queues:
                        database.queues.update(database.new_queues)
                elif connection.in_transaction:
                    connection.execute("ROLLBACK")
        except sqlite3.Error as failed:
            # Without this the next user would find a transaction open that nobody ends.
            if connection is not None and connection.in_transaction:
                try:
                    connection.execute("ROLLBACK")
                except sqlite3.Error:
                    database.drop_connections()
            raise explain(failed, database.path) from failed
        finally:
            database.new_queues.clear()
            database.lock.release()
        if isinstance(exc, sqlite3.Error):
            raise explain(exc, database.path) from exc
        if isinstance(exc, UnicodeEncodeError):
            raise Trouble(Kind.REFUSED, f"{exc.object!r} cannot be stored in {database.path}: {exc}") from exc


def retry_busy(call: Callable[[], R], patience: float) -> R:
    """Call again until no other process locks the file; return what the call returns.

    SQLite's own busy handler sleeps up to 100 ms at a time, which under load lets a busy process starve the others.
    """
    deadline = time.monotonic() + patience
    pause = 0.0002
    while True:
        try:
            return call()
        except sqlite3.OperationalError as exc:
            if not _is_busy(exc) or time.monotonic() >= deadline:
                raise
        time.sleep(pause * (0.5 + random.random()))  # noqa: S311  spreads competitors, guards nothing
        pause = min(pause * 1.5, 0.008)


class Database:
    """A file that this process has open; shared by every transport and store of the process that names it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.pid = os.getpid()
        self.lock = threading.Lock()
        """Around the writing connection, for the length of a transaction."""
        self.writer: sqlite3.Connection | None = None
        self.level = ""
        self.max_size = 0
        self.page_size = 4096
        self.users = 0
        self.queues: dict[str, int] = {}
        """Numbers of queues by name, as far as seen; a queue's number never changes."""
        self.new_queues: dict[str, int] = {}
        """The same, as seen inside the running transaction; ``queues`` takes them over when it is committed."""
        self.file_id = ""
        """Names the file itself; another one stands at the path when this changes."""
        self.bells = Bells(path)
        self._reader: sqlite3.Connection | None = None
        self._reader_lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._closed = False

    def check_process(self) -> None:
        """Refuse what a parent process opened.

        Raises:
            Trouble: this is not the process that opened the file.
        """
        if self.pid != os.getpid():
            raise Trouble(
                Kind.CLOSED,
                f"{self.path} was opened by process {self.pid} and must not be used in its child {os.getpid()}: "
                "open a new transport or store here",
            )

    def transaction(self, *, durable: bool, patience: float = BUSY_TIMEOUT_S, max_size: int = 0) -> Transaction:
        """Return a reusable write transaction; ``max_size`` in bytes limits the file, 0 for no limit."""
        return Transaction(self, durable=durable, patience=patience, max_size=max_size)

    def read(self, statement: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one SELECT beside whatever is being written; return its rows.

        Raises:
            Trouble: SQLite refused it.
        """
        with self._reader_lock:
            try:
                return (self._reader or self._connect_reader()).execute(statement, parameters).fetchall()
            except sqlite3.Error as exc:
                raise explain(exc, self.path) from exc

    @contextmanager
    def snapshot(self) -> Iterator[Callable[..., list[Any]]]:
        """Give a function as ``read`` whose every answer is of one moment: no message is seen twice or missed between
        two.

        Raises:
            Trouble: SQLite refused it.
        """
        with self._reader_lock:
            try:
                reader = self._reader or self._connect_reader()
                reader.execute("BEGIN")
                try:
                    yield lambda statement, parameters=(): reader.execute(statement, parameters).fetchall()
                finally:
                    reader.execute("ROLLBACK")
            except sqlite3.Error as exc:
                raise explain(exc, self.path) from exc

    # ------------------------------------------------------------------------------------------------ connections

    def connect(self) -> sqlite3.Connection:
        """Open the writing connection, and make or migrate the tables; the caller holds ``lock``.

        Raises:
            Trouble: the file cannot be used.
        """
        if self._closed:
            raise Trouble(Kind.CLOSED, f"{self.path} was used after close()")
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise Trouble(
                Kind.UNREACHABLE,
                f"this Python has SQLite {sqlite3.sqlite_version}, taskq needs "
                f"{'.'.join(map(str, OLDEST_SQLITE))} or newer: use a newer Python",
            )
        self._check_directory()
        try:
            connection = self._open()
            try:
                switch = "PRAGMA journal_mode=WAL"
                mode = retry_busy(lambda: connection.execute(switch).fetchone()[0], BUSY_TIMEOUT_S)
                if mode != "wal":
                    raise Trouble(
                        Kind.UNREACHABLE,
                        f"{self.path} cannot be switched to write-ahead logging (SQLite stays in "
                        f"{mode!r} mode): it needs "
                        "a local file system with shared memory; put the file on a local disk",
                    )
                retry_busy(lambda: connection.execute("BEGIN IMMEDIATE"), BUSY_TIMEOUT_S)
                if schema.check_version(schema.found_version(connection), self.path):
                    schema.migrate(connection, self.path)
                self.file_id = schema.file_id(connection)
                connection.execute("COMMIT")
                # From here on we wait for others in our own way.
                connection.execute("PRAGMA busy_timeout=0").close()
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as exc:
            raise explain(exc, self.path) from exc
        self._identity = _identity(self.path)
        self.queues.clear()
        self.level = ""
        self.max_size = 0
        self.page_size = connection.execute("PRAGMA page_size").fetchone()[0]
        self.writer = connection
        return connection

    def _connect_reader(self) -> sqlite3.Connection:
        if self._closed:
            raise Trouble(Kind.CLOSED, f"{self.path} was used after close()")
        if self.writer is None:
            with self.lock:
                if self.writer is None:
                    self.connect()
        connection = self._open()
        connection.execute("PRAGMA query_only=ON")
        self._reader = connection
        return connection

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, cached_statements=256, check_same_thread=False
        )
        connection.text_factory = _text
        for pragma in _PRAGMAS:
            connection.execute(pragma).close()
        return connection

    def _check_directory(self) -> None:
        directory = os.path.dirname(self.path)
        try:
            make_default_directory(self.path)
        except OSError as exc:
            raise Trouble(Kind.UNREACHABLE, f"cannot make the directory for {self.path}: {exc}") from exc
        if not os.path.isdir(directory):
            raise Trouble(
                Kind.UNREACHABLE,
                f"cannot open {self.path}: there is no directory {directory}; create it, or check the "
                f"URL: {CONVENTIONS}",
            )
        if os.path.isdir(self.path):
            raise Trouble(Kind.UNREACHABLE, f"cannot open {self.path}: it is a directory; add a file name to the URL")

    def drop_connections(self) -> None:
        """Close the connections; the caller holds ``lock``. The next use opens them again."""
        writer, self.writer = self.writer, None
        reader, self._reader = self._reader, None
        for connection in (reader, writer):
            if connection is not None:
                try:
                    connection.close()
                except sqlite3.Error as exc:
                    log.warning("closing %s failed: %s", self.path, exc)

    def check_file(self) -> None:
        """Notice that the file was replaced under us, and turn to the new one, or that its tables were upgraded.

        Raises:
            Trouble: whatever this process held in the old file is gone, or the tables are not known here any more.
        """
        if self.writer is None or _identity(self.path) == self._identity:
            rows = self.read("SELECT value FROM taskq_meta WHERE name = 'version'")
            schema.check_version(rows[0][0] if rows else 0, self.path)
            return
        with self._reader_lock, self.lock:
            self.drop_connections()
        raise Trouble(
            Kind.REPLACED,
            f"{self.path} was removed or replaced while in use; the messages of the old file are not served",
        )

    def close(self) -> None:
        """Close for good."""
        with self._reader_lock, self.lock:
            self._closed = True
            self.drop_connections()
            self.bells.close()

    # ------------------------------------------------------------------------------------------------------- fork

    def before_fork(self) -> None:
        self._reader_lock.acquire()
        self.lock.acquire()
        self.drop_connections()

    def after_fork(self, *, child: bool) -> None:
        if child:
            self.bells.after_fork_in_child()
        self.lock.release()
        self._reader_lock.release()


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")  # damaged text must not stop what reads the row


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


_open: dict[str, Database] = {}
_registry_lock = threading.Lock()
_forking: list[Database] = []


def open_database(path: str) -> Database:
    """Return this process's ``Database`` for a path, opened and checked; give it back with ``close_database``.

    Raises:
        Trouble: the file cannot be used.
    """
    real = os.path.realpath(path)
    with _registry_lock:
        database = _open.get(real)
        if database is None:
            database = Database(real)
            with database.lock:
                database.connect()
            _open[real] = database
        else:
            try:
                database.check_file()
            except Trouble as trouble:
                if trouble.kind is not Kind.REPLACED:
                    raise
        database.users += 1
    return database


def close_database(database: Database) -> None:
    """Give a database back; the last user's call closes it."""
    if database.pid != os.getpid():
        return
    with _registry_lock:
        database.users -= 1
        if database.users > 0:
            return
        if _open.get(database.path) is database:
            del _open[database.path]
    database.close()


def _before_fork() -> None:
    _registry_lock.acquire()
    _forking[:] = _open.values()
    for database in _forking:
        database.before_fork()


def _after_fork_in_parent() -> None:
    for database in _forking:
        database.after_fork(child=False)
    _forking.clear()
    _registry_lock.release()


def _after_fork_in_child() -> None:
    for database in _forking:
        database.after_fork(child=True)
    _forking.clear()
    _open.clear()
    _registry_lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)

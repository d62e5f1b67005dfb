"""The open file: transactions, errors, forks."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from taskq.errors import ConnectionFailed, ConnectionLost, StorageFull, StoreUnavailable
from taskq_lib_sqlite import Database, Kind, Trouble, close_database, open_database
from taskq_lib_sqlite.database import _open as registry


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "q.db")


@pytest.fixture
def database(path: str) -> Iterator[Database]:
    database = open_database(path)
    yield database
    close_database(database)


def put(database: Database, name: str, *, durable: bool = False, patience: float = 5.0) -> None:
    with database.transaction(durable=durable, patience=patience) as connection:
        connection.execute("INSERT INTO taskq_queue (name) VALUES (?)", (name,))


def names(database: Database) -> list[str]:
    return [row[0] for row in database.read("SELECT name FROM taskq_queue ORDER BY number")]


def test_one_per_process_and_file(path: str, tmp_path: Path) -> None:
    (tmp_path / "link.db").symlink_to(path)
    first, second = open_database(path), open_database(str(tmp_path / "link.db"))
    assert first is second
    close_database(first)
    put(second, "still open")
    close_database(second)
    assert not registry
    with pytest.raises(Trouble) as caught:
        names(second)
    assert caught.value.kind is Kind.CLOSED


def test_a_block_that_fails_is_undone(database: Database) -> None:
    def fail(statement: str) -> None:
        with database.transaction(durable=True) as connection:
            connection.execute("INSERT INTO taskq_queue (name) VALUES ('x')")
            connection.execute(statement)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail("SELECT 1")
    with pytest.raises(Trouble):
        fail("nonsense")
    put(database, "y")
    assert names(database) == ["y"]


def test_how_long_a_commit_waits_for_the_disk(database: Database) -> None:
    for durable, level in ((True, 2), (False, 1), (True, 2)):
        with database.transaction(durable=durable) as connection:
            assert connection.execute("PRAGMA synchronous").fetchone() == (level,)


def test_another_process_holds_the_lock(database: Database, path: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Trouble, match="stayed locked") as caught:
            put(database, "x", patience=0.2)
        assert caught.value.kind is Kind.BUSY
        assert caught.value.typed(store=False).retryable
        assert names(database) == [], "reading goes on"
        waiting = threading.Thread(target=put, args=(database, "y"), kwargs={"patience": 30.0})
        waiting.start()
        other.execute("COMMIT")
        waiting.join()
    assert names(database) == ["y"]


def test_many_processes_write_at_once(path: str) -> None:
    program = (
        "import sys; from taskq_lib_sqlite import open_database\n"
        "d = open_database(sys.argv[1]); t = d.transaction(durable=False)\n"
        "for i in range(50):\n"
        "    with t as c: c.execute('INSERT INTO taskq_queue (name) VALUES (?)', (f'{sys.argv[2]}-{i}',))\n"
    )
    children = [subprocess.Popen([sys.executable, "-c", program, path, str(n)]) for n in range(4)]
    assert [child.wait() for child in children] == [0] * 4
    database = open_database(path)
    assert len(names(database)) == 200
    close_database(database)


# ---------------------------------------------------------------------------------------------------- bad files


def test_not_a_database(path: str) -> None:
    Path(path).write_text("to whom it may concern: " * 100)
    with pytest.raises(Trouble, match="is not an SQLite database") as caught:
        open_database(path)
    for store, expected in ((False, ConnectionFailed), (True, StoreUnavailable)):
        error = caught.value.typed(store=store)
        assert type(error) is expected
        assert not error.retryable


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(Trouble) as caught:
        open_database(str(tmp_path / "missing" / "q.db"))
    for said in (str(tmp_path / "missing"), "sqlite:///a/b.db is the absolute path", "sqlite://a/b.db is relative"):
        assert said in str(caught.value)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Trouble, match="it is a directory"):
        open_database(str(tmp_path))


def test_a_file_that_may_not_be_written() -> None:
    program = (
        "import os, sys\n"
        "from taskq_lib_sqlite import Trouble, open_database\n"
        "if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n"
        "try: open_database(sys.argv[1])\n"
        "except Trouble as trouble: print(trouble.kind.name, trouble)\n"
        "else: print('opened')\n"
    )
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is for its owner alone
        path = f"{folder}/q.db"
        close_database(open_database(path))
        os.chmod(path, 0o444)
        os.chmod(folder, 0o555)
        found = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=False)
        os.chmod(folder, 0o755)
    assert found.stdout.startswith("UNREACHABLE"), found
    assert "write permission" in found.stdout


def test_a_full_disk(database: Database, path: str) -> None:
    size = os.path.getsize(path) + 16 * 4096
    small = database.transaction(durable=True, max_size=size)
    sent = 0

    def fill() -> None:
        nonlocal sent
        while sent < 1000:
            with small as connection:
                connection.execute("INSERT INTO taskq_message (payload) VALUES (?)", (bytes(4000),))
            sent += 1

    with pytest.raises(Trouble, match="no room") as caught:
        fill()
    assert type(caught.value.typed(store=False)) is StorageFull
    assert database.read("SELECT count(*) FROM taskq_message") == [(sent,)], "what failed left nothing"
    with database.transaction(durable=True) as connection:
        connection.execute("DELETE FROM taskq_message")
    with small as connection:
        connection.execute("INSERT INTO taskq_message (payload) VALUES (?)", (bytes(4000),))


def test_a_damaged_file(path: str) -> None:
    database = open_database(path)
    with database.transaction(durable=True) as connection:
        connection.executemany("INSERT INTO taskq_message (payload) VALUES (?)", [(os.urandom(3000),)] * 200)
    close_database(database)
    with open(path, "r+b") as file:
        file.seek(40 * 4096)
        file.write(os.urandom(60 * 4096))
    database = open_database(path)
    with pytest.raises(Trouble, match=r"\.recover") as caught:
        database.read("SELECT sum(length(payload)), max(payload) FROM taskq_message")
    assert caught.value.kind is Kind.DAMAGED
    close_database(database)


def test_text_that_is_no_utf8_can_be_read(database: Database) -> None:
    with database.transaction(durable=False) as connection:
        connection.execute("INSERT INTO taskq_queue (name) VALUES (CAST(x'ff41' AS TEXT))")
    assert names(database) == ["\ufffdA"]


def test_text_that_cannot_be_utf8_is_refused(database: Database) -> None:
    with pytest.raises(Trouble, match="cannot be stored") as caught:
        put(database, "\ud800")
    assert not caught.value.typed(store=False).retryable


def test_the_file_was_replaced(database: Database, path: str) -> None:
    put(database, "old")
    old = database.file_id
    for suffix in ("", "-wal", "-shm"):
        os.unlink(path + suffix)
    with pytest.raises(Trouble, match="removed or replaced") as caught:
        database.check_file()
    assert type(caught.value.typed(store=False)) is ConnectionLost
    put(database, "new")
    assert names(database) == ["new"]
    assert database.file_id != old
    database.check_file()


# --------------------------------------------------------------------------------------------------------- fork


def in_a_child(call: object) -> int:
    """Run something in a forked child; return its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            call()  # type: ignore[operator]
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_finds_no_connection_open(database: Database, path: str) -> None:
    """SQLite's book-keeping of its locks must not be inherited: the child would believe to have its parent's."""
    put(database, "before")
    names(database)
    seen: list[tuple[object, object]] = []

    def child() -> None:
        assert database.writer is None
        assert not registry
        with pytest.raises(Trouble, match="must not be used in its child"):
            database.check_process()
        own = open_database(path)
        put(own, "child")
        close_database(own)

    assert in_a_child(child) == 0
    seen.append((database.writer, None))
    put(database, "after")
    assert names(database) == ["before", "child", "after"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_beside_busy_threads(database: Database, path: str) -> None:
    """A fork waits for the running transaction, so no child inherits half of one, and nothing is lost."""
    stop = threading.Event()
    written: list[str] = []

    def write(thread: int) -> None:
        while not stop.is_set():
            name = f"{thread}-{len(written)}-{time.monotonic_ns()}"
            put(database, name)
            written.append(name)
            names(database)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()

    def child(n: int) -> None:
        own = open_database(path)
        put(own, f"child-{n}")
        close_database(own)

    children = [in_a_child(lambda n=n: child(n)) for n in range(5)]
    stop.set()
    for thread in threads:
        thread.join()
    assert children == [0] * 5
    assert sorted(names(database)) == sorted([*written, *(f"child-{n}" for n in range(5))])
    assert database.read("PRAGMA integrity_check") == [("ok",)]

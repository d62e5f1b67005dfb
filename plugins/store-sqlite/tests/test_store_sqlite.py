"""What is special about results in a file: pushing, polling, sweeping, replacing, damaged rows."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskq.errors import ResultTooLarge, StoreError, StoreSchemaMismatch, StoreUnavailable
from taskq.message import Record
from taskq.spi import Op, OpKind, StoreConfig, parse_urls
from taskq_store_sqlite.options import SqliteStoreOptions, capabilities
from taskq_store_sqlite.store import SqliteStore

Connect = Callable[..., SqliteStore]


@pytest.fixture
def file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        yield f"{folder}/results.db"


@pytest.fixture
def connect(file: str) -> Iterator[Connect]:
    opened = []

    def connect(path: str = file, clock: Any = None, **options: Any) -> SqliteStore:
        more = {} if clock is None else {"clock": clock}
        options = {"synchronous": "NORMAL", **options}
        config = StoreConfig(urls=parse_urls(f"sqlite:///{path}"), options=SqliteStoreOptions(**options), **more)
        store = SqliteStore(config)
        store.open()
        opened.append(store)
        return store

    yield connect
    for store in opened:
        store.close()


@pytest.fixture
def store(connect: Connect) -> SqliteStore:
    return connect()


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.at = 1_000_000.0

    def now(self) -> float:
        return self.at

    monotonic = now


def edit(file: str, statement: str, *parameters: object) -> None:
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute(statement, parameters)


def done(i: str, payload: str = "result", **fields: Any) -> Record:
    return Record(i, "SUCCESS", payload.encode(), **fields)


def payloads(records: Any) -> list[str | None]:
    return [r.payload.decode() if r is not None else None for r in records]


# ------------------------------------------------------------------------------------------------------ records


def test_promises_follow_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert capabilities(SqliteStoreOptions()).push
    assert not capabilities(SqliteStoreOptions(wake_up="poll")).push
    monkeypatch.delattr("socket.AF_UNIX")
    assert not capabilities(SqliteStoreOptions()).push


def test_every_field_comes_back(store: SqliteStore) -> None:
    record = Record("i", "RETRY", b"\x00\xff", False, 3, 2, 100.0, "somewhere", b"follow")
    store.put([record])
    (found,) = store.get(["i"])
    assert found is not None
    assert 99.0 < found.ttl <= 100.0, "what is left of it"
    found.ttl = 100.0
    assert found == record


def test_which_record_replaces_which(connect: Connect) -> None:
    """Every pair of (epoch, attempt, terminal), against the rule as the interface words it."""
    store = connect()
    kinds = [(epoch, attempt, terminal) for epoch in (0, 1) for attempt in (0, 1) for terminal in (False, True)]
    pairs = [(old, new) for old in kinds for new in kinds]
    name = "{}-{}".format
    store.put([done(name(old, new), "old", epoch=old[0], attempt=old[1], terminal=old[2]) for old, new in pairs])
    batch = [done(name(old, new), "new", epoch=new[0], attempt=new[1], terminal=new[2]) for old, new in pairs]
    superseded = set(store.put(batch))
    for old, new in pairs:
        better = new[:2] > old[:2] or (new[:2] == old[:2] and not old[2])
        assert (name(old, new) in superseded) is not better, (old, new)
        assert payloads(store.get([name(old, new)])) == ["new" if better else "old"]
    assert set(store.put(batch)) == {r.id for r in batch if r.terminal or r.id in superseded}, "the repeat tells"


def test_an_expired_record_is_as_none(connect: Connect) -> None:
    clock = Clock()
    store = connect(clock=clock)
    assert not store.put([done("i", "first", attempt=5, ttl=10.0)])
    clock.at += 11
    assert store.get(["i"]) == [None]
    assert not store.wait(["i"], 0.0)
    assert not store.put([done("i", "second", attempt=0)])
    assert payloads(store.get(["i"])) == ["second"]


def test_expired_records_are_swept_some_at_a_time(connect: Connect, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq_store_sqlite.store._SWEEP_AT_ONCE", 7)
    clock = Clock()
    store = connect(clock=clock)
    store.put([done(str(i), ttl=10.0) for i in range(30)] + [done("long", ttl=1000.0)])
    store.apply([Op(kind=OpKind.PUT, key=f"k{i}", value=b"v", ttl=5.0 if i else None) for i in range(20)])
    store.acquire("slot", "me", ttl=5.0)
    assert store.maintain(5.0) > 1
    clock.at += 11
    assert store.maintain(0.0) <= 1.0, "there is more to do"
    assert store.maintain(5.0) > 1
    with closing(sqlite3.connect(file)) as connection:
        for table, left in (("record", 1), ("entry", 1), ("place", 0)):
            assert connection.execute(f"SELECT count(*) FROM taskq_{table}").fetchone() == (left,)


def test_more_than_one_transaction(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq_store_sqlite.store._PUT_AT_ONCE", 10)
    ids = [f"i{n}" for n in range(1300)]
    store.put([done(i, i) for i in ids])
    assert store.put([done(ids[5]), done("new"), done(ids[1200])]) == [ids[5], ids[1200]]
    assert payloads(store.get([*ids, "unknown", ids[0]])) == [*ids, None, ids[0]]
    store.delete([*ids[:1299], "unknown"])
    assert [i for i, r in zip(ids, store.get(ids), strict=True) if r is not None] == [ids[1299]]
    assert store.get([]) == []


def test_a_result_that_is_too_large(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq_store_sqlite.store.MAX_RECORD_BYTES", 100)
    with pytest.raises(ResultTooLarge, match="has 101 bytes"):
        store.put([done("good"), done("bad", "x" * 90, follow_ups=b"x" * 11)])
    assert store.get(["good"]) == [None]


def test_a_damaged_row_does_not_stop_the_others(store: SqliteStore, file: str) -> None:
    store.put([done("1"), done("2"), done("3")])
    edit(file, "UPDATE taskq_record SET payload = NULL, state = CAST(x'ff' AS TEXT), reply = 7 WHERE id = '2'")
    edit(file, "UPDATE taskq_record SET payload = 'text' WHERE id = '3'")
    assert payloads(store.get(["1", "2", "3"])) == ["result", "", "text"]
    assert len(store.wait(["1", "2", "3"], 1.0)) == 3


# -------------------------------------------------------------------------------------------------------- files


def test_bad_files(connect: Connect, tmp_path: Path, file: str) -> None:
    (tmp_path / "bad.db").write_text("x" * 5000)
    with pytest.raises(StoreUnavailable, match="is not an SQLite database") as caught:
        connect(str(tmp_path / "bad.db"))
    assert not caught.value.retryable
    connect().close()
    edit(file, "UPDATE taskq_meta SET value = 99 WHERE name = 'version'")
    with pytest.raises(StoreSchemaMismatch, match="have version 99"):
        connect()


def test_used_before_open_and_after_close(file: str) -> None:
    store = SqliteStore(StoreConfig(urls=parse_urls(f"sqlite:///{file}"), options=SqliteStoreOptions()))
    with pytest.raises(StoreError):
        store.get(["i"])
    store.open()
    store.reply_address()
    store.close()
    store.close()
    with pytest.raises(StoreError) as caught:
        store.put([done("i")])
    assert not caught.value.retryable
    assert os.listdir(file + "-bells") == []


# ------------------------------------------------------------------------------------------------------ waiting


def waited(store: SqliteStore, ids: list[str], then: Callable[[], object]) -> tuple[list[str | None], float]:
    """Return what a wait brought, and how many seconds after ``then``."""
    found: list[Any] = []
    ended: list[float] = []
    thread = threading.Thread(target=lambda: (found.extend(store.wait(ids, 30.0)), ended.append(time.monotonic())))
    thread.start()
    time.sleep(0.15)
    started = time.monotonic()
    then()
    thread.join()
    return payloads(found), ended[0] - started


def test_a_result_rings_who_waits(connect: Connect) -> None:
    """With a poll interval of half a minute only a ring can have ended the wait."""
    store, worker = connect(poll_interval=30.0), connect()
    address = store.reply_address()
    found, after = waited(store, ["x", "i"], lambda: worker.put([done("other"), done("i", "pushed", reply=address)]))
    assert found == ["pushed"]
    assert after < 10


def test_many_results_at_once(connect: Connect) -> None:
    """More ids than one datagram holds."""
    store, worker = connect(poll_interval=30.0), connect()
    address = store.reply_address()
    ids = [f"{n}-{'x' * 100}" for n in range(1500)]
    pending = set(ids)
    assert not store.wait(ids, 0.0)
    worker.put([done(i, reply=address) for i in ids])
    deadline = time.monotonic() + 20
    while pending and time.monotonic() < deadline:
        pending -= {r.id for r in store.wait(sorted(pending), 5.0)}
    assert not pending


def test_a_result_that_came_between_two_waits(connect: Connect) -> None:
    store, worker = connect(poll_interval=30.0), connect()
    address = store.reply_address()
    assert not store.wait(["a", "b"], 0.01)
    worker.put([done("a", reply=address)])
    assert payloads(store.wait(["b"], 0.01)) == []
    assert payloads(store.wait(["a", "b"], 20.0)) == ["result"]


def test_what_nobody_rang_is_found_by_looking(connect: Connect) -> None:
    """The ring was lost, or the task was sent by somebody else."""
    store, worker = connect(poll_interval=0.05), connect()
    found, after = waited(store, ["i"], lambda: worker.put([done("i")]))
    assert found == ["result"]
    assert after < 10


def test_by_polling(connect: Connect, file: str) -> None:
    store = connect(wake_up="poll", poll_interval=0.02)
    assert store.reply_address() is None
    assert waited(store, ["i"], lambda: connect().put([done("i")]))[0] == ["result"]
    assert not os.path.exists(file + "-bells")


def test_an_id_is_looked_up_once_until_it_is_rung(connect: Connect) -> None:
    """Ten thousand waiting ids must not be looked up for each single result."""
    store, worker = connect(poll_interval=30.0), connect()
    address = store.reply_address()
    ids = [str(n) for n in range(3000)]
    looked: list[int] = []
    look = store._look
    store._look = lambda some, **kind: (looked.append(len(some)), look(some, **kind))[1]  # type: ignore[method-assign]
    assert not store.wait(ids, 0.0)
    for n in range(20):
        worker.put([done(ids[n], reply=address)])
        (found,) = store.wait(ids[n:], 10.0)
        assert found.id == ids[n]
    assert looked[0] == 3000
    assert sum(looked[1:]) <= 40


def test_a_strangers_reply_address_reaches_nothing(connect: Connect, tmp_path: Path) -> None:
    """The address comes out of the message; whoever can send messages must not reach other sockets with it."""
    import socket

    store = connect()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as victim:
        victim.bind(str(tmp_path / "victim"))
        victim.setblocking(False)
        for address in ("../victim", str(tmp_path / "victim"), "0w-../../victim"):
            store.put([done(address, reply=address)])
        with pytest.raises(BlockingIOError):
            victim.recv(100)


def test_a_client_that_was_killed_leaves_no_bell(store: SqliteStore, file: str) -> None:
    program = (
        "import sys, os, signal\n"
        "from taskq.spi import StoreConfig, parse_urls\n"
        "from taskq_store_sqlite.options import SqliteStoreOptions\n"
        "from taskq_store_sqlite.store import SqliteStore\n"
        "store = SqliteStore(StoreConfig(urls=parse_urls(f'sqlite:///{sys.argv[1]}'), options=SqliteStoreOptions()))\n"
        "store.open(); print(store.reply_address(), flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    child = subprocess.run([sys.executable, "-c", program, file], capture_output=True, text=True, check=False)
    address = child.stdout.strip()
    assert os.listdir(file + "-bells") == [address]
    assert not store.put([done("i", reply=address)]), "that nobody hears is no error"
    store.maintain(1.0)
    assert os.listdir(file + "-bells") == []


# ------------------------------------------------------------------------------------------------- coordination


def test_all_operations_of_a_batch_or_none_reach_the_disk(store: SqliteStore, file: str) -> None:
    with pytest.raises(StoreError, match="not 1 to 200"):
        store.apply([Op(kind=OpKind.PUT, key="good", value=b"v"), Op(kind=OpKind.PUT, key="ä", value=b"v")])
    assert store.apply([Op(kind=OpKind.GET, key="good")])[0].current is None


def test_a_thousand_owners_take_three_places(connect: Connect) -> None:
    got: list[str] = []

    def run(thread: int) -> None:
        store = connect()
        got.extend(o for o in (f"{thread}-{n}" for n in range(25)) if store.acquire("slot", o, slots=3, ttl=60.0))

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 3


def test_due_entries_come_by_the_index(store: SqliteStore, file: str) -> None:
    store.index_put("timers", {f"m{n}": float(n) for n in range(100)})
    store.index_put("timers", {"m5": 500.0})
    store.index_put("others", {"x": 0.0})
    assert store.index_due("timers", 7.0, 4) == [("m0", 0.0), ("m1", 1.0), ("m2", 2.0), ("m3", 3.0)]
    assert store.index_remove("timers", ["m1", "m1", "unknown", "m2"]) == ["m1", "m2"]
    assert [m for m, _ in store.index_due("timers", 7.0, 10)] == ["m0", "m3", "m4", "m6", "m7"]
    with closing(sqlite3.connect(file)) as connection:
        plan = connection.execute(
            "EXPLAIN QUERY PLAN "
            "SELECT member, at FROM taskq_due WHERE name = 'a' AND at <= 1 ORDER BY at, member LIMIT 5"
        ).fetchall()
    assert "taskq_due_at" in str(plan)
    assert "TEMP B-TREE" not in str(plan)

"""What is special about queues in a file: damaged rows, full disks, query plans, the caller's own transactions."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from taskq.errors import (
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    PayloadTooLarge,
    SchemaMismatch,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.message import RELEASE, QueueSpec, Settlement
from taskq.spi import Durability, Ordering, TransportConfig, WakeUp, parse_urls
from taskq_transport_sqlite import options
from taskq_transport_sqlite.options import SqliteOptions, capabilities
from taskq_transport_sqlite.transport import SqliteTransport

from .conftest import consume, out, take, texts

Connect = Callable[..., SqliteTransport]


def edit(file: str, statement: str, *parameters: object) -> None:
    """Do something to the tables behind the transport's back."""
    with closing(sqlite3.connect(file, timeout=10)) as connection, connection:
        connection.execute(statement, parameters)


def acknowledge(consumer: object, deliveries: object) -> None:
    assert not consumer.settle([Settlement(d.receipt) for d in deliveries])  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------- capabilities


def test_promises_follow_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert capabilities(SqliteOptions()).durability is Durability.DISK
    assert capabilities(SqliteOptions(synchronous="NORMAL")).durability is Durability.SERVER
    assert capabilities(SqliteOptions()).wake_up is WakeUp.PUSH
    assert capabilities(SqliteOptions(wake_up="poll")).wake_up is WakeUp.POLL
    monkeypatch.delattr("socket.AF_UNIX")
    assert capabilities(SqliteOptions()).wake_up is WakeUp.POLL


def test_sending_waits_for_the_disk_and_moving_does_not(connect: Connect) -> None:
    levels = []
    transport = connect(synchronous="FULL")
    consumer = consume(transport)
    transport.send([out("a")])
    connection = transport.database.writer
    assert connection is not None
    connection.set_trace_callback(
        lambda s: (
            levels.append((transport.database.level, s.split()[0])) if s.startswith(("INSERT", "DELETE")) else None
        )
    )
    transport.send([out("b")])
    assert {level for level, _ in levels} == {"FULL"}
    levels.clear()
    acknowledge(consumer, take(consumer, 2))
    assert {level for level, _ in levels} == {"NORMAL"}, "a claim or acknowledgement that is undone is a redelivery"


# --------------------------------------------------------------------------------------------------- bad files


@pytest.mark.parametrize(
    ("prepare", "error", "says"),
    [
        (lambda p: p.write_text("x" * 5000), ConnectionFailed, "is not an SQLite database"),
        (lambda p: p.mkdir(), ConnectionFailed, "is a directory"),
    ],
)
def test_a_file_that_cannot_be_opened(
    prepare: Callable[[Path], object], error: type[TransportError], says: str, connect: Connect, tmp_path: Path
) -> None:
    prepare(tmp_path / "bad.db")
    with pytest.raises(error, match=says) as caught:
        connect(path=str(tmp_path / "bad.db"))
    assert not caught.value.retryable


def test_no_directory(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(ConnectionFailed, match="there is no directory"):
        connect(path=str(tmp_path / "a" / "b.db"))


def test_tables_of_a_newer_version(connect: Connect, file: str) -> None:
    connect().close()
    edit(file, "UPDATE taskq_meta SET value = 99 WHERE name = 'version'")
    with pytest.raises(SchemaMismatch, match="have version 99"):
        connect()


def test_used_before_open_and_after_close(file: str) -> None:
    transport = SqliteTransport(TransportConfig(urls=parse_urls(f"sqlite:///{file}"), options=SqliteOptions()))
    with pytest.raises(TransportClosed):
        transport.send([out("a")])
    assert not os.path.exists(file), "asking for a transport makes no file"
    transport.open()
    consumer = consume(transport)
    transport.close()
    transport.close()
    for call in (lambda: transport.send([out("a")]), lambda: consumer.fetch(1, 0), transport.consumer):
        with pytest.raises(TransportClosed):
            call()


def test_a_full_disk_accepts_nothing_and_can_be_drained(connect: Connect, file: str) -> None:
    connect().close()
    transport = connect(max_size=os.path.getsize(file) + 40 * 4096)
    sent = 0

    def fill() -> None:
        nonlocal sent
        for _ in range(200):
            transport.send([out("x" * 1000) for _ in range(10)])
            sent += 10

    with pytest.raises(StorageFull, match="nothing was written") as caught:
        fill()
    assert caught.value.retryable
    assert transport.stats(["q"])["q"].ready == sent > 0
    consumer = consume(transport)
    acknowledge(consumer, take(consumer, sent))
    transport.send([out("again")])
    assert texts(take(consumer, 1)) == ["again"]


def test_a_batch_that_fails_in_the_middle(connect: Connect, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in is in: a batch larger than one transaction tells which messages are not."""
    monkeypatch.setattr("taskq_transport_sqlite.transport._SEND_AT_ONCE", 10)
    connect().close()
    transport = connect(max_size=os.path.getsize(file) + 20 * 4096)
    failures = transport.send([out("x" * 1000 + str(i)) for i in range(200)])
    accepted = transport.stats(["q"])["q"].ready or 0
    assert [f.index for f in failures] == list(range(accepted, 200))
    assert accepted >= 10
    assert all(f.retryable and not f.maybe_sent and "no room" in f.reason for f in failures)


def test_what_cannot_be_sent_is_refused_before_anything_is(
    transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq_transport_sqlite.transport.MAX_PAYLOAD_BYTES", 100)
    for bad, error in (
        (out("x" * 101), PayloadTooLarge),
        (out("a", priority=10), NotSupported),
        (out("a", priority=-1), NotSupported),
        (out("a", routing_key="topic"), NotSupported),
    ):
        with pytest.raises(error):
            transport.send([out("good"), bad])
    assert transport.stats(["q"]) == {}
    assert options.MAX_PAYLOAD_BYTES > 1_000_000


@pytest.mark.parametrize("value", [None, "text", 12, 1.5])
def test_a_damaged_payload_is_delivered_as_it_is(value: object, transport: SqliteTransport, file: str) -> None:
    """The kernel finds it undecodable and dead-letters it; the queue goes on."""
    transport.send([out("1"), out("2"), out("3")])
    edit(file, "UPDATE taskq_message SET payload = ? WHERE id = 'id-2'", value)
    consumer = consume(transport)
    first, damaged, last = take(consumer, 3)
    assert texts([first, last]) == ["1", "3"]
    assert damaged.payload == (b"" if value is None else str(value).encode())
    acknowledge(consumer, [first, damaged, last])
    assert transport.stats(["q"])["q"].in_flight == 0


def test_a_damaged_text_and_count(transport: SqliteTransport, file: str) -> None:
    transport.send([out("1", group="g"), out("2"), out("3")])
    edit(file, "UPDATE taskq_message SET grp = CAST(x'ff' AS TEXT), id = CAST(x'fe' AS TEXT) WHERE id = 'id-1'")
    edit(file, "UPDATE taskq_message SET payload = CAST(x'fe41' AS TEXT), sent = 'yesterday' WHERE id = 'id-2'")
    edit(file, "UPDATE taskq_ready SET deliveries = NULL")
    assert len(transport.peek("q")) == 3
    assert transport.stats(["q"])["q"].ready == 3
    consumer = consume(transport)
    deliveries = take(consumer, 3)
    assert [d.payload for d in deliveries] == [b"1", "\ufffdA".encode(), b"3"]
    assert [d.deliveries for d in deliveries] == [1, 1, 1]
    acknowledge(consumer, deliveries)


def test_a_place_without_a_message(transport: SqliteTransport, file: str) -> None:
    transport.send([out("1"), out("2"), out("3")])
    edit(file, "DELETE FROM taskq_message WHERE id = 'id-2'")
    assert [p.payload for p in transport.peek("q")] == [b"1", b"", b"3"]
    consumer = consume(transport)
    deliveries = take(consumer, 3)
    assert [d.payload for d in deliveries] == [b"1", b"", b"3"]
    acknowledge(consumer, deliveries)
    assert transport.stats(["q"])["q"] == type(transport.stats(["q"])["q"])(0, 0, 0, None)


def test_held_by_a_consumer_that_does_not_exist(transport: SqliteTransport, file: str) -> None:
    transport.send([out("1")])
    edit(file, "INSERT INTO taskq_held SELECT 4711, seq, queue, rank, 1 FROM taskq_ready")
    edit(file, "DELETE FROM taskq_ready")
    transport.maintain(1.0)
    assert texts(take(consume(transport), 1)) == ["1"]


def test_the_file_is_replaced_under_a_running_consumer(transport: SqliteTransport, file: str) -> None:
    """Nothing of the old file may be settled in the new one, where the same numbers mean other messages."""
    transport.send([out("old-1"), out("old-2")])
    consumer = consume(transport, "other", "q")
    held = take(consumer, 2)
    for suffix in ("", "-wal", "-shm"):
        os.unlink(file + suffix)
    with pytest.raises(ConnectionLost, match="removed or replaced"):
        transport.maintain(0.1)
    transport.send([out("new-1"), out("new-2")])
    another = consume(transport, "q")
    assert texts(take(another, 2)) == ["new-1", "new-2"]
    assert another.number == 1, "the number that the first consumer had in the old file"
    assert {loss.receipt for loss in consumer.settle([Settlement(d.receipt) for d in held])} == {
        d.receipt for d in held
    }
    assert transport.stats(["q"])["q"].in_flight == 2
    another.close()
    assert texts(take(consumer, 2)) == ["new-1", "new-2"]


# ---------------------------------------------------------------------------------------------------- the plans


def plans(transport: SqliteTransport, work: Callable[[], object]) -> dict[str, list[str]]:
    """Return how SQLite runs each statement of some work, writing and reading."""
    statements: dict[str, None] = {}
    database = transport.database
    database.read("SELECT 1")
    connections = [c for c in (database.writer, database._reader) if c is not None]
    for connection in connections:
        connection.set_trace_callback(lambda s: statements.setdefault(s))
    work()
    for connection in connections:
        connection.set_trace_callback(None)
    with closing(sqlite3.connect(database.path)) as connection:
        return {
            s: [row[3] for row in connection.execute("EXPLAIN QUERY PLAN " + s)]
            for s in statements
            if s.lstrip().upper().startswith(("SELECT", "INSERT", "UPDATE", "DELETE", "WITH"))
        }


# Small by nature: one row per process.
_SMALL = ("SCAN taskq_consumer", "SCAN waiting", "SCAN CONSTANT ROW", "SCAN q", "SCAN 2-ROW", "SCAN 3-ROW")


def test_no_statement_scans_or_sorts_a_queue(transport: SqliteTransport) -> None:
    """What sending, fetching and settling do must not depend on how much is waiting."""
    queues = [f"q{i}" for i in range(5)]
    consumer = consume(transport, *queues)

    def work() -> None:
        transport.send([out("one", "q0")])
        transport.send([out(str(i), queues[i % 5], priority=i % 10, delay=i % 2 and 100) for i in range(40)])
        transport.send([out(str(i), "q0") for i in range(40)])
        consumer.fetch(1, 0.01)
        deliveries = list(consumer.fetch(50, 0).deliveries)
        some, others, rest = deliveries[::3], deliveries[1::3], deliveries[2::3]
        acknowledge(consumer, some)
        consumer.settle([Settlement(d.receipt, RELEASE) for d in others])
        consumer.settle([Settlement(d.receipt, RELEASE, delay=0.0001) for d in rest])
        consumer.settle([Settlement(d.receipt) for d in some])
        time.sleep(0.01)
        deliveries = list(consumer.fetch(500, 0).deliveries)
        acknowledge(consumer, deliveries)
        consumer.fetch(10, 0.01)
        consumer.extend()

    found = plans(transport, work)
    assert len(found) > 20
    bad = {
        statement: step
        for statement, steps in found.items()
        for step in steps
        if (step.startswith("SCAN") and not step.startswith(_SMALL)) or "TEMP B-TREE" in step
    }
    assert not bad


def test_a_fetch_takes_the_same_steps_from_a_long_queue(connect: Connect, tmp_path: Path) -> None:
    """Counted in steps of SQLite's virtual machine, so it does not depend on the machine."""

    def steps(backlog: int) -> int:
        transport = connect(path=str(tmp_path / f"{backlog}.db"))
        queues = [f"q{i}" for i in range(4)]
        transport.send([out(str(i), queues[i % 4], priority=i % 10) for i in range(backlog)])
        transport.send([out(str(i), queues[i % 4], delay=1000) for i in range(backlog)])
        consumer = consume(transport, *queues)
        acknowledge(consumer, take(consumer, 40))
        counted = 0

        def count() -> int:
            nonlocal counted
            counted += 1
            return 0

        connection = transport.database.writer
        assert connection is not None
        connection.set_progress_handler(count, 10)
        acknowledge(consumer, take(consumer, 40))
        transport.send([out("one", "q0")])
        connection.set_progress_handler(None, 0)
        return counted

    short, long = steps(200), steps(20_000)
    assert long <= short * 1.3, f"{short} steps with 200 messages, {long} with 20000"


# ----------------------------------------------------------------------------------- the caller's transactions


def test_send_in_goes_with_the_callers_changes(transport: SqliteTransport, file: str) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
        connection.commit()
        for end in (connection.rollback, connection.commit):
            connection.execute("INSERT INTO customers VALUES ('Ada')")
            transport.send_in(connection, [out("1"), out("2", "other", priority=9), out("3", delay=100)])
            transport.send_in(connection, [out("4")])
            transport.send_in(connection, [])
            assert transport.stats(["q", "other"]) in ({}, {"q": transport.stats(["q"]).get("q")})
            end()
        assert connection.execute("SELECT count(*) FROM customers").fetchone() == (1,)
    assert texts(transport.peek("q")) == ["1", "4", "3"]
    assert texts(transport.peek("other")) == ["2"]


def test_send_in_wakes_within_the_poll_interval(connect: Connect, file: str) -> None:
    consumer = consume(connect(poll_interval=0.05))
    transport = connect()
    found = []
    thread = threading.Thread(target=lambda: found.extend(take(consumer, 1)))
    thread.start()
    with closing(sqlite3.connect(file)) as connection, connection:
        transport.send_in(connection, [out("a")])
    thread.join()
    assert texts(found) == ["a"]


def test_send_in_through_an_attached_file(transport: SqliteTransport, file: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "mine.db")) as connection:
        connection.execute('ATTACH ? AS "the queue"', (file,))
        transport.send_in(connection, [out("1"), out("2", group="g")])
        connection.commit()
    assert texts(transport.peek("q")) == ["1", "2"]


def test_send_in_refuses_what_would_not_be_one_transaction(
    transport: SqliteTransport, file: str, tmp_path: Path
) -> None:
    with (
        closing(sqlite3.connect(tmp_path / "mine.db")) as connection,
        pytest.raises(NotSupported, match="the broker's own file"),
    ):
        transport.send_in(connection, [out("1")])
    with closing(sqlite3.connect(":memory:")) as connection, pytest.raises(NotSupported, match="has memory open"):
        transport.send_in(connection, [out("1")])
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        with pytest.raises(NotSupported, match="execute BEGIN first"):
            transport.send_in(connection, [out("1")])
        connection.execute("BEGIN")
        transport.send_in(connection, [out("1")])
        connection.execute("COMMIT")
    with pytest.raises(NotSupported, match=r"got builtins\.str"):
        transport.send_in("sqlite://", [out("1")])
    assert texts(transport.peek("q")) == ["1"]


def test_a_long_transaction_of_somebody_else(connect: Connect, file: str) -> None:
    """Nobody can write meanwhile: fetching comes back in time, sending says what is wrong, no lease is lost by it."""
    transport = connect(lease_s=0.5, busy_timeout=0.3)
    consumer = consume(transport)
    transport.send([out("1"), out("2")])
    (held,) = take(consumer, 1)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        started = time.monotonic()
        assert not consumer.fetch(1, 0.0).deliveries
        assert time.monotonic() - started < 5
        with pytest.raises(TransportError, match="stayed locked by another process") as caught:
            transport.send([out("3")])
        assert caught.value.retryable
        time.sleep(0.6)
        keeper = threading.Thread(target=lambda: _until_it_works(consumer.extend))
        keeper.start()
        reaper = threading.Thread(target=lambda: _until_it_works(lambda: transport.maintain(0.1)))
        reaper.start()
        time.sleep(0.1)
        other.execute("COMMIT")
    keeper.join()
    reaper.join()
    acknowledge(consumer, [held])
    assert texts(take(consumer, 1)) == ["2"]


def _until_it_works(call: Callable[[], object]) -> None:
    for _ in range(50):
        try:
            call()
        except TransportError:
            continue
        return
    raise AssertionError("it never worked")


# ------------------------------------------------------------------------------------------------------ queues


def test_queue_options_are_refused(transport: SqliteTransport) -> None:
    with pytest.raises(NotSupported, match="max_length"):
        transport.declare([QueueSpec(name="q", options={"max_length": 1})])


def test_an_ordered_queue(transport: SqliteTransport) -> None:
    facts = transport.declare([QueueSpec(name="ordered", ordered=True), QueueSpec(name="q")])
    assert facts["ordered"].capabilities.ordering is Ordering.GROUP
    assert facts["q"].capabilities.ordering is Ordering.QUEUE
    transport.send(
        [out("a1", "ordered", group="a"), out("a2", "ordered", group="a", priority=9), out("b1", "ordered", group="b")]
    )
    transport.send([out("free", "ordered"), out("b2", "ordered", group="b"), out("a3", "ordered", group="a")])
    stats = transport.stats(["ordered"])["ordered"]
    assert (stats.ready, stats.in_flight) == (6, 0)
    assert sorted(texts(transport.peek("ordered"))) == ["a1", "a2", "a3", "b1", "b2", "free"]
    consumer, other = consume(transport, "ordered"), consume(transport, "ordered")
    first = take(consumer, 3)
    assert texts(first) == ["a1", "b1", "free"]
    assert not other.fetch(10, 0).deliveries, "the next of a group waits"
    a1, _, free = first
    consumer.settle([Settlement(a1.receipt, RELEASE, delay=0.05), Settlement(free.receipt)])
    (again,) = take(other, 1)
    assert (again.payload, again.deliveries) == (b"a1", 1)
    acknowledge(other, [again])
    (a2,) = take(other, 1)
    assert a2.payload == b"a2"
    consumer.close()
    assert texts(take(other, 1)) == ["b1"], "handed back, not passed over"
    acknowledge(other, [a2])
    assert texts(take(other, 1)) == ["a3"]


def test_a_delayed_message_of_a_group_gets_in_line_when_it_is_due(transport: SqliteTransport) -> None:
    transport.declare([QueueSpec(name="ordered", ordered=True)])
    consumer = consume(transport, "ordered")
    transport.send([out("late", "ordered", group="a", delay=0.15), out("1", "ordered", group="a")])
    first = take(consumer, 1)
    assert texts(first) == ["1"]
    time.sleep(0.2)
    assert not consumer.fetch(1, 0).deliveries
    acknowledge(consumer, first)
    assert texts(take(consumer, 1)) == ["late"]


def test_purging_an_ordered_queue_leaves_no_group_stuck(transport: SqliteTransport) -> None:
    transport.declare([QueueSpec(name="ordered", ordered=True)])
    transport.send([out(f"{group}{i}", "ordered", group=group) for group in "abc" for i in range(3)])
    transport.send([out("later", "ordered", group="d", delay=100)])
    consumer = consume(transport, "ordered")
    (held,) = take(consumer, 1)
    assert transport.purge(["ordered", "unknown"]) == {"ordered": 9}
    transport.send(
        [out("a-new", "ordered", group="a"), out("b-new", "ordered", group="b"), out("d-new", "ordered", group="d")]
    )
    assert texts(take(consumer, 2)) == ["b-new", "d-new"]
    acknowledge(consumer, [held])
    assert texts(take(consumer, 1)) == ["a-new"]


def test_a_queue_that_holds_messages_does_not_become_ordered(transport: SqliteTransport) -> None:
    transport.send([out("1", group="g")])
    with pytest.raises(NotSupported, match="holds messages"):
        transport.declare([QueueSpec(name="q", ordered=True)])
    consumer = consume(transport)
    acknowledge(consumer, take(consumer, 1))
    transport.declare([QueueSpec(name="q", ordered=True)])
    with pytest.raises(NotSupported, match="not ordered"):
        transport.send([out("x", "plain")]) or transport.declare([QueueSpec(name="plain", ordered=True)], mode="verify")


def test_purge_does_not_chase_what_is_sent_meanwhile(
    transport: SqliteTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq_transport_sqlite.transport._PURGE_AT_ONCE", 10)
    transport.send([out(str(i), delay=i % 3) for i in range(95)])
    stop = threading.Event()
    sent = []

    def send() -> None:
        while not stop.is_set():
            transport.send([out("meanwhile")])
            sent.append(1)

    thread = threading.Thread(target=send)
    thread.start()
    removed = transport.purge(["q"])["q"]
    stop.set()
    thread.join()
    assert removed >= 95
    assert transport.stats(["q"])["q"].ready == 95 + len(sent) - removed


def test_a_listing_goes_on_when_the_messages_of_the_cursor_are_gone(transport: SqliteTransport) -> None:
    transport.send([out(str(i), priority=i % 2) for i in range(10)])
    first = transport.peek("q", limit=4)
    consumer = consume(transport)
    acknowledge(consumer, take(consumer, 4))
    rest = transport.peek("q", limit=100, after=first[-1].cursor)
    assert texts([*first, *rest]) == ["1", "3", "5", "7", "9", "0", "2", "4", "6", "8"]
    with pytest.raises(NotSupported, match="not a cursor"):
        transport.peek("q", after="4711")

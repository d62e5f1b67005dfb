"""Several processes on one file: waking each other, dying, forking; and several threads."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskq.message import RELEASE, Settlement
from taskq.spi import SYSTEM_CLOCK, Subscription
from taskq_transport_sqlite.leases import LeaseClock
from taskq_transport_sqlite.line import Line
from taskq_transport_sqlite.transport import SqliteTransport

from .conftest import consume, out, take, texts

Connect = Callable[..., SqliteTransport]

# A consumer that says what it holds, and then does whatever stdin says.
HOLDER = """
import os, sys
from taskq.spi import Subscription, TransportConfig, parse_urls
from taskq_transport_sqlite.options import SqliteOptions
from taskq_transport_sqlite.transport import SqliteTransport

file, n, lease, wake_up = sys.argv[1:]
config = TransportConfig(
    urls=parse_urls(f"sqlite:///{file}"),
    options=SqliteOptions(wake_up=wake_up, synchronous="NORMAL"),
    lease_s=float(lease),
)
transport = SqliteTransport(config)
transport.open()
consumer = transport.consumer()
consumer.subscribe([Subscription("q")])
held = []
while len(held) < int(n):
    held += consumer.fetch(int(n) - len(held), 10).deliveries
print(*(d.payload.decode() for d in held), flush=True)
for line in sys.stdin:
    exec(line)
"""


class Holder:
    """Another process that holds messages."""

    def __init__(self, file: str, n: int = 0, *, lease_s: float = 30.0, wake_up: str = "bell") -> None:
        arguments = [sys.executable, "-c", HOLDER, file, str(n), str(lease_s), wake_up]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def run(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def holder(file: str) -> Iterator[Callable[..., Holder]]:
    made = []

    def make(n: int = 0, **arguments: Any) -> Holder:
        made.append(Holder(file, n, **arguments))
        return made[-1]

    yield make
    for one in made:
        with one.process:
            one.process.kill()


# -------------------------------------------------------------------------------------------------------- death


def test_a_killed_consumers_messages_come_back_at_once(
    transport: SqliteTransport, holder: Callable[..., Holder]
) -> None:
    """Its bell refuses connections, so nobody has to wait for the end of its lease of 30 seconds."""
    transport.send([out(str(i)) for i in range(5)])
    dead = holder(5)
    assert dead.said() == "0 1 2 3 4"
    consumer = consume(transport)
    assert not consumer.fetch(1, 0.1).deliveries
    dead.kill()
    deliveries = take(consumer, 5, seconds=10)
    assert texts(deliveries) == ["0", "1", "2", "3", "4"]
    assert {d.deliveries for d in deliveries} == {2}


def test_maintenance_finds_it_too_and_sweeps_its_bell(
    transport: SqliteTransport, holder: Callable[..., Holder], file: str
) -> None:
    transport.send([out("1")])
    dead = holder(1)
    dead.said()
    dead.kill()
    assert len(os.listdir(file + "-bells")) == 2
    assert transport.maintain(1.0) <= 5.0
    assert os.listdir(file + "-bells") == ["board"]
    assert transport.stats(["q"])["q"].ready == 1


def test_without_a_bell_the_lease_decides(transport: SqliteTransport, holder: Callable[..., Holder]) -> None:
    transport.send([out("1")])
    dead = holder(1, wake_up="poll", lease_s=0.6)
    dead.said()
    dead.kill()
    assert texts(take(consume(transport), 1, seconds=5)) == ["1"]


def test_a_hanging_process_loses_its_messages_with_the_lease_and_cannot_settle_them(
    transport: SqliteTransport, holder: Callable[..., Holder]
) -> None:
    transport.send([out("1"), out("2")])
    stuck = holder(2, lease_s=0.5)
    assert stuck.said() == "1 2"
    stuck.process.send_signal(signal.SIGSTOP)
    consumer = consume(transport)
    deliveries = take(consumer, 2, seconds=5)
    stuck.process.send_signal(signal.SIGCONT)
    stuck.run("from taskq.spi import Settlement")
    stuck.run("print(len(consumer.settle([Settlement(d.receipt) for d in held])), flush=True)")
    assert stuck.said() == "2", "both are reported as lost"
    stuck.run("print(len(consumer.extend()), len(consumer.fetch(1, 0).deliveries), flush=True)")
    assert stuck.said() == "0 0"
    assert not consumer.settle([Settlement(d.receipt) for d in deliveries])
    transport.send([out("3")])
    consumer.close()
    stuck.run("print(*(d.payload.decode() for d in consumer.fetch(1, 5).deliveries), flush=True)")
    assert stuck.said() == "3", "it goes on under a new number"


def test_nothing_is_left_after_a_clean_end(connect: Connect, file: str) -> None:
    transport = connect()
    consume(transport)
    consume(transport, "other")
    transport.close()
    folder = Path(file).parent
    assert sorted(p.name for p in folder.iterdir()) == ["queue.db", "queue.db-bells"]
    assert os.listdir(file + "-bells") == ["board"]
    assert connect().database.read("SELECT * FROM taskq_consumer") == []


def test_a_lease_counts_the_machines_own_time() -> None:
    """A step of the wall clock ends no lease; one of another boot, or of a strange clock, goes by the wall clock."""
    clock = LeaseClock(SYSTEM_CLOCK)
    until, wall = clock.end(10.0)
    assert 9 < clock.left("another boot", until, wall) <= 10
    assert clock.left("another boot", until, wall - 20) < 0
    assert clock.left(None, None, None) < 0
    if clock.boot is None:
        pytest.skip("this system does not tell one boot from another")
    assert 9 < clock.left(clock.boot, until, wall - 20) <= 10

    class Strange:
        now = staticmethod(lambda: 5.0)
        monotonic = staticmethod(lambda: 0.0)

    assert LeaseClock(Strange()).boot is None
    assert LeaseClock(Strange()).left(None, *LeaseClock(Strange()).end(3.0)) == 3.0


# -------------------------------------------------------------------------------------------------------- waking


def woken_after(consumer: Any, send: Callable[[], object]) -> float:
    """Return how long after the send a waiting fetch returned, in seconds."""
    ended: list[float] = []
    thread = threading.Thread(target=lambda: (take(consumer, 1, seconds=30), ended.append(time.monotonic())))
    thread.start()
    time.sleep(0.15)
    started = time.monotonic()
    send()
    thread.join()
    return ended[0] - started


def test_a_waiting_consumer_is_rung(connect: Connect) -> None:
    """With a poll interval of half a minute only a bell can have woken it."""
    consumer = consume(connect(poll_interval=30.0, lease_s=30.0))
    other = connect()
    assert min(woken_after(consumer, lambda: other.send([out("a")])) for _ in range(3)) < 1.0


def test_what_another_process_sends_or_releases_rings(connect: Connect, holder: Callable[..., Holder]) -> None:
    transport = connect(poll_interval=30.0, lease_s=30.0)
    transport.send([out("1")])
    other = holder(1)
    other.said()
    consumer = consume(transport)
    other.run("from taskq.spi import Outbound, RELEASE, Settlement")
    assert woken_after(consumer, lambda: other.run("transport.send([Outbound('x', 'q', b'x')])")) < 10
    assert woken_after(consumer, lambda: other.run("consumer.settle([Settlement(held[0].receipt, RELEASE)])")) < 10


def test_a_delayed_message_is_found_when_it_is_due(connect: Connect) -> None:
    consumer = consume(connect(poll_interval=30.0, lease_s=30.0))
    other = connect()
    assert 0.2 < woken_after(consumer, lambda: other.send([out("a", delay=0.3)])) < 5.0


def test_by_polling(connect: Connect, file: str) -> None:
    consumer = consume(connect(wake_up="poll", poll_interval=0.02))
    other = connect(wake_up="poll")
    assert woken_after(consumer, lambda: other.send([out("a")])) < 5.0
    assert not os.path.exists(file + "-bells")


def test_only_as_many_are_woken_as_there_are_messages(connect: Connect) -> None:
    transport = connect()
    consumers = [consume(transport) for _ in range(4)] + [consume(transport, "other")]
    for consumer in consumers:
        consumer._set_waiting(True)
    rung = lambda: [bool(c._bell and c._bell.drain()) for c in consumers]  # noqa: E731
    connect().send([out("a")])
    first = rung()
    assert sum(first) == 1
    assert not first[4]
    connect().send([out("b"), out("c")])
    second = rung()
    assert sum(second) == 2
    assert not any(a and b for a, b in zip(first, second, strict=True)), "who was rung is off the board"
    connect().send([out(str(i)) for i in range(100)])
    assert sum(rung()) == 1
    connect().send([out("z")])
    assert sum(rung()) == 0, "nobody waits: no system call"


def test_who_takes_all_it_may_passes_the_rest_on(connect: Connect) -> None:
    """Else the others would sleep although there is more than the one that was rung can take."""
    transport = connect(poll_interval=30.0, lease_s=30.0)
    other = connect(poll_interval=30.0, lease_s=30.0)
    got: list[str] = []
    slow = consume(transport)
    slow.credit(1, 1 << 40)
    waiting = threading.Thread(target=lambda: got.extend(texts(take(consume(other), 1))))
    waiting.start()
    time.sleep(0.15)
    transport.ringer.ring = lambda counts: None  # type: ignore[method-assign]  the ring that gets lost
    transport.send([out("1"), out("2")])
    del transport.ringer.ring
    assert texts(take(slow, 1)) == ["1"]
    waiting.join(10)
    assert got == ["2"]


def test_a_bell_that_somebody_removed_is_made_again(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq_transport_sqlite.consumer._LOOK_AFTER_S", 0.05)
    transport = connect(poll_interval=0.05)
    consumer = consume(transport)
    bell = consumer._bell
    assert bell is not None
    os.unlink(bell.path)
    consumer.fetch(1, 0.2)
    assert consumer._bell is not None
    assert consumer._bell.in_place()
    consumer._set_waiting(True)
    connect().send([out("a")])
    assert consumer._bell.drain()


def test_a_signal_handler_may_wake(connect: Connect) -> None:
    consumer = consume(connect(poll_interval=30.0, lease_s=30.0))
    before = signal.signal(signal.SIGALRM, lambda *_: consumer.wake())
    try:
        for wait in (30.0, 0.0):
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            started = time.monotonic()
            assert not consumer.fetch(1, wait).deliveries
            assert time.monotonic() - started < 10
            time.sleep(0.15)
        started = time.monotonic()
        consumer.fetch(1, 30.0)
        assert time.monotonic() - started < 10, "the one that came between two fetches is not lost"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_credit_that_comes_free_ends_the_wait(connect: Connect) -> None:
    transport = connect(poll_interval=30.0, lease_s=30.0)
    transport.send([out("1"), out("2")])
    consumer = consume(transport)
    consumer.credit(1, 1 << 40)
    (held,) = take(consumer, 1)
    assert woken_after(consumer, lambda: consumer.settle([Settlement(held.receipt)])) < 10


def test_who_may_take_nothing_is_not_rung(connect: Connect) -> None:
    transport = connect()
    transport.send([out("1")])
    full, free = consume(transport), consume(transport)
    full.credit(1, 1 << 40)
    take(full, 1)
    for consumer in (full, free):
        consumer._set_waiting(True)
        consumer.fetch(1, 0.01)
    for _ in range(4):
        connect().send([out("2")])
        assert full._bell is not None
        assert not full._bell.drain()
        free._set_waiting(True)
    assert free._bell is not None
    assert free._bell.drain()


def test_credit_in_bytes(transport: SqliteTransport) -> None:
    """A message larger than all credit comes alone; nothing is read that may not be taken."""
    transport.send([out("a" * 60), out("b" * 60), out("c" * 60), out("d" * 1000), out("e")])
    consumer = consume(transport)
    consumer.credit(100, 150)
    first = list(consumer.fetch(10, 0).deliveries)
    assert [d.payload[:1] for d in first] == [b"a", b"b"]
    assert not consumer.fetch(10, 0).deliveries
    consumer.settle([Settlement(first.pop().receipt)])
    (third,) = consumer.fetch(10, 0).deliveries
    assert third.payload[:1] == b"c"
    assert not consumer.fetch(10, 0).deliveries
    consumer.settle([Settlement(d.receipt) for d in (*first, third)])
    (large,) = consumer.fetch(10, 0).deliveries
    assert len(large.payload) == 1000
    assert not consumer.fetch(10, 0).deliveries
    consumer.credit(100, 2000)
    assert texts(consumer.fetch(10, 0).deliveries) == ["e"]


# ------------------------------------------------------------------------------------------------------- threads


def test_threads_that_send_at_once_share_a_transaction() -> None:
    line = Line()
    written: list[list[str]] = []
    begun, go = threading.Event(), threading.Event()

    def write(batch: Any) -> None:
        begun.set()
        go.wait(10)
        written.append([o.payload.decode() for o in batch])

    threads = [threading.Thread(target=line.pass_through, args=([out(str(i))], write)) for i in range(6)]
    threads[0].start()
    begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(line._waiting) < 5:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert written[0] == ["0"]
    assert sorted(written[1]) == ["1", "2", "3", "4", "5"]
    assert len(written) == 2


def test_one_that_fails_does_not_fail_the_others() -> None:
    line = Line()
    written: list[str] = []
    errors: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def write(batch: Any) -> None:
        begun.set()
        go.wait(10)
        payloads = [o.payload.decode() for o in batch]
        if "bad" in payloads:
            raise ValueError("bad")
        written.extend(payloads)

    def send(payload: str) -> None:
        try:
            line.pass_through([out(payload)], write)
        except ValueError:
            errors.append(payload)

    threads = [threading.Thread(target=send, args=(p,)) for p in ("0", "1", "bad", "3")]
    threads[0].start()
    begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(line._waiting) < 3:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join()
    assert sorted(written) == ["0", "1", "3"]
    assert errors == ["bad"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_writer_that_is_interrupted_leaves_nobody_waiting() -> None:
    line = Line()
    written: list[str] = []
    begun, go = threading.Event(), threading.Event()

    def write(batch: Any) -> None:
        begun.set()
        go.wait(10)
        if len(batch) > 1:
            raise KeyboardInterrupt
        written.extend(o.payload.decode() for o in batch)

    threads = [threading.Thread(target=line.pass_through, args=([out(str(i))], write)) for i in range(4)]
    threads[0].start()
    begun.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(line._waiting) < 3:
        time.sleep(0.001)
    go.set()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)
    assert "0" in written


def test_many_threads_and_processes_lose_and_repeat_nothing(connect: Connect, holder: Callable[..., Holder]) -> None:
    transport = connect()
    program = "import threading; from taskq.spi import Outbound"
    senders = [holder() for _ in range(2)]
    for n, sender in enumerate(senders):
        sender.said()
        sender.run(program)
        sender.run(f"one = lambda t, i: transport.send([Outbound('', 'work', f'{n}-{{t}}-{{i}}'.encode())])")
        sender.run("ts = [threading.Thread(target=lambda t=t: [one(t, i) for i in range(50)]) for t in range(4)]")
    for sender in senders:
        sender.run("[t.start() for t in ts]")
    consumers = [consume(transport, "work"), consume(connect(), "work")]
    got: list[str] = []

    def drain(consumer: Any) -> None:
        while len(got) < 400:
            deliveries = consumer.fetch(7, 0.05).deliveries
            for i, d in enumerate(deliveries):
                if i % 5 == 4:
                    consumer.settle([Settlement(d.receipt, RELEASE)])
                else:
                    assert not consumer.settle([Settlement(d.receipt)])
                    got.append(d.payload.decode())

    threads = [threading.Thread(target=drain, args=(c,)) for c in consumers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(40)
    assert sorted(got) == sorted(f"{n}-{t}-{i}" for n in range(2) for t in range(4) for i in range(50))


# ---------------------------------------------------------------------------------------------------------- fork


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_neither_closes_nor_gives_back_what_its_parent_holds(
    transport: SqliteTransport, connect: Connect
) -> None:
    transport.send([out("1"), out("2")])
    consumer = consume(transport)
    held = take(consumer, 1)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            consumer.close()
            transport.close()
            own = connect()
            mine = consume(own)
            if texts(take(mine, 1)) == ["2"] and not mine.fetch(1, 0).deliveries:
                mine.settle([])
                code = 0
            own.close()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert not consumer.settle([Settlement(d.receipt) for d in held])
    assert texts(take(consumer, 1)) == ["2"], "the child handed it back at its end"
    assert consumer._bell is not None
    assert consumer._bell.in_place()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_parent_is_known_to_be_dead_though_its_child_lives(
    transport: SqliteTransport, holder: Callable[..., Holder]
) -> None:
    """A child must not keep its parent's bell alive, or the parent's messages would wait for the end of the lease."""
    transport.send([out("1")])
    parent = holder(1)
    assert parent.said() == "1"
    parent.run("import time; child = os.fork(); child or time.sleep(20)")
    parent.run("print(child, flush=True)")
    child = int(parent.said())
    try:
        parent.kill()
        assert texts(take(consume(transport), 1, seconds=10)) == ["1"]
    finally:
        os.kill(child, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------- several queues


def test_fair_shares_take_from_every_queue(transport: SqliteTransport) -> None:
    queues = ["a", "b", "c"]
    transport.send([out(f"{queue}{i}", queue) for queue in queues for i in range(100)])
    consumer = consume(transport, *queues, "empty")
    batch = texts(take(consumer, 30))
    assert {queue: sum(t.startswith(queue) for t in batch) for queue in queues} == dict.fromkeys(queues, 10)
    assert [t[0] for t in batch[:6]] == ["a", "b", "c", "a", "b", "c"]
    one_by_one = [texts(take(consumer, 1))[0][0] for _ in range(30)]
    assert {queue: one_by_one.count(queue) for queue in queues} == dict.fromkeys(queues, 10)


def test_weighted_shares(transport: SqliteTransport) -> None:
    transport.send([out(f"{queue}{i}", queue) for queue in "ab" for i in range(200)])
    consumer = transport.consumer()
    consumer.subscribe([Subscription("a", 3), Subscription("b", 1)], order="weighted")
    one_by_one = [texts(take(consumer, 1))[0][0] for _ in range(40)]
    assert (one_by_one.count("a"), one_by_one.count("b")) == (30, 10)
    batch = texts(take(consumer, 40))
    assert sum(t.startswith("a") for t in batch) == 30


def test_strict_order_empties_the_first_queue_first(transport: SqliteTransport) -> None:
    transport.send([out(f"{queue}{i}", queue) for queue in "ba" for i in range(5)])
    consumer = consume(transport, "a", "b", order="strict")
    assert texts(take(consumer, 7)) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]

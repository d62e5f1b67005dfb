"""Sending: many at once, what happens when the broker is away, and what is refused at the call."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from taskq import SendManyError, TaskQ, envelope
from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    EncodeError,
    NotSupported,
    PayloadTooLarge,
    SendFailed,
    TaskArgumentsError,
    TaskQError,
    TransportError,
)
from taskq.message import Outbound, SendFailure
from taskq.spi import Support
from taskq_transport_memory.transport import MemoryTransport


@pytest.fixture
def add(app: TaskQ) -> Any:
    @app.task(name="add")
    def add(x: int, y: int = 0) -> int:
        return x + y

    return add


def fail_with(app: TaskQ, monkeypatch: pytest.MonkeyPatch, *answers: Any) -> list[Sequence[Outbound]]:
    """Have the broker answer sends in this way, then as usual; returns the batches that were sent."""
    batches: list[Sequence[Outbound]] = []
    left, original = list(answers), app.transport.send

    def send(batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        batches.append(list(batch))
        if left:
            answer = left.pop(0)
            if isinstance(answer, Exception):
                raise answer
            bad = {failure.index for failure in answer}
            original([o for i, o in enumerate(batch) if i not in bad])
            return list(answer)
        return original(batch)

    monkeypatch.setattr(app.transport, "send", send)
    monkeypatch.setattr("taskq.producer._FIRST_PAUSE", 0.001)
    return batches


# --------------------------------------------------------------------------------------------------------- send_many


def test_many_of_mixed_tasks_and_queues_in_order(rig: Any, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app(backend)
    names = ["a", "b", "c"]
    for name in names:
        app.task(name=name, queue=f"q{name}" if name != "a" else None)(lambda i, name=name: [name, i])
    app.connect()
    batches = fail_with(app, monkeypatch)
    calls = [app.tasks[names[i % 3]].s(i) for i in range(30)]
    calls += [app.tasks["a"].s(30).set(queue="qb", priority=9), app.signature("elsewhere", (1,)).set(queue="none")]
    results = app.send_many(calls)
    assert len(batches) == 1  # one call of the transport, which splits by its own limit
    assert [o.id for o in batches[0]] == [r.id for r in results]
    with rig.work(app):
        assert [r.get(timeout=10) for r in results[:31]] == [*[[names[i % 3], i] for i in range(30)], ["a", 30]]
    assert rig.counts(app, "none") == (1, 0, 0)


def test_nothing_to_send(app: TaskQ, add: Any) -> None:
    assert app.send_many([]) == []
    assert asyncio.run(app.asend_many([])) == []


def test_one_bad_call_stops_all(rig: Any, app: TaskQ, add: Any) -> None:
    for bad, error in ((add.s(), TaskArgumentsError), (add.s(object()), EncodeError)):
        with pytest.raises(error):
            app.send_many([add.s(1), bad, add.s(2)])
    app.connect()
    assert rig.counts(app) == (0, 0, 0)


@pytest.mark.parametrize("twin", [False, True], ids=["send_many", "asend_many"])
def test_some_are_not_accepted(rig: Any, app: TaskQ, add: Any, twin: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [
        SendFailure(1, "queue is full", retryable=False),
        SendFailure(3, "no answer", maybe_sent=True, retryable=False),
    ]
    fail_with(app, monkeypatch, failures)
    calls = [add.s(i) for i in range(5)]
    with pytest.raises(
        SendManyError, match=r"3 of 5 messages were accepted, 1 were not, 1 are in doubt; .*queue is full"
    ) as caught:
        asyncio.run(app.asend_many(calls)) if twin else app.send_many(calls)
    error = caught.value
    accepted = [header.id for header in rig.headers(app)]
    assert [r.id for r in error.accepted] == accepted
    assert (len(error.accepted), len(error.failed), len(error.unknown)) == (3, 1, 1)
    assert len({r.id for r in (*error.accepted, *error.failed, *error.unknown)}) == 5


def test_only_what_failed_is_sent_again(rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [SendFailure(1, "busy"), SendFailure(3, "busy")]
    batches = fail_with(app, monkeypatch, first, [SendFailure(0, "busy")])
    results = app.send_many([add.s(i) for i in range(5)])
    ids = [r.id for r in results]
    assert [[o.id for o in batch] for batch in batches] == [ids, [ids[1], ids[3]], [ids[1]]]
    assert sorted(h.id for h in rig.headers(app)) == sorted(ids)  # with the same ids, each once


# ----------------------------------------------------------------------------------------------- a broker in trouble


def test_a_send_is_repeated_until_it_works(rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = fail_with(app, monkeypatch, ConnectionFailed("refused"), [SendFailure(0, "busy")])
    result = add.delay(1)
    assert [b[0].id for b in batches] == [result.id] * 3
    assert rig.counts(app) == (1, 0, 0)


def test_it_is_given_up_after_the_repeats(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app(publish_retries=3)
    add = app.task(name="add")(lambda x: x)
    batches = fail_with(app, monkeypatch, *[ConnectionFailed(f"refused {i}") for i in range(20)])
    with pytest.raises(ConnectionFailed, match="refused 3"):
        add.delay(1)
    assert len(batches) == 4


def test_what_may_have_been_sent_stays_in_doubt_whatever_the_repeats_say(
    rig: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app(publish_retries=2)
    add = app.task(name="add")(lambda x: x)
    fail_with(app, monkeypatch, [SendFailure(0, "no answer", maybe_sent=True)], *[ConnectionFailed("gone")] * 5)
    with pytest.raises(SendFailed, match=r"gone.*may have taken it") as caught:
        add.delay(1)
    assert caught.value.maybe_sent


def test_a_client_waits_for_a_broker_that_is_away_at_first(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app()
    add = app.task(name="add")(lambda x: x)
    away = [ConnectionFailed("refused")] * 3
    opens = MemoryTransport.open

    def open_later(self: MemoryTransport) -> None:
        if away:
            raise away.pop()
        opens(self)

    monkeypatch.setattr(MemoryTransport, "open", open_later)
    assert add.delay(1).id
    assert rig.counts(app) == (1, 0, 0)
    away += [AuthenticationFailed("wrong password")] * 2
    with pytest.raises(AuthenticationFailed):
        rig.twin(app).send_task("add", (1,))
    assert len(away) == 1


def test_a_queue_that_is_new_is_declared_with_patience(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is away for a moment is no reason to fail, whether or not the queue was used before."""
    app = rig.app()
    add = app.task(name="add")(lambda x: x)
    add.delay(1)
    away, declares = [ConnectionFailed("refused")], MemoryTransport.declare

    def declare_later(*args: Any, **options: Any) -> Any:
        if away:
            raise away.pop()
        return declares(*args, **options)

    monkeypatch.setattr(MemoryTransport, "declare", declare_later)
    assert add.apply_async((2,), queue="new").id
    assert rig.counts(app, "new") == (1, 0, 0)


def test_a_worker_waits_for_a_broker_that_is_away_at_first(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("taskq.worker.worker._FIRST_PAUSE", 0.01)
    app = rig.app()
    add = app.task(name="add")(lambda x: x)
    result = add.delay(7)
    other = rig.twin(app)
    other.task(name="add")(lambda x: x)
    away = [ConnectionFailed("refused")] * 5
    opens = MemoryTransport.open

    def open_later(self: MemoryTransport) -> None:
        if away:
            raise away.pop()
        opens(self)

    monkeypatch.setattr(MemoryTransport, "open", open_later)
    with rig.work(other, pool):
        assert result.get(timeout=10) == 7
    assert caplog.text.count("cannot start yet") == 1


def test_it_is_given_up_after_the_timeout(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app(publish_retries=1000)
    add = app.task(name="add")(lambda x: x)
    failures = [[SendFailure(0, "still busy")]] * 1000
    fail_with(app, monkeypatch, *failures)
    began = time.monotonic()
    with pytest.raises(
        SendFailed, match=r"was not accepted for queue 'default': still busy; nothing was sent"
    ) as caught:
        add.apply_async((1,), publish_timeout=0.05)
    assert time.monotonic() - began < 5
    assert not caught.value.maybe_sent
    with pytest.raises(SendFailed):
        asyncio.run(add.aapply_async((1,), publish_timeout=0.05))
    with pytest.raises(SendManyError):
        app.send_many([add.s(1)], publish_timeout=0.05)


def test_an_error_for_good_is_said_at_once(rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused(TransportError):
        retryable = False

    batches = fail_with(app, monkeypatch, Refused("wrong password"), Refused("wrong password"))
    with pytest.raises(Refused, match="wrong password"):
        add.delay(1)
    with pytest.raises(Refused, match="wrong password"):
        asyncio.run(add.adelay(1))
    assert len(batches) == 2


def test_doubt_is_told(rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(app, monkeypatch, [SendFailure(0, "connection broke", maybe_sent=True, retryable=False)])
    with pytest.raises(SendFailed, match="the broker may have taken it all the same") as caught:
        add.delay(1)
    assert caught.value.maybe_sent


def test_one_bad_message_of_many_coroutines_fails_its_own_caller_only(
    rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share one sending thread and one batch; they must not share each other's mistakes."""
    app.connect()
    original, gate = app.transport.send, threading.Event()

    class Refused(TransportError):
        retryable = False

    def send(batch: Sequence[Outbound]) -> Any:
        gate.wait(0.2)  # let them gather
        gate.set()
        if any(o.queue == "forbidden" for o in batch):
            raise Refused("no right to this queue")
        return original(batch)

    monkeypatch.setattr(app.transport, "send", send)

    async def client() -> list[Any]:
        calls = [add.aapply_async((i,), queue="forbidden" if i == 7 else "default") for i in range(20)]
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(client())
    assert [i for i, a in enumerate(answers) if isinstance(a, Exception)] == [7]
    assert rig.counts(app) == (19, 0, 0)


# -------------------------------------------------------------------------------------------- refused at the call


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"countdwn": 5}, "unknown option 'countdwn' of apply_async; did you mean 'countdown'"),
    ({"serializer": "json"}, "unknown option 'serializer'"),
    ({"routing_key": "a.b"}, "does not route by a key"),
    ({"routing_key": ""}, "routing_key is a string that is not empty"),
    ({"countdown": -1}, "countdown is a number of seconds"),
    ({"countdown": "5"}, "countdown is a number of seconds"),
    ({"countdown": True}, "countdown is a number of seconds"),
    ({"countdown": float("nan")}, "countdown is a number of seconds"),
    ({"countdown": 5, "eta": datetime(2099, 1, 1, tzinfo=UTC)}, "give countdown or eta, not both"),
    ({"eta": datetime(2030, 1, 1)}, "eta is a naive datetime"),
    ({"eta": 5}, "eta must be an aware datetime"),
    ({"expires": -1}, "expires must be an aware datetime or seconds"),
    ({"expires": datetime(2030, 1, 1)}, "expires is a naive datetime"),
    ({"expires": "1h"}, "expires must be"),
    ({"priority": 10}, "priority is an integer from 0 to 9"),
    ({"priority": -1}, "priority is an integer from 0 to 9"),
    ({"priority": 5.5}, "priority is an integer from 0 to 9"),
    ({"priority": True}, "priority is an integer from 0 to 9"),
    ({"group": "customer-1"}, "group= keeps order on ordered queues only"),
    ({"transaction": "a session"}, "cannot join a transaction|is for the blocking calls"),
    ({"task_id": 17}, "task_id"),
    ({"task_id": ""}, "task_id"),
    ({"queue": 5}, "queue"),
    ({"queue": ""}, "queue"),
    ({"headers": [1, 2]}, "headers"),
    ({"headers": {1: 2}}, "headers"),
    ({"max_retries": -1}, "max_retries"),
    ({"max_retries": "3"}, "max_retries"),
    ({"publish_timeout": "soon"}, "publish_timeout"),
    ({"publish_timeout": -1}, "publish_timeout"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_options_that_cannot_be_honoured(rig: Any, app: TaskQ, add: Any, options: dict[str, Any], message: str) -> None:
    async def twin() -> None:
        await add.aapply_async((1,), **options)

    for send in (lambda: add.apply_async((1,), **options), lambda: asyncio.run(twin())):
        with pytest.raises(NotSupported, match=message) as caught:
            send()
        assert isinstance(caught.value, TaskQError)
    assert rig.counts(app) == (0, 0, 0)


@pytest.mark.parametrize(
    "value", [object(), 1 << 70, "\ud800", {"deep": {1, object()}}], ids=lambda v: type(v).__name__
)
def test_headers_that_cannot_be_written(rig: Any, app: TaskQ, add: Any, value: Any) -> None:
    with pytest.raises(EncodeError, match="header"):
        add.apply_async((1,), headers={"x": value})
    assert rig.counts(app) == (0, 0, 0)


def test_headers_that_are_too_large(app: TaskQ, add: Any) -> None:
    with pytest.raises(EncodeError, match=r"at most 65535 fit.*pass large values as arguments"):
        add.apply_async((1,), headers={"x": "y" * 70_000})


def test_payload_limits(rig: Any, app: TaskQ, add: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    small = msgspec.structs.replace(app.transport.capabilities, max_payload_bytes=500)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: small))
    text = "x" * 600
    for send in (
        lambda: add.delay(text),
        lambda: add.apply_async((text,), priority=1),
        lambda: app.send_many([add.s(text)]),
    ):
        with pytest.raises(
            PayloadTooLarge, match=r"message of task add takes \d{3} bytes.* carries at most 500; nothing was sent"
        ):
            send()
    assert add.delay("x" * 100).id
    own = rig.app(max_payload_bytes=100)
    own.task(name="add")(lambda x: x)
    with pytest.raises(PayloadTooLarge, match="max_payload_bytes is 100"):
        own.tasks["add"].delay("x" * 200)


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        ({"delay": Support.NO}, {"countdown": 5}, "cannot delay messages"),
        ({"delay": Support.NO}, {"eta": datetime(2099, 1, 1, tzinfo=UTC)}, "cannot delay messages"),
        ({"priority": Support.NO}, {"priority": 9}, "has no priorities"),
    ],
)  # fmt: skip
def test_what_this_broker_cannot_do(
    rig: Any, app: TaskQ, add: Any, missing: Any, options: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    less = msgspec.structs.replace(app.transport.capabilities, **missing)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: less))
    with pytest.raises(NotSupported, match=message):
        add.apply_async((1,), **options)
    assert add.apply_async((1,), countdown=0, priority=5).id


def test_compression(rig: Any) -> None:
    app = rig.app(compressor="zlib", compress_above=1000)
    echo = app.task(name="echo")(lambda text: text)
    small, large = echo.delay("x" * 10), echo.delay("x" * 50_000)
    headers = {h.id: h for h in rig.headers(app)}
    assert headers[small.id].get(envelope.TRANSFORMS) is None
    assert headers[large.id].get(envelope.TRANSFORMS) == [["zlib"]]
    assert max(len(p) for p in rig.payloads(app)) < 1000
    rig.drain(app)
    assert [r.get(timeout=1) for r in (small, large)] == ["x" * 10, "x" * 50_000]


def test_a_compression_bomb_is_not_unpacked(rig: Any) -> None:
    from taskq.errors import DecodeError

    sender = rig.app(compressor="zlib", compress_above=10)
    sender.task(name="echo")(lambda text: text)
    worker = rig.twin(sender, max_decompressed_bytes=10_000)
    worker.task(name="echo")(lambda text: text)
    result = sender.tasks["echo"].delay("x" * 100_000)
    rig.drain(worker)
    with pytest.raises(DecodeError, match="10000"):
        result.get(timeout=1)


# ------------------------------------------------------------------------------------- in the caller's transaction


def test_a_send_that_is_part_of_the_callers_transaction(rig: Any) -> None:
    """It is sent if and when the caller commits; with its own table in the same file, both or neither happen."""
    app = rig.app("sqlite")
    work = app.task(name="work")(lambda i: i)
    app.connect()
    with contextlib.closing(sqlite3.connect(rig.folder / f"{app.name}.db", isolation_level=None)) as own:
        own.execute("CREATE TABLE orders (id INTEGER)")
        for outcome in ("ROLLBACK", "COMMIT"):
            own.execute("BEGIN IMMEDIATE")
            own.execute("INSERT INTO orders VALUES (1)")
            results = [work.apply_async((1,), transaction=own), *app.send_many([work.s(2), work.s(3)], transaction=own)]
            assert rig.counts(app) == (0, 0, 0)
            own.execute(outcome)
        assert own.execute("SELECT count(*) FROM orders").fetchone() == (1,)
    assert rig.counts(app) == (3, 0, 0)
    with rig.work(app):
        assert [r.get(timeout=10) for r in results] == [1, 2, 3]


def test_a_connection_of_another_kind_is_refused(rig: Any) -> None:
    app = rig.app("sqlite")
    work = app.task(name="work")(lambda i: i)
    with pytest.raises(NotSupported):
        work.apply_async((1,), transaction="a session")
    assert rig.counts(app) == (0, 0, 0)


# ------------------------------------------------------------------------------------ queues that differ from the rest


@pytest.fixture
def undelayed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have ordered queues of the memory transport hold nothing back, as FIFO queues of SQS."""
    declare = MemoryTransport.declare

    def declares(self: MemoryTransport, queues: Any, **options: Any) -> Any:
        facts = dict(declare(self, queues, **options))
        for spec in queues:
            if spec.ordered:
                own = msgspec.structs.replace(self.capabilities, delay=Support.NO)
                facts[spec.name] = msgspec.structs.replace(facts[spec.name], capabilities=own)
        return facts

    monkeypatch.setattr(MemoryTransport, "declare", declares)


def test_a_delay_is_refused_on_the_queue_that_cannot_hold_it(rig: Any, undelayed: None) -> None:
    app = rig.app(queues={"fifo": {"ordered": True}})
    add = app.task(name="add")(lambda x: x)
    with pytest.raises(NotSupported, match="on an ordered queue"):
        add.apply_async((1,), queue="fifo", countdown=5)
    assert add.apply_async((1,), countdown=5).id


def test_a_retry_runs_at_once_where_the_queue_cannot_hold_it(rig: Any, pool: str, undelayed: None) -> None:
    app = rig.app(queues={"fifo": {"ordered": True}})
    runs: list[int] = []

    @app.task(name="flaky", queue="fifo", max_retries=2, retry_backoff=600, retry_jitter=False)
    def flaky() -> int:
        runs.append(1)
        if len(runs) < 3:
            raise ValueError("again")
        return len(runs)

    result = flaky.apply_async(group="a")
    with rig.work(app, pool):
        assert result.get(timeout=10) == 3

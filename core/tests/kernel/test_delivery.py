"""What travels with a message and is kept by the broker: delivery mode, priorities, delays."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from msgspec import structs

from taskq import TaskQ, current_request, envelope
from taskq.envelope import NOT_BEFORE
from taskq.errors import ConnectionLost, NotSupported, TaskDead


@pytest.fixture
def runs() -> list[Any]:
    return []


# ------------------------------------------------------------------------------------------------------ at most once


def test_at_most_once_is_acknowledged_before_the_run(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(backend)

    @app.task(delivery="at_most_once")
    def once() -> int:
        runs.append(rig.counts(app))
        return 1

    @app.task
    def usual() -> int:
        runs.append(rig.counts(app))
        return 2

    with rig.work(app, pool, concurrency=1):
        assert once.delay().get(timeout=10) == 1
        assert usual.delay().get(timeout=10) == 2
        rig.wait_empty(app)
    assert runs == [(0, 0, 0), (0, 1, 0)]


def test_at_most_once_is_not_taken_up_again(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    """Its worker stops in the middle: the message is gone, whatever became of the task."""
    app = rig.app(backend)
    go_on = threading.Event()

    @app.task(delivery="at_most_once")
    def once() -> None:
        runs.append(1)
        go_on.wait(10)

    with rig.work(app, "threads", exit_code=3, grace=0.05) as worker:
        result = once.delay()
        rig.eventually(lambda: runs)
        worker.stop()
        rig.eventually(lambda: not worker._thread.is_alive())
    go_on.set()
    assert rig.counts(app) == (0, 0, 0)
    with pytest.raises(TaskDead, match="its worker stopped before it had ended, and it runs at most once"):
        result.get(timeout=5)
    assert rig.dead(app) == []


def test_at_most_once_that_gives_way_is_not_taken_up_again(rig: Any, backend: str, runs: list[Any]) -> None:
    """As above, by a task that the interruption reaches."""
    app = rig.app(backend)

    @app.task(delivery="at_most_once")
    async def once() -> None:
        runs.append(1)
        await asyncio.sleep(20)

    with rig.work(app, "asyncio", exit_code=3, grace=0.05) as worker:
        result = once.delay()
        rig.eventually(lambda: runs)
        worker.stop()
        rig.eventually(lambda: not worker._thread.is_alive())
    assert rig.counts(app) == (0, 0, 0)
    with pytest.raises(TaskDead, match="runs at most once"):
        result.get(timeout=5)


def test_a_group_without_order_is_for_brokers_that_share_fairly(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app("memory")
    app.task(name="work")(lambda: None)
    with pytest.raises(NotSupported, match="group= keeps order on ordered queues only"):
        app.tasks["work"].apply_async(group="a")
    fair = structs.replace(app.transport.capabilities, fair_groups=True)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: fair))
    app.tasks["work"].apply_async(group="a")
    (header,) = rig.headers(app)
    assert header.get(envelope.GROUP) == "a"


def test_at_most_once_for_the_whole_application(rig: Any, runs: list[Any]) -> None:
    app = rig.app(delivery="at_most_once")
    app.task(name="a")(lambda: runs.append(rig.counts(app)))
    app.task(name="b", delivery="at_least_once")(lambda: runs.append(rig.counts(app)))
    for name in "ab":
        app.tasks[name].delay()
        rig.drain(app)
    assert runs == [(0, 0, 0), (0, 1, 0)]


def test_a_message_whose_lease_was_lost_is_not_started_at_most_once(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement says whether the message is still ours; if not, another worker has it."""
    from taskq.message import Lost

    app = rig.app()
    app.task(name="once", delivery="at_most_once")(lambda: runs.append(1))
    app.task(name="usual")(lambda: 5)
    with rig.work(app, pool) as worker:
        settle = worker.lanes[0].consumer.settle

        def lost_once(settlements: Any) -> Any:
            monkeypatch.setattr(worker.lanes[0].consumer, "settle", settle)
            return [*settle(settlements), *[Lost(s.receipt) for s in settlements]]

        monkeypatch.setattr(worker.lanes[0].consumer, "settle", lost_once)
        app.tasks["once"].delay()
        assert app.tasks["usual"].delay().get(timeout=10) == 5
    assert runs == []


def test_an_acknowledgement_that_cannot_be_made_delays_the_start(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app()
    app.task(name="once", delivery="at_most_once")(lambda: runs.append(1))
    with rig.work(app, pool) as worker:
        settle, failed = worker.lanes[0].consumer.settle, threading.Event()

        def fails(settlements: Any) -> Any:
            if not failed.is_set():
                failed.set()
                raise ConnectionLost("reset")
            return settle(settlements)

        monkeypatch.setattr(worker.lanes[0].consumer, "settle", fails)
        app.tasks["once"].delay()
        assert failed.wait(10)
        rig.eventually(lambda: runs)
        rig.wait_empty(app)
    assert runs == [1]


def test_retries_of_at_most_once(rig: Any, backend: str, runs: list[Any]) -> None:
    app = rig.app(backend)

    @app.task(delivery="at_most_once", max_retries=2, retry_backoff=0, bind=True)
    def once(self: Any) -> int:
        runs.append(self.request.attempt)
        if self.request.attempt < 2:
            raise ValueError
        return 5

    with rig.work(app):
        assert once.delay().get(timeout=10) == 5
    assert runs == [0, 1, 2]


# -------------------------------------------------------------------------------------------------------- priorities


def test_higher_priorities_first(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(backend)
    work = app.task(name="work")(runs.append)
    for priority in (5, 0, 9, 3, 5, 9):
        work.apply_async((priority,), priority=priority)
    work.delay(5)
    with rig.work(app, pool, concurrency=1):
        rig.wait_empty(app)
    assert runs == [9, 9, 5, 5, 5, 3, 0]


def test_the_priority_is_in_the_request_and_stays_through_retries(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    @app.task(max_retries=1, retry_backoff=0)
    def work() -> None:
        runs.append(current_request().priority)
        raise ValueError

    work.apply_async(priority=8)
    rig.drain(app)
    assert runs == [8, 8]


# ------------------------------------------------------------------------------------------------------------ delays


def test_countdown_and_eta_wait_in_the_broker(rig: Any, backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(backend)
    work = app.task(name="work")(runs.append)
    work.apply_async(("later",), countdown=1000)
    work.apply_async(("on a date",), eta=datetime.now(UTC) + timedelta(seconds=2000))
    work.apply_async(("soon",), countdown=0.15)
    work.apply_async(("in the past",), eta=datetime.now(UTC) - timedelta(days=1))
    with rig.work(app, pool):
        rig.eventually(lambda: len(runs) == 2)
        rig.eventually(lambda: rig.counts(app) == (0, 0, 2))
    assert sorted(runs) == ["in the past", "soon"]
    delays = sorted(peeked.delay for peeked in app.transport.peek("default"))
    assert delays == [pytest.approx(1000, abs=30), pytest.approx(2000, abs=30)]


def test_the_request_knows_its_eta(rig: Any, app: TaskQ, runs: list[Any]) -> None:
    app.task(name="work")(lambda: runs.append(current_request().eta))
    app.tasks["work"].apply_async(countdown=0.1)
    app.tasks["work"].delay()
    rig.drain(app)
    assert runs == [None, pytest.approx(time.time(), abs=30)]


def test_a_delay_beyond_what_the_broker_can_hold_travels_in_legs(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app()
    short = msgspec.structs.replace(app.transport.capabilities, max_delay_s=0.2)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: short))
    asked: list[float] = []
    send = app.transport.send
    monkeypatch.setattr(app.transport, "send", lambda batch: (asked.extend(o.delay for o in batch), send(batch))[1])

    @app.task(bind=True)
    def work(self: Any) -> float:
        runs.append(self.request.attempt)
        if self.request.attempt == 0:
            raise self.retry(countdown=1.0)
        return time.time()

    began = time.time()
    result = work.apply_async(countdown=1.0)
    with rig.work(app, pool):
        assert result.get(timeout=15) >= began + 2 * 0.4  # a message within half a second of its time counts as due
    assert max(asked) <= 0.2
    assert runs == [0, 1]


def test_a_leg_leaves_the_message_as_it_was(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    short = msgspec.structs.replace(app.transport.capabilities, max_delay_s=900.0)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: short))
    app.task(name="work")(lambda: None)
    header = envelope.Header(
        "far", "work", "json", 0, time.time(), "", {NOT_BEFORE: time.time() + 500, "p": 7, "zz": 1}
    )
    payload = envelope.encode(header, b"[[],{}]")
    rig.raw(app, payload)  # as the first leg ends
    with rig.work(app):
        rig.eventually(lambda: rig.counts(app) == (0, 0, 1))
    (peeked,) = app.transport.peek("default")  # type: ignore[attr-defined]
    assert (peeked.payload, peeked.priority) == (payload, 7)
    assert 400 < peeked.delay <= 500


def test_at_most_once_that_was_acknowledged_and_did_not_start_is_not_lost(
    rig: Any, backend: str, runs: list[Any]
) -> None:
    """A pool may still hand a job back that it took for a free slot."""
    app = rig.app(backend)
    app.task(name="once", delivery="at_most_once")(lambda: runs.append(1))
    with rig.work(app, "threads") as worker:
        taken: list[int] = []
        worker.pool.submit = lambda jobs: (taken.extend(job.key for job in jobs), len(jobs))[1]
        worker.pool.take_back = lambda limit: [taken.pop() for _ in list(taken)]
        app.tasks["once"].delay()
        rig.eventually(lambda: taken)
        assert rig.counts(app) == (0, 0, 0)
    assert rig.counts(app) == (1, 0, 0)
    rig.drain(app)
    assert runs == [1]

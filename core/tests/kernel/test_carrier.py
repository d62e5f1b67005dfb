"""Runs that last longer than the broker lets a message be held."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from msgspec import structs

from taskq import TaskQ
from taskq.errors import ConnectionLost, NotSupported, SoftTimeLimitExceeded, StoreUnavailable
from taskq_transport_memory.transport import MemoryTransport

HOLD = 0.6


@pytest.fixture(autouse=True)
def short_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the memory transport say that a message can be held for less than a second."""
    shorter = structs.replace(MemoryTransport.capabilities.fget(None), max_hold_s=HOLD)  # type: ignore[attr-defined]
    monkeypatch.setattr(MemoryTransport, "capabilities", property(lambda self: shorter))


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def waiting(app: TaskQ, gate: threading.Event, runs: list[int], **options: Any) -> Any:
    @app.task(name="long", **options)
    def long() -> int:
        runs.append(1)
        gate.wait(20)
        return len(runs)

    return long


def carried(app: TaskQ, rig: Any, runs: list[int]) -> bool:
    """Whether the task runs, the queue holds the guard, and nothing is in flight any more."""
    ready, in_flight, delayed = rig.counts(app)
    return bool(runs) and in_flight == 0 and ready + delayed == 1


def test_a_long_run_gives_its_message_up_for_a_guard_and_runs_once(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory"), []
    long = waiting(app, gate, runs)
    with rig.work(app, pool):
        result = long.delay()
        rig.eventually(lambda: carried(app, rig, runs))
        time.sleep(1.5)  # several rounds of the guard
        assert runs == [1]
        gate.set()
        assert result.get(timeout=10) == 1
        rig.wait_empty(app)
    assert runs == [1]
    assert rig.dead(app) == []


def test_the_acknowledgement_of_a_carried_message_is_tried_until_it_is_through(
    rig: Any, pool: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the message would come back beside its guard."""
    app, runs, failed = rig.app("memory"), [], []
    long = waiting(app, gate, runs)
    with rig.work(app, pool) as worker:
        consumer = worker.lanes[0].consumer
        settle = consumer.settle

        def fails_twice(settlements: Any) -> Any:
            if len(failed) < 2:
                failed.append(1)
                raise ConnectionLost("the test cut the line")
            return settle(settlements)

        monkeypatch.setattr(consumer, "settle", fails_twice)
        result = long.delay()
        rig.eventually(lambda: len(failed) == 2 and carried(app, rig, runs))
        gate.set()
        assert result.get(timeout=10) == 1
        rig.wait_empty(app)
    assert runs == [1]


def test_a_task_without_result_is_not_run_again_by_its_guard(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory"), []
    long = waiting(app, gate, runs, ignore_result=True)
    with rig.work(app, pool):
        long.delay()
        rig.eventually(lambda: carried(app, rig, runs))
        gate.set()
        rig.wait_empty(app)
    assert runs == [1]


def test_the_guard_runs_what_died(rig: Any, gate: threading.Event) -> None:
    app, runs = rig.app("memory", lease=1.0), []
    long = waiting(app, gate, runs)
    first = app.worker(pool="threads", concurrency=1, grace=0.1).start()
    result = long.delay()
    rig.eventually(lambda: carried(app, rig, runs))
    first.lanes[0].carrier.renew = lambda: None  # as if killed: nothing is kept, nothing is handed back
    first.lanes[0].carrier.forget = lambda job: True  # type: ignore[method-assign]
    first.stop(interrupt=True)
    first.join(10)
    assert runs == [1]
    gate.set()
    with rig.work(app, "solo"):
        assert result.get(timeout=20) == 2
        rig.wait_empty(app)


def test_a_retry_of_a_long_run_is_a_message_of_its_own(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory"), []

    @app.task(name="flaky", max_retries=1, retry_backoff=0)
    def flaky() -> int:
        runs.append(1)
        if len(runs) == 1:
            gate.wait(20)
            raise ValueError("once more")
        return len(runs)

    with rig.work(app, pool):
        result = flaky.delay()
        rig.eventually(lambda: carried(app, rig, runs))
        gate.set()
        assert result.get(timeout=10) == 2
        rig.wait_empty(app)
    assert len(runs) == 2


def test_a_known_length_beyond_the_hold_is_refused_where_nothing_carries(
    rig: Any, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app("storeless")
    waiting(app, gate, [], time_limit=60.0)
    monkeypatch.setattr("taskq.worker.plan._misfits", lambda *_: [])  # solo keeps no limits: tested elsewhere
    worker = app.worker(pool="solo")
    with pytest.raises(NotSupported, match="may run longer than its message can be held"):
        worker._prepare()


def test_an_unknown_length_is_warned_of_where_nothing_carries(
    rig: Any, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    app = rig.app("storeless")
    waiting(app, gate, [])
    with rig.work(app, "solo"):
        pass
    assert "a task that runs longer is run twice" in caplog.text


def test_short_runs_know_nothing_of_it(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory"), []
    gate.set()
    long = waiting(app, gate, runs)
    with rig.work(app, pool) as worker:
        assert long.delay().get(timeout=10) == 1
        assert worker.lanes[0].carrier._carried == {}


def test_a_run_that_ends_in_the_grace_is_not_run_again_by_its_guard(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory", lease=0.3), []
    long = waiting(app, gate, runs, ignore_result=True)
    with rig.work(app, pool) as worker:
        long.delay()
        rig.eventually(lambda: carried(app, rig, runs))
        worker.stop()
        threading.Timer(0.2, gate.set).start()
        rig.eventually(lambda: not worker._thread.is_alive())
    time.sleep(1.0)  # its place would be free by now
    rig.drain(app)
    assert runs == [1]


def test_a_run_that_ends_while_its_guard_is_sent(
    rig: Any, pool: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended by its message: the guard is superfluous, and nobody keeps its place."""
    app, runs = rig.app("memory"), []
    long = waiting(app, gate, runs, ignore_result=True)
    with rig.work(app, pool) as worker:
        send = app.transport.send

        def slow(batch: Any) -> Any:
            if "guard" in batch[0].id and not gate.is_set():
                gate.set()
                rig.eventually(lambda: worker.lanes[0].settler.ended == 1)
            return send(batch)

        monkeypatch.setattr(app.transport, "send", slow)
        long.delay()
        rig.eventually(lambda: worker.lanes[0].settler.ended == 1)
        rig.wait_empty(app)
        assert worker.lanes[0].carrier._carried == {}
    assert runs == [1]


def test_a_carried_run_that_its_pool_aborts_is_over(rig: Any, pool: str, gate: threading.Event) -> None:
    app, runs = rig.app("memory"), []
    long = waiting(app, gate, runs, max_retries=0)
    with rig.work(app, pool, exit_code=0) as worker:
        result = long.delay()
        rig.eventually(lambda: carried(app, rig, runs))
        sink = worker.pool._sink
        sink.aborted(list(worker.lanes[0].held), SoftTimeLimitExceeded("too late"))
        assert worker.lanes[0].carrier._carried == {}
        gate.set()
        with pytest.raises(SoftTimeLimitExceeded):
            result.get(timeout=10)
        rig.wait_empty(app)
    assert runs == [1]


def test_leases_are_kept_while_the_store_that_carries_hangs(
    rig: Any, pool: str, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, runs = rig.app("memory", lease=1.0), []
    long = waiting(app, gate, runs, ignore_result=True)
    hangs = threading.Event()

    def acquire(*args: Any, **options: Any) -> bool:
        hangs.set()
        time.sleep(3.0)
        raise StoreUnavailable("no answer within 3 s")

    with rig.work(app, pool), monkeypatch.context() as patch:
        patch.setattr(type(app.store), "acquire", acquire)
        long.delay()
        assert hangs.wait(10)
        time.sleep(2.5)  # more than two leases
        assert rig.counts(app) == (0, 1, 0), "the lease ran out"
        gate.set()
        rig.wait_empty(app)
    assert runs == [1]

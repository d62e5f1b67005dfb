"""A worker's health, what it runs, and what it does when it stands still."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from taskq.errors import ConnectionLost, StoreUnavailable, WorkerError
from taskq.message import Fetched
from taskq_transport_memory.consumer import MemoryConsumer


@pytest.fixture
def gate() -> threading.Event:
    return threading.Event()


def stuck_in_a_task(gate: threading.Event) -> None:
    gate.wait(20)


def test_a_worker_at_work_is_healthy_and_tells_what_it_runs(rig: Any, backend: str, pool: str, gate: Any) -> None:
    app = rig.app(backend)
    app.task(name="wait")(lambda: stuck_in_a_task(gate))
    with rig.work(app, pool) as worker:
        idle = worker.health()
        assert (idle.live, idle.ready, idle.reasons) == (True, True, ())
        assert (idle.pools, idle.queues, idle.oldest_task) == ((pool,), ("default",), None)
        result = app.tasks["wait"].delay()
        (task,) = rig.eventually(worker.running)
        assert (task.task, task.id, task.queue, task.attempt) == ("wait", result.id, "default", 0)
        assert 0 <= task.age < 20
        (task,) = worker.running(stacks=True)
        assert "stuck_in_a_task" in (task.stack or "")
        assert worker.health().oldest_task is not None
        gate.set()
        result.get(timeout=10)
        rig.eventually(lambda: worker.health().ended == 1 and not worker.running())
    stopped = worker.health()
    assert not stopped.ready
    assert stopped.live, "a worker that stopped by itself needs no restart"


def test_a_worker_that_was_not_started_has_no_health(rig: Any, app: Any) -> None:
    with pytest.raises(WorkerError, match="has not been started"):
        app.worker(pool="solo").health()


def test_readiness_goes_with_the_broker(rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app("memory")
    app.task(name="noop")(lambda: None)
    with rig.work(app, pool) as worker:
        with pytest.MonkeyPatch.context() as patch:

            def lost(*args: Any, **options: Any) -> Fetched:
                raise ConnectionLost("the cable is out")

            patch.setattr(MemoryConsumer, "fetch", lost)
            worker.lanes[0].consumer.wake()
            health = rig.eventually(lambda: None if (h := worker.health()).ready else h)
            assert health.live
            assert health.reasons == ("the broker is not available",)
        rig.eventually(lambda: worker.health().ready)


def test_readiness_goes_with_the_store(rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app("split")
    app.task(name="noop")(lambda: None)
    with rig.work(app, pool) as worker:
        with pytest.MonkeyPatch.context() as patch:

            def down(records: Any) -> Any:
                raise StoreUnavailable("no route")

            patch.setattr(app.store, "put", down)
            result = app.tasks["noop"].delay()
            health = rig.eventually(lambda: None if (h := worker.health()).ready else h)
            assert "cannot be settled" in health.reasons[0]
        assert result.get(timeout=10) is None
        rig.eventually(lambda: worker.health().ready)


class Deaf:
    """Makes a consumer take nothing until it is subscribed again, as a lost subscription would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, for_good: bool) -> None:
        self.subscribed = 0
        self.deaf = False
        fetch, subscribe = MemoryConsumer.fetch, MemoryConsumer.subscribe

        def fetches(consumer: Any, limit: int, wait: float, **options: Any) -> Fetched:
            return Fetched() if self.deaf and not threading.Event().wait(0.05) else fetch(
                consumer, limit, min(wait, 0.1), **options)  # fmt: skip

        def subscribes(*args: Any, **options: Any) -> None:
            self.subscribed += 1
            self.deaf = self.deaf and for_good
            subscribe(*args, **options)

        monkeypatch.setattr(MemoryConsumer, "fetch", fetches)
        monkeypatch.setattr(MemoryConsumer, "subscribe", subscribes)

    def deafen(self) -> None:
        self.deaf = True
        threading.Event().wait(0.3)  # the fetch that runs still hears


@pytest.fixture(autouse=True)
def quick_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskq.worker.watch._PERIOD", 0.05)
    monkeypatch.setattr("taskq.worker.watch._IDLE_TICK", 0.05)


def test_a_worker_that_stands_still_subscribes_again(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = rig.app("memory")
    app.task(name="noop")(lambda: 1)
    fault = Deaf(monkeypatch, for_good=False)
    with rig.work(app, pool, stall_timeout=1.0) as worker:
        fault.deafen()
        assert app.tasks["noop"].delay().get(timeout=20) == 1
        assert fault.subscribed == 2
        rig.eventually(lambda: worker.health().ready)
    assert "subscribing again" in caplog.text


def test_a_start_that_waits_for_the_store_is_no_standstill(
    rig: Any, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a suspect may start is in the store; while that is away, nothing but the store can help."""
    app, runs = rig.app("split"), []
    app.task(name="suspect")(lambda: runs.append(1))
    results = [app.tasks["suspect"].delay() for _ in range(3)]
    rig.crash(app)

    def down(*args: Any) -> Any:
        raise StoreUnavailable("no route")

    with pytest.MonkeyPatch.context() as patch:
        for name in ("get", "apply", "put"):
            patch.setattr(app.store, name, down)
        with rig.work(app, pool, stall_timeout=1.0) as worker:
            reasons = rig.eventually(lambda: worker.health().reasons)
            assert any("result store is not available" in reason for reason in reasons)
            threading.Event().wait(3.0)  # twice the time after which it would end
            assert not worker.stopping
            patch.undo()
            for result in results:
                result.get(timeout=20)
    assert "no progress" not in caplog.text
    assert len(runs) == 3


def test_a_worker_that_stays_still_ends(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = rig.app("memory")
    app.task(name="noop")(lambda: 1)
    fault = Deaf(monkeypatch, for_good=True)
    with rig.work(app, pool, exit_code=1, stall_timeout=1.0) as worker:
        fault.deafen()
        app.tasks["noop"].delay()
        worker.has_process = True
        monkeypatch.setattr("taskq.worker.watch.os._exit", lambda code: None)
        worker.join(20)
        timers = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
        assert all(t.daemon for t in timers), "the last resort would keep a process that has ended"
        assert any(t.interval > worker.settings.grace for t in timers), "it would cut the grace short"
        for timer in timers:
            timer.cancel()
    assert worker.exit_code == 1
    assert "subscribing again did not help" in caplog.text
    assert rig.counts(app) == (1, 0, 0)


def test_an_idle_worker_and_one_in_a_long_task_are_not_stalled(
    rig: Any, pool: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    app = rig.app("memory")
    app.task(name="wait")(lambda: stuck_in_a_task(gate))
    with rig.work(app, pool, concurrency=1, stall_timeout=1.5) as worker:
        assert not threading.Event().wait(2.0)
        results = [app.tasks["wait"].delay() for _ in range(3)]
        rig.eventually(worker.running)
        assert not threading.Event().wait(3.5)
        assert worker.health().ready
        gate.set()
        for result in results:
            result.get(timeout=10)
    assert "no progress" not in caplog.text


def test_a_dump_says_what_runs_where(
    rig: Any, pool: str, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    app = rig.app("memory")
    app.task(name="wait")(lambda: stuck_in_a_task(gate))
    with rig.work(app, pool) as worker:
        result = app.tasks["wait"].delay()
        rig.eventually(worker.running)
        worker.dump_wanted = True  # what SIGUSR1 does
        rig.eventually(lambda: f"dump: task wait [{result.id}]" in caplog.text)
        gate.set()
    assert "stuck_in_a_task" in caplog.text

"""Stopping: nothing new is taken, what runs may end within the grace, the rest goes back, in order and uncounted."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError, NotSupported, TaskInterrupted, WorkerError


@pytest.fixture
def runs() -> list[Any]:
    return []


@pytest.fixture
def gate() -> Any:
    event = threading.Event()
    yield event
    event.set()


def test_what_runs_may_end_and_what_waits_goes_back(
    rig: Any, backend: str, pool: str, runs: list[Any], gate: threading.Event
) -> None:
    app = rig.app(backend)

    @app.task
    def work(i: int) -> int:
        runs.append(i)
        if i == 0:
            assert gate.wait(10)
        return i

    with rig.work(app, pool, concurrency=1) as worker:
        results = app.send_many([work.s(i) for i in range(20)])
        rig.eventually(lambda: runs == [0])
        worker.stop()
        time.sleep(0.05)
        gate.set()
        assert results[0].get(timeout=10) == 0
    assert rig.counts(app) == (19, 0, 0)
    assert runs == [0]
    rig.drain(app)
    assert runs == list(range(20))  # they kept their order
    assert len(rig.dead(app)) == 0


def test_a_task_that_outlasts_the_grace_goes_back_uncounted(rig: Any, runs: list[Any], gate: threading.Event) -> None:
    app = rig.app(max_deliveries=1)

    @app.task
    def work() -> int:
        runs.append(1)
        if len(runs) == 1:
            assert gate.wait(10)
        return len(runs)

    with rig.work(app, "threads", exit_code=3, grace=0.1) as worker:
        result = work.delay()
        rig.eventually(lambda: runs)
        worker.stop()
        rig.eventually(lambda: not worker._thread.is_alive())
    assert rig.counts(app) == (1, 0, 0)
    gate.set()
    with rig.work(app, "threads"):
        assert result.get(timeout=10) == 2
        rig.wait_empty(app)


def test_an_interrupt_does_not_wait(rig: Any, runs: list[Any], gate: threading.Event) -> None:
    app = rig.app()

    @app.task
    def work() -> None:
        runs.append(1)
        assert gate.wait(20)

    with rig.work(app, "threads", exit_code=3, grace=20.0) as worker:
        work.delay()
        rig.eventually(lambda: runs)
        worker.stop()
        began = time.monotonic()
        worker.stop(interrupt=True)
        rig.eventually(lambda: not worker._thread.is_alive())
        assert time.monotonic() - began < 10
    assert rig.counts(app) == (1, 0, 0)


def test_an_interrupted_inline_task_goes_back(rig: Any, runs: list[Any]) -> None:
    """What a signal does on the worker's own thread; here the task raises it itself."""
    app = rig.app(max_deliveries=1)

    @app.task
    def work(i: int) -> int:
        runs.append(i)
        if runs == [0, 1]:
            worker.stop(interrupt=True)
            raise TaskInterrupted("the worker stops now")
        return i

    with rig.work(app, exit_code=3) as worker:
        results = app.send_many([work.s(i) for i in range(4)])
        rig.eventually(lambda: not worker._thread.is_alive())
    assert rig.counts(app)[0] == 3
    assert results[0].get(timeout=1) == 0  # what had ended is settled
    rig.drain(app)
    assert [r.get(timeout=1) for r in results] == [0, 1, 2, 3]
    assert runs == [0, 1, 1, 2, 3]


def test_an_interruption_is_no_failure_for_hooks(rig: Any, runs: list[Any]) -> None:
    from taskq import Task

    app = rig.app()

    class Hooked(Task[Any, Any]):
        name = "hooked"

        def run(self) -> None:
            if len(runs) == 0:
                runs.append("run")
                worker.stop(interrupt=True)
                raise TaskInterrupted

        def on_failure(self, request: Any, error: BaseException) -> None:
            runs.append("failure")

        def on_success(self, request: Any, result: Any) -> None:
            runs.append("success")

    task = app.register(Hooked)
    with rig.work(app, exit_code=3) as worker:
        task.delay()
        rig.eventually(lambda: not worker._thread.is_alive())
    assert runs == ["run"]
    rig.drain(app)
    assert runs == ["run", "success"]


def test_a_stopped_worker_closes_what_it_opened(rig: Any, pool: str) -> None:
    app = rig.app()
    app.task(name="noop")(lambda: None)
    before = set(threading.enumerate())
    for _ in range(3):
        with rig.work(app, pool):
            app.tasks["noop"].delay().get(timeout=10)
    rig.eventually(lambda: {t for t in threading.enumerate() if t.name.startswith("taskq")} <= before)
    assert not app.transport._consumers  # type: ignore[attr-defined]


def test_the_application_can_be_used_again_after_close(rig: Any) -> None:
    app = rig.app()

    @app.task
    def work() -> int:
        return 1

    for _ in range(2):
        with rig.work(app):
            assert work.delay().get(timeout=10) == 1
        app.close()


# ------------------------------------------------------------------------------------------- what a start refuses


def refused(app: TaskQ, error: type[Exception], match: str, **options: Any) -> None:
    worker = app.worker(**options)
    with pytest.raises(error, match=match):
        worker.start()
    worker.join(5)


def test_a_worker_without_tasks(rig: Any) -> None:
    refused(rig.app(), WorkerError, "has no tasks; import the modules that define them", pool="solo")


def test_solo_with_more_than_one_slot(rig: Any, app: TaskQ) -> None:
    app.task(name="noop")(lambda: None)
    refused(app, NotSupported, "runs 1 task at a time, not 8.*-P threads", pool="solo", concurrency=8)


def test_limits_that_the_pool_cannot_keep(rig: Any, app: TaskQ, pool: str) -> None:
    app.task(name="limited", time_limit=5)(lambda: None)
    app.task(name="too", time_limit=5)(lambda: None)
    refused(app, NotSupported, "limited has time_limit.*too has time_limit", pool=pool)


def test_a_pool_that_the_worker_does_not_have(rig: Any, app: TaskQ, pool: str) -> None:
    app.task(name="elsewhere", pool="prefork")(lambda: None)
    refused(app, NotSupported, f"elsewhere asks for pool 'prefork'.*-P {pool},prefork", pool=pool)


def test_recycling_that_the_pool_cannot_do(rig: Any, app: TaskQ, pool: str) -> None:
    app.task(name="noop")(lambda: None)
    refused(app, NotSupported, "worker.max_tasks_per_child is set", pool=pool, max_tasks_per_child=5)


def test_autoscale_needs_a_pool_that_can(rig: Any, app: TaskQ) -> None:
    app.task(name="noop")(lambda: None)
    refused(app, NotSupported, "needs one pool that can be resized", pool="solo", autoscale=(1, 4))


def test_a_dead_letter_queue_cannot_be_served(rig: Any, app: TaskQ) -> None:
    app.task(name="noop")(lambda: None)
    refused(app, ConfigError, "taskq dead replay", pool="solo", queues=("default.dead",))


def test_an_unknown_pool(rig: Any, app: TaskQ) -> None:
    from taskq.errors import PluginNotInstalled

    app.task(name="noop")(lambda: None)
    refused(app, PluginNotInstalled, "fibers", pool="fibers")


@pytest.mark.parametrize("error", [ValueError("no licence"), KeyError("x")])
def test_a_task_that_cannot_set_itself_up_ends_the_start(rig: Any, pool: str, error: Exception) -> None:
    """The error is the one of the task, and the worker leaves nothing behind."""
    from taskq import Task

    app = rig.app()

    class Broken(Task[Any, Any]):
        name = "broken"

        def run(self) -> None: ...

        def process_started(self) -> None:
            raise error

    app.register(Broken)
    worker = app.worker(pool=pool)
    with pytest.raises(type(error)):
        worker.start()
    worker.join(5)
    assert not app.transport._consumers  # type: ignore[attr-defined]


def test_a_pool_that_cannot_start_ends_the_start(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskq_pool_threads.pool import ThreadsPool

    def start(self: Any, runtime: Any, sink: Any) -> None:
        raise WorkerError("could start 0 of 2 threads")

    monkeypatch.setattr(ThreadsPool, "start", start)
    app.task(name="noop")(lambda: None)
    worker = app.worker(pool="threads", concurrency=2)
    with pytest.raises(WorkerError, match="0 of 2 threads"):
        worker.start()
    worker.join(5)
    assert worker.exit_code == 1
    assert not app.transport._consumers  # type: ignore[attr-defined]


def test_auto_picks_what_is_installed(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    app.task(name="noop")(lambda: None)
    installed = [r for r in app.plugins.records("pool") if r.name in ("threads", "solo")]
    monkeypatch.setattr(type(app.plugins), "records", lambda self, kind=None: installed)
    with rig.work(app, "auto") as worker:
        assert worker.pool_name == "threads"

"""What plugins see of a worker's life, events, autoscaling, and ordered queues."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from taskq import Event, TaskQ, current_request
from taskq.spi import LoadSample, hookimpl


@pytest.fixture
def seen() -> list[Any]:
    return []


class Life:
    """Notes every hook of a worker's life."""

    def __init__(self, seen: list[Any]) -> None:
        self.seen = seen

    @hookimpl
    def taskq_worker_starting(self, worker: Any) -> None:
        self.seen.append("starting")

    @hookimpl
    def taskq_process_started(self, app: Any) -> None:
        self.seen.append("process started")

    @hookimpl
    def taskq_worker_ready(self, worker: Any) -> None:
        self.seen.append("ready")

    @hookimpl
    def taskq_worker_stopping(self, worker: Any) -> None:
        self.seen.append("stopping")

    @hookimpl
    def taskq_process_stopping(self, app: Any) -> None:
        self.seen.append("process stopping")

    @hookimpl
    def taskq_worker_stopped(self, worker: Any) -> None:
        self.seen.append("stopped")


def test_the_hooks_of_a_workers_life(rig: Any, app: TaskQ, pool: str, seen: list[Any]) -> None:
    app.plugins.register(Life(seen), "life")
    app.task(name="work")(lambda: seen.append("run"))
    with rig.work(app, pool):
        app.tasks["work"].delay().get(timeout=10)
    assert seen == ["starting", "process started", "ready", "run", "stopping", "process stopping", "stopped"]


@pytest.mark.parametrize("hook", ["taskq_worker_stopping", "taskq_process_stopping", "taskq_worker_stopped"])
def test_a_plugin_that_fails_at_the_end_does_not_stop_the_end(
    rig: Any, app: TaskQ, seen: list[Any], hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(self: Any, **arguments: Any) -> None:
        raise OSError("no room for statistics")

    argument = "app" if "process" in hook else "worker"
    namespace: dict[str, Any] = {}
    exec(f"def {hook}(self, {argument}): raise OSError('no room for statistics')", namespace)
    broken = type("Broken", (), {hook: hookimpl(namespace[hook])})()
    app.plugins.register(Life(seen), "life")
    app.plugins.register(broken, "broken")
    app.task(name="work")(lambda: 1)
    with rig.work(app):
        assert app.tasks["work"].delay().get(timeout=10) == 1
    assert "no room for statistics" in caplog.text
    assert seen[-1] == "stopped"
    assert not app.transport._consumers  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------ events


def test_events(rig: Any, backend: str, pool: str, seen: list[Any]) -> None:
    app = rig.app(backend, unknown_task_wait=0)

    class Sinks:
        @hookimpl
        def taskq_event_sinks(self, app: Any) -> list[Any]:
            return [seen.extend]

    app.plugins.register(Sinks(), "sinks")

    @app.task(name="work", max_retries=1, retry_backoff=0)
    def work(kind: str) -> None:
        if kind == "fail" or (kind == "retry" and current_request().attempt == 0):
            raise ValueError(kind)

    sent = {kind: work.delay(kind).id for kind in ("fine", "fail", "retry")}
    sent["expired"] = work.apply_async(("expired",), expires=0).id
    sent["unknown"] = app.send_task("unknown").id
    rig.drain(app, pool)
    assert all(isinstance(event, Event) for event in seen)
    kinds = {name: [e.kind for e in seen if e.task_id == task_id] for name, task_id in sent.items()}
    assert kinds == {
        "fine": ["SUCCESS"],
        "fail": ["RETRY", "FAILURE"],
        "retry": ["RETRY", "SUCCESS"],
        "expired": ["EXPIRED"],
        "unknown": ["DEAD"],
    }
    last = next(e for e in seen if e.kind == "FAILURE")
    assert (last.task, last.queue, last.attempt, last.reason) == ("work", "default", 1, "ValueError: fail")
    assert last.elapsed is not None
    assert 0 <= last.elapsed < 60
    assert last.at == pytest.approx(time.time(), abs=60)


def test_a_sink_that_fails_disturbs_nobody(
    rig: Any, app: TaskQ, seen: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(events: Any) -> None:
        raise OSError("no room")

    class Sinks:
        @hookimpl
        def taskq_event_sinks(self, app: Any) -> list[Any]:
            return [broken, seen.extend]

    app.plugins.register(Sinks(), "sinks")
    app.task(name="work")(lambda: 1)
    with rig.work(app):
        assert app.tasks["work"].delay().get(timeout=10) == 1
    assert [e.kind for e in seen] == ["SUCCESS"]
    assert "its events of this batch are dropped, tasks go on" in caplog.text


def test_what_is_logged(rig: Any, app: TaskQ, caplog: pytest.LogCaptureFixture) -> None:
    """Failures with their traceback, expected ones without, successes only when asked for; arguments never."""
    caplog.set_level(logging.DEBUG, "taskq.worker")

    @app.task(name="work", throws=(LookupError,))
    def work(secret: str, kind: str) -> None:
        if kind != "fine":
            raise {"bad": ValueError, "expected": KeyError}[kind](kind)

    for kind in ("fine", "bad", "expected"):
        work.delay("s3cr3t", kind)
    rig.drain(app)
    text = {r.message.split("]", 1)[1]: r.levelname for r in caplog.records if "task work [" in r.message}
    assert any(m.startswith(" SUCCESS in ") and level == "DEBUG" for m, level in text.items())
    bad = next(m for m in text if "ValueError" in m)
    assert "Traceback" in bad
    assert "kept in default.dead" in bad
    expected = next(m for m in text if "failed as expected: KeyError" in m)
    assert "Traceback" not in expected
    assert (text[bad], text[expected]) == ("ERROR", "INFO")
    assert "s3cr3t" not in caplog.text


# -------------------------------------------------------------------------------------------------------- autoscale


class Wish:
    """An autoscaler that wants what the test wants."""

    def __init__(self) -> None:
        self.wanted = 1
        self.samples: list[LoadSample] = []

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        self.samples.append(sample)
        return self.wanted, (state or 0) + 1


def test_autoscaling_within_its_bounds(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    wish, gate, running = Wish(), threading.Event(), []
    component = type(app).component
    monkeypatch.setattr(type(app), "component", lambda s, k, n: wish if k == "autoscaler" else component(s, k, n))
    monkeypatch.setattr("taskq.worker.autoscale._PERIOD", 0.01)
    monkeypatch.setattr("taskq.worker.watch._IDLE_TICK", 0.02)
    monkeypatch.setattr("taskq.worker.autoscale._COOL_DOWN", 0.0)

    @app.task
    def work() -> None:
        running.append(1)
        assert gate.wait(20)

    for _ in range(20):
        work.delay()
    with rig.work(app, "threads", concurrency=None, autoscale=(2, 5)) as worker:
        assert worker.slots == 2
        rig.eventually(lambda: len(running) == 2)
        wish.wanted = 4
        rig.eventually(lambda: len(running) == 4)
        wish.wanted = 100
        rig.eventually(lambda: len(running) == 5)
        assert worker.slots == 5
        wish.wanted = 0
        rig.eventually(lambda: worker.slots == 2)
        rig.eventually(lambda: wish.samples[-1].backlog == 15)
        sample = wish.samples[-1]
        assert sample.busy == 2 or sample.busy == 5
        assert sample.oldest_age is not None
        assert sample.oldest_age >= 0
        gate.set()
        rig.wait_empty(app)
    assert len(running) == 20


def test_shrinking_cools_down(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = Wish()
    component = type(app).component
    monkeypatch.setattr(type(app), "component", lambda s, k, n: wish if k == "autoscaler" else component(s, k, n))
    monkeypatch.setattr("taskq.worker.autoscale._PERIOD", 0.01)
    monkeypatch.setattr("taskq.worker.watch._IDLE_TICK", 0.02)
    app.task(name="work")(lambda: None)
    with rig.work(app, "threads", concurrency=None, autoscale=(1, 5)) as worker:
        wish.wanted = 4
        rig.eventually(lambda: worker.slots == 4)
        wish.wanted, looks = 1, len(wish.samples)
        rig.eventually(lambda: len(wish.samples) > looks + 3)
        assert worker.slots == 4  # not within seconds of a change
        wish.wanted = 5
        rig.eventually(lambda: worker.slots == 5)  # growing is always allowed


# --------------------------------------------------------------------------------------------------- ordered queues


def test_a_group_of_an_ordered_queue_runs_in_order(rig: Any, seen: list[Any]) -> None:
    app = rig.app(queues={"ordered": {"ordered": True}})
    lock = threading.Lock()
    running: dict[str, int] = {}

    @app.task(queue="ordered")
    def work(group: str, i: int) -> None:
        with lock:
            running[group] = running.get(group, 0) + 1
            assert running[group] == 1, "two of a group at once"
        time.sleep(0.002)
        with lock:
            running[group] -= 1
            seen.append((group, i))

    for i in range(10):
        for group in "abc":
            work.apply_async((group, i), group=group)
    with rig.work(app, "threads", concurrency=4):
        rig.wait_empty(app, "ordered")
    assert rig.dead(app, "ordered") == []
    for group in "abc":
        assert [i for g, i in seen if g == group] == list(range(10))

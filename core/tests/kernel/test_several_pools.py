"""Several pools in one worker: who runs what, and what happens when one of them is full."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from taskq import TaskQ
from taskq.errors import ConfigError, NotSupported, PluginNotInstalled

BOTH = "threads=2,asyncio=2"


def where() -> str:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return threading.current_thread().name
    return "loop " + threading.current_thread().name


@pytest.fixture
def mixed(rig: Any, backend: str) -> TaskQ:
    app: TaskQ = rig.app(backend, queues={"slow": {"pool": "asyncio"}})
    app.task(name="plain")(where)
    app.task(name="named", pool="asyncio")(where)
    app.task(name="queued", queue="slow")(where)

    @app.task(name="coroutine")
    async def coroutine() -> str:
        return where()

    @app.task(name="here", pool="threads")
    async def here() -> str:
        return where()

    return app


def test_each_task_runs_where_it_belongs(rig: Any, mixed: TaskQ) -> None:
    with rig.work(mixed, BOTH):
        ran = {name: mixed.tasks[name].delay().get(timeout=10) for name in mixed.tasks}
    assert ran["coroutine"].startswith("loop"), "an async def task runs on the pool that has a loop"
    assert "pool" in ran["plain"], "a def task runs on a pool of threads"
    assert "pool" in ran["here"], "a task's own choice wins"
    assert ran["named"] != ran["plain"]
    assert ran["queued"] != ran["plain"], "a queue's choice counts for tasks that name none"


def test_one_full_pool_does_not_hold_up_the_other(
    rig: Any, backend: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.worker.pooled._CROWDED", 0.2)
    app, gate = rig.app(backend), threading.Event()

    @app.task(name="stuck", pool="threads")
    def stuck(i: int) -> int:
        gate.wait(20)
        return i

    @app.task(name="quick")
    async def quick(i: int) -> int:
        return i

    blocked = app.send_many([stuck.s(i) for i in range(60)])
    with rig.work(app, BOTH):
        results = app.send_many([quick.s(i) for i in range(20)])
        assert [r.get(timeout=15) for r in results] == list(range(20))
        gate.set()
        assert [r.get(timeout=20) for r in blocked] == list(range(60))
        rig.wait_empty(app)
    assert "pool threads is full" in caplog.text
    assert rig.dead(app) == []


def test_what_waits_before_a_pool_goes_back_at_the_end(rig: Any, backend: str) -> None:
    app, gate, started = rig.app(backend), threading.Event(), []

    @app.task(name="stuck", pool="threads")
    def stuck(i: int) -> int:
        started.append(i)
        gate.wait(20)
        return i

    app.task(name="other", pool="asyncio")(where)
    results = app.send_many([stuck.s(i) for i in range(10)])
    with rig.work(app, BOTH) as worker:
        rig.eventually(lambda: len(started) == 2)
        worker.stop()
        rig.eventually(lambda: rig.counts(app)[0] == 8)
        gate.set()
    assert sum(rig.counts(app)) == 8
    with rig.work(app, BOTH):
        assert [r.get(timeout=15) for r in results] == list(range(10))
    assert sorted(started) == list(range(10))


@pytest.mark.parametrize(
    ("pool", "error", "says"),
    [
        ("solo,threads", NotSupported, "shares a worker with no other pool"),
        ("threads=0", ConfigError, "NAME=SLOTS"),
        ("threads,threads", ConfigError, "each name once"),
        ("threads=two", ConfigError, "NAME=SLOTS"),
        ("threads,processes", PluginNotInstalled, "processes"),
        ("threads", NotSupported, "start it with -P threads,asyncio"),
    ],
)
def test_what_cannot_be_is_refused(rig: Any, mixed: TaskQ, pool: str, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        mixed.worker(pool=pool)._prepare()


def test_autoscaling_several_pools_is_refused(rig: Any, mixed: TaskQ) -> None:
    with pytest.raises(NotSupported, match="needs one pool"):
        mixed.worker(pool=BOTH, autoscale=(1, 4))._prepare()


def test_at_most_once_is_not_acknowledged_ahead_of_its_own_pools_slots(rig: Any, backend: str) -> None:
    """That another pool has free slots is no reason; else a worker's end would lose what it never started."""
    app, gate, ran = rig.app(backend), threading.Event(), []

    @app.task(name="stuck", pool="threads")
    def stuck() -> None:
        gate.wait(20)

    @app.task(name="once", pool="threads", delivery="at_most_once")
    def once(i: int) -> int:
        ran.append(i)
        return i

    @app.task(name="quick")
    async def quick(i: int) -> int:
        return i

    for _ in range(2):
        stuck.delay()
    with rig.work(app, BOTH) as worker:
        rig.eventually(lambda: len(worker.running()) == 2)
        results = app.send_many([once.s(i) for i in range(60)])
        others = app.send_many([quick.s(i) for i in range(5)])
        assert [r.get(timeout=15) for r in others] == list(range(5))
        assert not ran
        worker.stop()
        rig.eventually(lambda: sum(rig.counts(app)) == 62)
        gate.set()
    assert not ran
    with rig.work(app, BOTH):
        assert sorted(r.get(timeout=15) for r in results) == list(range(60))
    assert sorted(ran) == list(range(60))

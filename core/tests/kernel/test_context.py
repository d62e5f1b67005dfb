"""What a running task knows of itself, and what it cannot see of others."""

from __future__ import annotations

import asyncio
import threading
import time
from contextvars import ContextVar
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from taskq import TaskQ, TaskQError, current_request, current_task
from taskq.errors import NotInTask

LEAK: ContextVar[str] = ContextVar("leak", default="clean")


def test_the_request(rig: Any, app: TaskQ, pool: str) -> None:
    seen: list[Any] = []

    @app.task(bind=True)
    def task(self: Any, x: int, *, y: int) -> None:
        seen.append(self.request)
        assert self is current_task()
        assert current_request() is self.request

    eta = datetime.now(UTC) + timedelta(seconds=1.5)
    sent = task.apply_async(
        (1,), {"y": 2}, queue="special", priority=7, eta=eta, expires=60, headers={"tenant": "blue"}, task_id="own-id"
    )
    with rig.work(app, pool, queues=("special",), name="me") as worker:
        rig.eventually(lambda: seen)
        assert worker.name == "me"
    (r,) = seen
    assert (r.id, r.name, r.args, r.kwargs) == (sent.id, task.name, [1], {"y": 2})
    assert (r.id, r.queue, r.priority, r.headers) == ("own-id", "special", 7, {"tenant": "blue"})
    assert (r.attempt, r.retries, r.deliveries, r.epoch, r.worker) == (0, 0, 1, 0, "me")
    assert r.enqueued_at == pytest.approx(time.time(), abs=60)
    assert r.eta == pytest.approx(eta.timestamp())
    assert r.expires == pytest.approx(time.time() + 60, abs=60)
    assert (r.parent_id, r.root_id, r.group, r.task) == (None, "own-id", None, task)


def test_parents_and_roots(rig: Any, app: TaskQ) -> None:
    lines: dict[str, Any] = {}

    @app.task
    def child(n: int) -> None:
        request = current_request()
        lines[request.id] = (request.parent_id, request.root_id)
        if n:
            child.delay(n - 1) if n == 2 else child.apply_async((n - 1,), priority=6)

    first = child.delay(2)
    rig.drain(app)
    ids = list(lines)
    assert ids[0] == first.id
    assert list(lines.values()) == [(None, ids[0]), (ids[0], ids[0]), (ids[1], ids[0])]


def test_outside_a_task(app: TaskQ) -> None:
    @app.task(bind=True)
    def task(self: Any) -> str:
        return str(self.request.id)

    for look in (current_request, current_task, lambda: task.request, task):
        with pytest.raises(NotInTask, match="inside a task only"):
            look()


def test_another_tasks_request(rig: Any, app: TaskQ) -> None:
    @app.task(bind=True)
    def other(self: Any) -> str:
        return str(self.request.id)

    @app.task
    def task() -> str:
        return other()

    with rig.work(app), pytest.raises(NotInTask, match=r"other is not running in this context; .*task is"):
        task.delay().get(timeout=10)


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_context_variables_do_not_leak_from_task_to_task(rig: Any, app: TaskQ, pool: str, kind: str) -> None:
    if kind == "def":

        @app.task(name="task")
        def task(i: int) -> list[Any]:
            before = LEAK.get()
            LEAK.set(f"set by {i}")
            return [before, current_request().args]
    else:

        @app.task(name="task")
        async def task(i: int) -> list[Any]:
            before = LEAK.get()
            LEAK.set(f"set by {i}")
            await asyncio.sleep(0)
            return [before, current_request().args]

    with rig.work(app, pool, concurrency=1):
        results = app.send_many([task.s(i) for i in range(20)])
        assert [r.get(timeout=10) for r in results] == [["clean", [i]] for i in range(20)]
    assert LEAK.get() == "clean"
    with pytest.raises(NotInTask):
        current_request()


def test_concurrent_tasks_see_their_own_request(rig: Any, app: TaskQ) -> None:
    barrier = threading.Barrier(4)

    @app.task(bind=True)
    def task(self: Any, i: int) -> list[int]:
        barrier.wait(10)
        seen = self.request.args
        barrier.wait(10)
        return [i, seen[0], current_request().args[0]]

    with rig.work(app, "threads", concurrency=4):
        results = app.send_many([task.s(i) for i in range(4)])
        assert [r.get(timeout=10) for r in results] == [[i, i, i] for i in range(4)]


def test_waiting_inside_a_task_is_refused_unless_allowed(rig: Any, app: TaskQ) -> None:
    @app.task
    def quick() -> int:
        return 5

    @app.task
    def waits(**options: Any) -> int:
        return quick.delay().get(timeout=10, **options)

    @app.task
    async def awaits() -> int:
        return await quick.delay().aget(timeout=10)

    @app.task
    def iterates() -> list[int]:
        from taskq import as_completed

        return [r.get() for r in as_completed([quick.delay()], timeout=10)]

    with rig.work(app, "threads", concurrency=2):
        for task in (waits, awaits, iterates):
            with pytest.raises(TaskQError, match="can block the worker for ever"):
                task.delay().get(timeout=10)
        assert waits.delay(allow_in_task=True).get(timeout=10) == 5

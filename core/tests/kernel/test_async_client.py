"""The asynchronous client: thousands of callers at once on a fixed number of threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from taskq import TaskQ, aas_completed
from taskq.errors import ResultNotKept, TaskArgumentsError, TaskTimeout

MOST_THREADS = 6
"""One that sends, one that waits for results, up to four for what blocks seldom (connecting, asking, forgetting)."""


def our_threads() -> set[str]:
    names = ("taskq-sender", "taskq-results", "taskq-client")
    return {t.name for t in threading.enumerate() if t.name.startswith(names)}


@pytest.mark.parametrize(("backend", "callers"), [("memory", 10_000), ("sqlite", 1_000)])
def test_ten_thousand_callers_at_once(rig: Any, backend: str, callers: int) -> None:
    app = rig.app(backend)

    @app.task
    def double(x: int) -> int:
        return 2 * x

    most = 0

    async def caller(i: int) -> int:
        nonlocal most
        result = await double.adelay(i)
        if i % 100 == 0:
            most = max(most, threading.active_count())
        return await result.aget(timeout=50)

    async def client() -> list[int]:
        return await asyncio.gather(*(caller(i) for i in range(callers)))

    with rig.work(app):
        before = threading.active_count()
        assert asyncio.run(client()) == [2 * i for i in range(callers)]
        assert before < most <= before + MOST_THREADS
        assert len(our_threads()) <= MOST_THREADS


def test_callers_gather_in_batches(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    @app.task
    def noop(i: int) -> None: ...

    app.connect()
    sizes = []
    send = app.transport.send
    monkeypatch.setattr(app.transport, "send", lambda batch: (sizes.append(len(batch)), send(batch))[1])

    async def client() -> None:
        await asyncio.gather(*(noop.adelay(i) for i in range(500)))

    asyncio.run(client())
    assert sum(sizes) == 500
    assert len(sizes) < 50
    assert rig.counts(app) == (500, 0, 0)


def test_the_loop_is_never_blocked(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that takes its time keeps the sending thread, not the loop."""
    app.task(name="noop")(lambda: None)
    app.connect()
    entered, go_on = threading.Event(), threading.Event()
    send = app.transport.send

    def slow(batch: Any) -> Any:
        entered.set()
        assert go_on.wait(10)
        return send(batch)

    monkeypatch.setattr(app.transport, "send", slow)

    async def client() -> int:
        sending = asyncio.ensure_future(app.tasks["noop"].adelay())
        assert await asyncio.to_thread(entered.wait, 10)
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0)
            turns += 1
        assert not sending.done()
        go_on.set()
        await sending
        return turns

    assert asyncio.run(client()) == 100


def test_several_loops_on_several_threads(rig: Any, app: TaskQ) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    got: dict[int, int] = {}

    def on_a_thread(i: int) -> None:
        async def client() -> None:
            got[i] = await (await double.adelay(i)).aget(timeout=20)

        asyncio.run(client())

    with rig.work(app):
        threads = [threading.Thread(target=on_a_thread, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert got == {i: 2 * i for i in range(6)}


def test_a_caller_that_is_cancelled(rig: Any, app: TaskQ) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    async def client() -> int:
        result = await double.aapply_async((1,), countdown=1000)
        waiting = asyncio.ensure_future(result.aget())
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert not app.waiter._futures
        return await (await double.adelay(3)).aget(timeout=10)

    with rig.work(app):
        assert asyncio.run(client()) == 6


def test_a_loop_that_ends_while_results_are_awaited(rig: Any, app: TaskQ) -> None:
    """Whoever stopped waiting does not disturb those who come later."""

    @app.task
    def double(x: int) -> int:
        return 2 * x

    async def gives_up() -> None:
        task = asyncio.ensure_future((await double.aapply_async((1,), countdown=0.05)).aget())
        await asyncio.sleep(0.01)
        task.cancel()

    async def client() -> int:
        return await (await double.adelay(2)).aget(timeout=10)

    asyncio.run(gives_up())
    with rig.work(app):
        assert asyncio.run(client()) == 4
        assert asyncio.run(client()) == 4


def test_errors_of_the_twins(rig: Any, app: TaskQ) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    async def client() -> None:
        with pytest.raises(TaskArgumentsError):
            await double.adelay()
        with pytest.raises(TaskArgumentsError):
            await app.asend_many([double.s()])
        with pytest.raises(ResultNotKept):
            await (await double.aapply_async((1,), ignore_result=True)).aget()
        with pytest.raises(TaskTimeout):
            await (await double.adelay(1)).aget(timeout=0.02)

    asyncio.run(client())


def test_many_at_once_and_in_order(rig: Any, app: TaskQ) -> None:
    @app.task
    def double(x: int) -> int:
        return 2 * x

    async def client() -> tuple[list[int], set[int]]:
        results = await app.asend_many([double.s(i) for i in range(50)])
        values = [await r for r in results]
        return values, {await r async for r in aas_completed(results, timeout=10)}

    with rig.work(app, "threads"):
        assert asyncio.run(client()) == ([2 * i for i in range(50)], {2 * i for i in range(50)})


def test_closing_sends_what_is_waiting(rig: Any) -> None:
    app = rig.app("sqlite")
    app.task(name="noop")(lambda: None)

    async def client() -> None:
        pending = [asyncio.ensure_future(app.tasks["noop"].adelay()) for _ in range(100)]
        await asyncio.gather(*pending)

    asyncio.run(client())
    app.close()
    rig.eventually(lambda: not our_threads())  # the last ones are on their way out
    assert rig.counts(app) == (100, 0, 0)

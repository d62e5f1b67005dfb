"""After a fork the child opens its own connections and leaves the parent's alone, as under gunicorn with preload."""

from __future__ import annotations

import asyncio
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from taskq import TaskQ


def in_child(work: Callable[[], str]) -> str:
    """Run something in a forked child and return what it said."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            said = work()
        except BaseException:
            said = traceback.format_exc()
        os.write(write, said.encode())
        os._exit(0)  # not through pytest's own ending
    os.close(write)
    with open(read) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def forked(rig: Any) -> TaskQ:
    """An application that has sent, waited and awaited before the fork."""
    app = rig.app("sqlite")

    @app.task(name="double")
    def double(x: int) -> int:
        return 2 * x

    async def client() -> int:
        return await (await double.adelay(2)).aget(timeout=10)

    with rig.work(app):
        assert double.delay(1).get(timeout=10) == 2
        assert asyncio.run(client()) == 4
    return app


def test_a_child_sends_and_the_parent_goes_on(rig: Any, forked: TaskQ) -> None:
    double = forked.tasks["double"]
    parents = (forked.transport, forked.store, forked.waiter)

    def child() -> str:
        assert forked.transport is not parents[0]
        assert forked.store is not parents[1]
        return double.delay(10).id

    task_id = in_child(child)
    assert [h.id for h in rig.headers(forked)] == [task_id]
    assert (forked.transport, forked.store, forked.waiter) == parents
    mine = double.delay(20)
    with rig.work(forked):
        assert mine.get(timeout=10) == 40
        assert forked.AsyncResult(task_id).get(timeout=10) == 20


def test_a_child_waits_for_results(rig: Any, forked: TaskQ) -> None:
    double = forked.tasks["double"]

    async def client() -> int:
        return await (await double.adelay(6)).aget(timeout=10)

    with rig.work(forked):
        assert in_child(lambda: str(double.delay(5).get(timeout=10))) == "10"
        assert in_child(lambda: str(asyncio.run(client()))) == "12"


def test_a_child_may_run_a_worker(rig: Any, forked: TaskQ) -> None:
    results = [forked.tasks["double"].delay(i) for i in range(5)]

    def child() -> str:
        with forked.worker(pool="solo", grace=1.0):
            return str([r.get(timeout=10) for r in results])

    assert in_child(child) == "[0, 2, 4, 6, 8]"
    assert [r.get(timeout=10) for r in results] == [0, 2, 4, 6, 8]


def test_a_fork_while_others_send_and_wait(rig: Any, forked: TaskQ) -> None:
    """A lock that another thread held at that moment must not be waited for in the child."""
    stop = threading.Event()
    double = forked.tasks["double"]

    def busy() -> None:
        while not stop.is_set():
            double.delay(1)

    threads = [threading.Thread(target=busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        said = [in_child(lambda: double.delay(7).id) for _ in range(5)]
    finally:
        stop.set()
        for thread in threads:
            thread.join(10)
    assert all(len(task_id) == 32 for task_id in said), said
    assert len(set(said)) == 5
    there = {peeked.id for peeked in forked.transport.peek("default", limit=1_000_000)}  # type: ignore[attr-defined]
    assert set(said) <= there


def test_a_child_of_memory_starts_empty(rig: Any, app: TaskQ) -> None:
    app.task(name="noop")(lambda: None)
    app.tasks["noop"].delay()

    def child() -> str:
        before = app.transport.stats(["default"])  # type: ignore[attr-defined]
        return str(before)

    assert in_child(child) == "{}"
    assert rig.counts(app) == (1, 0, 0)

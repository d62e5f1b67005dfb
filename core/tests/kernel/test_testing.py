"""What authors of applications get for their tests: everything in memory, a worker on this thread, time to move."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskq import TaskQ, current_app, current_request, shared_task
from taskq.errors import ConfigError, NotSupported, TaskTimeout
from taskq.testing import (
    VirtualClock,
    in_memory,
    run_until_idle,
    running_worker,
    taskq_app,
    taskq_clock,
    taskq_worker,
)

__all__ = ["taskq_app", "taskq_clock", "taskq_worker"]
DAY = 86400.0


@pytest.fixture
def runs() -> list[Any]:
    return []


# ------------------------------------------------------------------------------------------------------- fixtures


def test_an_application_of_its_own(taskq_app: TaskQ) -> None:
    @taskq_app.task
    def add(x: int, y: int) -> int:
        return x + y

    results = [add.delay(i, i) for i in range(5)]
    assert not results[0].ready()
    assert run_until_idle(taskq_app) == 5
    assert [r.get(timeout=0) for r in results] == [0, 2, 4, 6, 8]
    assert run_until_idle(taskq_app) == 0


def test_two_tests_do_not_see_each_other(taskq_app: TaskQ) -> None:
    assert dict(taskq_app.tasks) == {}


def test_a_worker_on_a_thread(taskq_app: TaskQ, taskq_worker: Any) -> None:
    @taskq_app.task
    def thread() -> str:
        return threading.current_thread().name

    with taskq_worker() as worker:
        assert worker.name in thread.delay().get(timeout=10)
    with taskq_worker(pool="threads", concurrency=3) as worker:
        assert worker.slots == 3
        assert asyncio.run(_await(thread)) != threading.current_thread().name


async def _await(task: Any) -> Any:
    return await (await task.adelay()).aget(timeout=10)


# ------------------------------------------------------------------------------------------------ run_until_idle


def test_it_runs_on_this_thread(taskq_app: TaskQ, runs: list[Any]) -> None:
    taskq_app.task(name="where")(lambda: runs.append(threading.current_thread()))
    taskq_app.tasks["where"].delay()
    run_until_idle(taskq_app)
    assert runs == [threading.current_thread()]


def test_it_runs_what_tasks_send(taskq_app: TaskQ, runs: list[Any]) -> None:
    @taskq_app.task(queue="special")
    def chain(n: int) -> None:
        runs.append(n)
        if n:
            chain.delay(n - 1)

    chain.delay(30)
    assert run_until_idle(taskq_app) == 31
    assert runs == list(range(30, -1, -1))


def test_failures_are_results(taskq_app: TaskQ) -> None:
    @taskq_app.task(max_retries=2, retry_backoff=0)
    def fail() -> None:
        raise ValueError("no good")

    result = fail.delay()
    assert run_until_idle(taskq_app) == 3
    with pytest.raises(ValueError, match="no good"):
        result.get(timeout=0)


def test_delayed_work_is_left_alone_unless_asked(taskq_app: TaskQ, taskq_clock: VirtualClock, runs: list[Any]) -> None:
    work = taskq_app.task(name="work")(runs.append)
    work.apply_async(("now",))
    work.apply_async(("in a day",), countdown=DAY)
    assert run_until_idle(taskq_app) == 1
    taskq_clock.advance(DAY - 1)
    assert run_until_idle(taskq_app) == 0
    taskq_clock.advance(2)
    assert run_until_idle(taskq_app) == 1
    assert runs == ["now", "in a day"]


def test_delayed_work_in_the_order_of_its_time(taskq_app: TaskQ, taskq_clock: VirtualClock, runs: list[Any]) -> None:
    began = taskq_clock.now()

    @taskq_app.task
    def work(name: str) -> None:
        runs.append((name, round(taskq_clock.now() - began)))
        if name == "day":
            work.apply_async(("hour later",), countdown=3600)

    eta = datetime.fromtimestamp(began, UTC) + timedelta(days=7)
    work.apply_async(("week",), eta=eta)
    work.apply_async(("day",), countdown=DAY)
    work.delay("now")
    assert run_until_idle(taskq_app, delayed=True) == 4
    assert runs == [("now", 0), ("day", 86400), ("hour later", 90000), ("week", 604800)]


def test_retries_with_back_off_take_no_time(taskq_app: TaskQ, taskq_clock: VirtualClock, runs: list[Any]) -> None:
    @taskq_app.task(max_retries=5, retry_backoff=100, retry_jitter=False)
    def flaky() -> int:
        runs.append(taskq_clock.monotonic())
        if len(runs) < 4:
            raise OSError
        return current_request().attempt

    result = flaky.delay()
    run_until_idle(taskq_app, delayed=True)
    assert result.get(timeout=0) == 3
    assert [round(t) for t in runs] == [0, 100, 300, 700]


def test_expiry_follows_the_clock(taskq_app: TaskQ, taskq_clock: VirtualClock, runs: list[Any]) -> None:
    work = taskq_app.task(name="work")(runs.append)
    result = work.apply_async((1,), expires=60)
    kept = work.apply_async((2,), expires=600)
    taskq_clock.advance(120)
    run_until_idle(taskq_app)
    assert (result.state, kept.state, runs) == ("EXPIRED", "SUCCESS", [2])


def test_a_running_worker_follows_the_clock_too(
    taskq_app: TaskQ, taskq_clock: VirtualClock, taskq_worker: Any, runs: list[Any]
) -> None:
    began, go_on = threading.Event(), threading.Event()

    @taskq_app.task
    def slow() -> None:
        runs.append("slow")
        began.set()
        assert go_on.wait(10)

    taskq_app.task(name="later")(lambda: runs.append("later"))
    with taskq_worker(pool="threads", concurrency=2):
        result = slow.delay()
        assert began.wait(10)
        late = taskq_app.tasks["later"].apply_async(countdown=30 * DAY)
        taskq_clock.advance(31 * DAY)
        late.get(timeout=10)
        go_on.set()
        result.get(timeout=10)
    assert runs == ["slow", "later"]  # a month passed under the running task, and it was not run again


def test_what_moves_time_needs_a_clock(taskq_app: TaskQ) -> None:
    taskq_app.task(name="work")(lambda: None)
    with pytest.raises(NotSupported, match="taskq_clock fixture"):
        run_until_idle(taskq_app, delayed=True)


def test_work_that_never_ends(taskq_app: TaskQ) -> None:
    @taskq_app.task
    def again() -> None:
        again.delay()

    again.delay()
    with pytest.raises(TaskTimeout, match=r"not empty after 0.1 s: default: QueueStats\(ready="):
        run_until_idle(taskq_app, timeout=0.1)


def test_other_queues(taskq_app: TaskQ, runs: list[Any]) -> None:
    work = taskq_app.task(name="work")(runs.append)
    work.apply_async(("elsewhere",), queue="elsewhere")
    work.delay("here")
    run_until_idle(taskq_app)
    assert runs == ["here"]
    run_until_idle(taskq_app, queues=["elsewhere"])
    assert runs == ["here", "elsewhere"]


def test_what_ends_the_worker_is_raised(taskq_app: TaskQ) -> None:
    taskq_app.task(name="work")(lambda: None)
    with pytest.raises(NotSupported, match="runs 1 task at a time"):
        run_until_idle(taskq_app, pool="solo", concurrency=3)
    with pytest.raises(NotSupported), running_worker(taskq_app, pool="solo", concurrency=3):
        pass


def test_async_tasks_in_an_async_test(taskq_app: TaskQ) -> None:
    @taskq_app.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def test() -> int:
        result = await double.adelay(4)
        run_until_idle(taskq_app)
        return await result.aget(timeout=0)

    assert asyncio.run(test()) == 8


# ----------------------------------------------------------------------------------- an existing application's tests


@pytest.fixture
def shop(rig: Any, tmp_path: Path) -> TaskQ:
    """An application set up for production: its server is not there."""
    app = TaskQ(
        "shop", broker="amqp://prod//", result_store="redis://prod/0", isolated=True, max_retries=7,
        worker={"concurrency": 8, "autoscale": (2, 9), "max_tasks_per_child": 100},
    )  # fmt: skip
    rig.apps.append(app)

    @app.task(name="ship", soft_time_limit=30, time_limit=60, pool="prefork")
    def ship(order: int) -> str:
        return f"shipped {order}"

    return app


def test_its_own_settings_come_back(shop: TaskQ) -> None:
    before = shop.settings
    with in_memory(shop, result_ttl=5) as app:
        assert app is shop
        assert shop.settings.max_retries == 7
        assert shop.settings.result_ttl == 5
        result = shop.tasks["ship"].delay(1)
        run_until_idle(shop)
        assert result.get(timeout=0) == "shipped 1"
        with running_worker(shop):
            assert shop.tasks["ship"].delay(2).get(timeout=10) == "shipped 2"
    assert shop.settings == before
    with in_memory(shop):
        assert shop.AsyncResult(result.id).state == "UNKNOWN"


def test_results_that_are_off_stay_off(rig: Any) -> None:
    from taskq.errors import ResultNotKept

    app = TaskQ("off", broker="amqp://prod//", result_store="none", isolated=True)
    app.task(name="work")(lambda: 1)
    with in_memory(app):
        result = app.tasks["work"].delay()
        run_until_idle(app)
        with pytest.raises(ResultNotKept):
            result.get()


def test_after_an_error_in_the_block_too(shop: TaskQ) -> None:
    with pytest.raises(KeyError), in_memory(shop):
        raise KeyError
    assert str(shop.settings.broker[0]).startswith("amqp://")


def test_unknown_settings_are_refused(shop: TaskQ) -> None:
    with pytest.raises(ConfigError, match="max_retry"), in_memory(shop, max_retry=1):
        pass
    assert str(shop.settings.broker[0]).startswith("amqp://")


def test_shared_tasks_go_to_the_application_of_the_test(rig: Any) -> None:
    @shared_task(name="library")
    def library() -> int:
        return 5

    outer = TaskQ("outer", broker="amqp://prod//", isolated=True)
    with in_memory() as app:
        assert current_app() is app
        result = library.delay()
        run_until_idle(app)
        assert result.get(timeout=0) == 5
    assert current_app() is outer

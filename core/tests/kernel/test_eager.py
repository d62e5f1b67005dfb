"""Tasks that run at the call: the same encoding, retries and outcomes as on a worker, and no broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from taskq import Reject, Task, TaskQ, current_request, gather
from taskq.errors import EncodeError, NotSupported, TaskArgumentsError, UnknownTask


@pytest.fixture
def eager(rig: Any) -> TaskQ:
    # no plugin reads this broker: whoever asked for it would notice
    return rig.app("memory", broker="amqp://nowhere//", result_store="none", task_always_eager=True)


def test_delay_runs_here_and_now(eager: TaskQ) -> None:
    ran = []

    @eager.task
    def add(x: int, y: int) -> int:
        ran.append(current_request().id)
        return x + y

    result = add.delay(2, 3)
    assert ran == [result.id]
    assert (result.get(), result.get(timeout=1), result.state, result.ready(), result.successful()) == (
        5, 5, "SUCCESS", True, True,
    )  # fmt: skip
    assert result.result == 5
    assert not result.failed()
    result.forget()


def test_every_way_of_sending(eager: TaskQ) -> None:
    @eager.task(name="add")
    def add(x: int, y: int = 1) -> int:
        return x + y

    async def twins() -> list[int]:
        results = [
            await add.adelay(1), await add.aapply_async((2,)), await eager.asend_task("add", (3,)),
            await add.s(4).adelay(), await add.s().aapply_async((5,)),
            *await eager.asend_many([add.s(6), add.s(7, y=0)]),
        ]  # fmt: skip
        return [await r.aget() for r in results]

    results = [
        add.delay(1), add.apply_async((2,), countdown=50), eager.send_task("add", (3,)), add.s(4).delay(),
        add.s().apply_async((5,)), *eager.send_many([add.s(6), add.s(7, y=0)]),
    ]  # fmt: skip
    assert [r.get() for r in results] == [2, 3, 4, 5, 6, 7, 7]
    assert asyncio.run(twins()) == [2, 3, 4, 5, 6, 7, 7]
    assert gather(results) == [2, 3, 4, 5, 6, 7, 7]


def test_async_tasks_from_everywhere(eager: TaskQ) -> None:
    @eager.task
    async def double(x: int) -> int:
        await asyncio.sleep(0)
        return 2 * x

    async def inside() -> list[int]:
        return [await (await double.adelay(3)).aget(), double.delay(4).get(), double.apply((5,)).get()]

    assert double.delay(2).get() == 4
    assert asyncio.run(inside()) == [6, 8, 10]
    assert asyncio.run(inside()) == [6, 8, 10]


def test_the_exception_comes_at_the_call_or_at_get(rig: Any, eager: TaskQ) -> None:
    @eager.task(name="fail")
    def fail() -> None:
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        fail.delay()
    result = fail.apply()
    assert (result.state, result.failed()) == ("FAILURE", True)
    assert 'raise ValueError("no good")' in (result.traceback or "")
    with pytest.raises(ValueError, match="no good"):
        result.get()
    assert isinstance(result.get(propagate=False), ValueError)

    kept = rig.app("memory", task_always_eager=True, eager_propagates=False)
    kept.task(name="fail")(fail.__wrapped__)  # type: ignore[attr-defined]
    result = kept.tasks["fail"].delay()
    with pytest.raises(ValueError, match="no good"):
        result.get()


def test_retries_run_at_once(eager: TaskQ) -> None:
    runs = []

    @eager.task(bind=True, max_retries=3, retry_backoff=1000)
    def flaky(self: Any, x: int) -> int:
        runs.append((self.request.attempt, x))
        if len(runs) < 3:
            raise self.retry(args=(x + 1,))
        return x

    assert flaky.delay(1).get() == 3
    assert runs == [(0, 1), (1, 2), (2, 3)]


def test_the_outcomes_of_a_worker(eager: TaskQ) -> None:
    @eager.task(name="object")
    def unserializable() -> object:
        return object()

    @eager.task(name="reject")
    def reject() -> None:
        raise Reject("no")

    @eager.task(name="takes")
    def takes(x: Any) -> None: ...

    with pytest.raises(EncodeError):
        unserializable.delay()
    assert reject.apply().state == "DEAD"
    with pytest.raises(TaskArgumentsError):
        takes.delay()
    with pytest.raises(EncodeError):  # arguments go through the serializer as well
        takes.delay(object())


def test_arguments_are_copies(eager: TaskQ) -> None:
    @eager.task
    def change(items: list[int]) -> list[int]:
        items.append(3)
        return items

    mine = [1, 2]
    assert change.delay(mine).get() == [1, 2, 3]
    assert mine == [1, 2]


def test_tasks_call_tasks(eager: TaskQ) -> None:
    @eager.task
    def inner(x: int) -> list[Any]:
        request = current_request()
        return [x, request.parent_id, request.root_id]

    @eager.task
    def outer() -> list[Any]:
        assert current_request().name == outer.name
        found = inner.delay(5).get()
        assert current_request().name == outer.name
        return [*found, current_request().id]

    result = outer.delay()
    assert result.get() == [5, result.id, result.id, result.id]


def test_an_unknown_task_cannot_run_here(eager: TaskQ) -> None:
    for send in (eager.send_task, lambda name: asyncio.run(eager.asend_task(name))):
        with pytest.raises(NotSupported, match="task_always_eager is set and task 'elsewhere' is not known here"):
            send("elsewhere")
    with pytest.raises((NotSupported, UnknownTask), match="elsewhere"):
        eager.send_many([eager.signature("elsewhere")])


def test_task_classes_have_their_resources(eager: TaskQ) -> None:
    events = []

    class Stateful(Task[Any, Any]):
        name = "stateful"

        def process_started(self) -> None:
            events.append("started")
            self.factor = 3

        def process_stopping(self) -> None:
            events.append("stopping")

        def run(self, x: int) -> int:
            return self.factor * x

    task = eager.register(Stateful)
    assert [task.delay(i).get() for i in range(3)] == [0, 3, 6]
    eager.task(name="later")(lambda: 1)
    assert eager.tasks["later"].delay().get() == 1
    assert task.delay(3).get() == 9
    assert events == ["started"]
    eager.close()
    assert events == ["started", "stopping"]


def test_apply_runs_here_whatever_the_settings(rig: Any, app: TaskQ) -> None:
    @app.task(ignore_result=True)
    def add(x: int, y: int) -> int:
        return x + y

    assert add.apply((1, 2)).get() == 3
    assert add.apply((1,), {"y": 5}, headers={"a": 1}).get() == 6
    assert rig.counts(app) == (0, 0, 0)

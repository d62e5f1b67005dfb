"""Results: asking, waiting, waiting for many, twins, and what is not kept."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from taskq import AsyncResult, TaskQ, aas_completed, as_completed, gather
from taskq.errors import DecodeError, ResultNotKept, StoreUnavailable, TaskRevoked, TaskTimeout
from taskq.message import Record
from taskq.spi import SupportsWait


@pytest.fixture(params=["memory", "sqlite", "polled"])
def store_app(rig: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> TaskQ:
    """Stores that push results, in this process and through a file, and one that must be asked again and again."""
    if request.param == "polled":
        app = rig.app("split")
        monkeypatch.setattr("taskq.waiter.SupportsWait", type(None))
        assert not isinstance(app.store, type(None))
    else:
        app = rig.app(request.param)
        assert isinstance(app.store, SupportsWait)

    @app.task(name="double")
    def double(x: int) -> int:
        return 2 * x

    @app.task(name="fail")
    def fail(x: int) -> int:
        raise ValueError(x)

    return app


def double(app: TaskQ) -> Any:
    return app.tasks["double"]


def test_before_and_after(rig: Any, store_app: TaskQ) -> None:
    result = double(store_app).delay(21)
    assert (result.state, result.ready(), result.successful(), result.failed(), result.result, result.traceback) == (
        "UNKNOWN", False, False, False, None, None,
    )  # fmt: skip
    rig.drain(store_app)
    assert (result.state, result.ready(), result.successful(), result.failed(), result.result, result.traceback) == (
        "SUCCESS", True, True, False, 42, None,
    )  # fmt: skip
    assert result.get() == 42


def test_a_failure(rig: Any, store_app: TaskQ) -> None:
    result = store_app.tasks["fail"].delay(5)
    rig.drain(store_app)
    assert (result.state, result.ready(), result.successful(), result.failed()) == ("FAILURE", True, False, True)
    assert isinstance(result.result, ValueError)
    assert result.traceback is not None
    assert "raise ValueError(x)" in result.traceback
    error = result.get(propagate=False)
    assert isinstance(error, ValueError)
    with pytest.raises(ValueError, match="5"):
        result.get()
    with pytest.raises(ValueError, match="5"):
        result.get()


def test_by_id_from_anywhere(rig: Any, store_app: TaskQ) -> None:
    result = double(store_app).delay(4)
    rig.drain(store_app)
    other = rig.twin(store_app).AsyncResult(result.id)
    assert other.get(timeout=10) == 8
    assert other == result
    assert hash(other) == hash(result)
    assert other != store_app.AsyncResult("other")
    assert repr(other) == f"<AsyncResult {result.id}>"


def test_it_does_not_come_in_time(rig: Any, store_app: TaskQ) -> None:
    result = double(store_app).delay(1)
    for timeout in (0, 0.05):
        with pytest.raises(TaskTimeout, match=f"did not end within {timeout} s.*its state is UNKNOWN") as caught:
            result.get(timeout=timeout)
        assert isinstance(caught.value, TimeoutError)
        with pytest.raises(TaskTimeout, match="did not end"):
            asyncio.run(result.aget(timeout=timeout))
    rig.drain(store_app)
    assert result.get(timeout=0) == 2


def test_forget(rig: Any, store_app: TaskQ) -> None:
    result = double(store_app).delay(1)
    rig.drain(store_app)
    assert result.get(timeout=1) == 2
    result.forget()
    assert result.state == "UNKNOWN"
    with pytest.raises(TaskTimeout):
        result.get(timeout=0)


def test_the_async_twins(rig: Any, store_app: TaskQ) -> None:
    async def client() -> None:
        result = await double(store_app).adelay(3)
        assert await result.aget(timeout=10) == 6
        assert await result == 6
        assert await result.aready()
        assert await result.astate() == "SUCCESS"
        await result.aforget()
        assert await result.astate() == "UNKNOWN"
        failed = await store_app.tasks["fail"].aapply_async((7,))
        with pytest.raises(ValueError, match="7"):
            await failed
        assert isinstance(await failed.aget(propagate=False), ValueError)
        by_id = store_app.AsyncResult((await store_app.asend_task("double", (5,))).id)
        assert await by_id.aget(timeout=10) == 10

    with rig.work(store_app):
        asyncio.run(client())


def test_as_completed_yields_as_they_end(rig: Any, store_app: TaskQ) -> None:
    gates = {i: threading.Event() for i in range(4)}

    @store_app.task(name="gated")
    def gated(i: int) -> int:
        assert gates[i].wait(10)
        return i

    with rig.work(store_app, "threads", concurrency=4):
        results = store_app.send_many([gated.s(i) for i in range(4)])
        order = [2, 0, 3, 1]
        gates[order[0]].set()
        seen = []
        for result in as_completed(results, timeout=10):
            seen.append(result.get(timeout=0))
            if len(seen) < 4:
                gates[order[len(seen)]].set()
        assert seen == order
        assert list(as_completed(results)) == results  # at once, in the order given

        async def client() -> list[int]:
            return [await r.aget() async for r in aas_completed(results, timeout=10)]

        assert sorted(asyncio.run(client())) == [0, 1, 2, 3]


def test_many_of_which_some_do_not_end(rig: Any, store_app: TaskQ) -> None:
    done = [double(store_app).delay(i) for i in range(3)]
    rig.drain(store_app)
    late = double(store_app).delay(9)
    seen: list[Any] = []
    with pytest.raises(TaskTimeout, match=r"1 of the tasks did not end within 0\.2 s"):
        seen.extend(as_completed([*done, late], timeout=0.2))

    async def client() -> None:
        async for result in aas_completed([*done, late], timeout=0.2):
            seen.append(result)  # noqa: PERF401  what came before the timeout counts

    seen.clear()
    with pytest.raises(TaskTimeout, match=r"1 of the tasks did not end within 0\.2 s"):
        asyncio.run(client())
    assert {r.id for r in seen} == {r.id for r in done}


def test_gather(rig: Any, store_app: TaskQ) -> None:
    with rig.work(store_app, "threads"):
        results = store_app.send_many([double(store_app).s(i) for i in range(20)])
        assert gather(results, timeout=10) == [2 * i for i in range(20)]
        assert gather([], timeout=1) == []
        with pytest.raises(ValueError, match="5"):
            gather([*results, store_app.tasks["fail"].delay(5)], timeout=10)


def test_many_threads_wait_at_once(rig: Any, store_app: TaskQ) -> None:
    results = store_app.send_many([double(store_app).s(i) for i in range(12)])
    got: dict[int, int] = {}
    threads = [
        threading.Thread(target=lambda i=i, r=r: got.update({i: r.get(timeout=20)})) for i, r in enumerate(results)
    ]
    threads.append(threading.Thread(target=lambda: got.update({99: gather(results, timeout=20)[3]})))
    for thread in threads:
        thread.start()
    with rig.work(store_app, "threads"):
        for thread in threads:
            thread.join(20)
    assert got == {**{i: 2 * i for i in range(12)}, 99: 6}


def test_a_waiter_that_gives_up_leaves_the_others_waiting(rig: Any, store_app: TaskQ) -> None:
    first, second = double(store_app).delay(1), double(store_app).delay(2)
    got: list[int] = []

    def give_up() -> None:
        with pytest.raises(TaskTimeout):
            first.get(timeout=0.1)

    leads = threading.Thread(target=give_up)
    follows = threading.Thread(target=lambda: got.append(second.get(timeout=20)))
    leads.start()
    follows.start()
    leads.join(20)
    rig.drain(store_app)
    follows.join(20)
    assert got == [4]


# ------------------------------------------------------------------------------------------------- what is not kept


def test_a_result_that_nobody_keeps(rig: Any, app: TaskQ) -> None:
    @app.task(ignore_result=True)
    def quiet() -> None: ...

    @app.task
    def kept() -> int:
        return 1

    for result in (quiet.delay(), kept.apply_async(ignore_result=True)):
        for ask in (
            result.get,
            lambda r=result: r.state,
            result.ready,
            result.forget,
            lambda r=result: asyncio.run(r.aget()),
        ):
            with pytest.raises(ResultNotKept, match="sent with ignore_result; set ignore_result=False"):
                ask()
    loud = quiet.apply_async(ignore_result=False)
    rig.drain(app)
    assert loud.get(timeout=1) is None


def test_without_a_store(rig: Any) -> None:
    app = rig.app("storeless")

    @app.task
    def task() -> int:
        return 1

    result = task.delay()
    rig.drain(app)
    for ask in (
        lambda: result.get(timeout=1),
        lambda: asyncio.run(result.aget(timeout=1)),
        lambda: app.AsyncResult("x").state,
    ):
        with pytest.raises(ResultNotKept, match=r"has no result store.*Set result_store"):
            ask()


def test_results_ignored_by_the_application(rig: Any) -> None:
    app = rig.app(ignore_result=True)
    app.task(name="task")(lambda: 1)
    app.task(name="wanted", ignore_result=False)(lambda: 2)
    result, wanted = app.tasks["task"].delay(), app.tasks["wanted"].delay()
    rig.drain(app)
    with pytest.raises(ResultNotKept):
        result.get()
    assert wanted.get(timeout=1) == 2
    assert app.AsyncResult(result.id).state == "UNKNOWN"


def test_a_worker_without_the_callers_store_says_so(rig: Any, caplog: pytest.LogCaptureFixture) -> None:
    caller = rig.app("split")
    caller.task(name="task")(lambda: 1)
    worker = TaskQ("other", broker=caller._code["broker"], result_store="none", isolated=True)
    rig.apps.append(worker)
    worker.task(name="task")(lambda: 1)
    caller.tasks["task"].delay()
    caller.tasks["task"].delay()
    rig.drain(worker)
    messages = [r.message for r in caplog.records if "callers of task task wait for results in memory://" in r.message]
    assert len(messages) == 1  # once, not per message
    assert "this worker writes to none" in messages[0]


# ---------------------------------------------------------------------------------------------- tracked states, ttl


def test_states_on_request(rig: Any) -> None:
    app = rig.app(track_queued=True, track_started=True)
    began, go_on = threading.Event(), threading.Event()

    @app.task
    def task() -> int:
        began.set()
        assert go_on.wait(10)
        return 1

    result, later = task.delay(), task.apply_async(countdown=1000)
    assert (result.state, later.state) == ("QUEUED", "SCHEDULED")
    with rig.work(app):
        assert began.wait(10)
        assert result.state == "STARTED"
        assert not result.ready()
        go_on.set()
        assert result.get(timeout=10) == 1
    assert result.state == "SUCCESS"


def test_results_live_as_long_as_configured(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app("split", result_ttl=5)
    app.task(name="task")(lambda: 1)
    stored: list[Any] = []
    put = app.store.put  # type: ignore[union-attr]
    monkeypatch.setattr(app.store, "put", lambda records: (stored.extend(records), put(records))[1])
    app.tasks["task"].delay()
    rig.drain(app)
    assert [record.ttl for record in stored] == [5.0]


# --------------------------------------------------------------------------------------------------- store trouble


def test_a_store_that_is_down_does_not_lengthen_a_timeout(
    rig: Any, store_app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = double(store_app).delay(1)
    store_app.connect()

    def down(*args: Any, **kwargs: Any) -> Any:
        raise StoreUnavailable("no route")

    for name in ("wait", "get"):
        monkeypatch.setattr(store_app.store, name, down)
    began = time.monotonic()
    with pytest.raises(TaskTimeout, match="its state is not known: no route"):
        result.get(timeout=0.1)
    with pytest.raises(TaskTimeout, match="its state is not known: no route"):
        asyncio.run(result.aget(timeout=0.1))
    assert time.monotonic() - began < 10  # not the half minute for which a store is asked again


def test_a_store_that_comes_back_while_one_waits(rig: Any, store_app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    result = double(store_app).delay(1)
    rig.drain(store_app)
    asked = threading.Event()

    def down(*args: Any, **kwargs: Any) -> Any:
        asked.set()
        raise StoreUnavailable("no route")

    fresh = rig.twin(store_app)
    fresh.connect()
    with monkeypatch.context() as patch:
        for name in ("wait", "get"):
            patch.setattr(fresh.store, name, down)
        got: list[int] = []
        thread = threading.Thread(target=lambda: got.append(fresh.AsyncResult(result.id).get(timeout=20)))
        thread.start()
        assert asked.wait(10)
        patch.undo()
        thread.join(20)
    assert got == [2]


def test_a_store_that_is_broken_for_good_is_said_at_once(
    rig: Any, store_app: TaskQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = double(store_app).delay(1)
    store_app.connect()

    def broken(*args: Any, **kwargs: Any) -> Any:
        error = StoreUnavailable("tables of another version")
        error.retryable = False
        raise error

    for name in ("wait", "get"):
        monkeypatch.setattr(store_app.store, name, broken)
    with pytest.raises(StoreUnavailable, match="another version"):
        result.get(timeout=10)
    with pytest.raises(StoreUnavailable, match="another version"):
        asyncio.run(result.aget(timeout=10))


def test_an_unreadable_record(rig: Any, app: TaskQ) -> None:
    assert app.store is not None
    app.store.put([Record("broken", "SUCCESS", b"\xff\xff")])
    result: AsyncResult[Any] = app.AsyncResult("broken")
    assert result.state == "SUCCESS"
    with pytest.raises(DecodeError, match="stored result cannot be read"):
        result.get(timeout=1)


def test_whoever_comes_later_does_not_wait_for_the_first(rig: Any, store_app: TaskQ) -> None:
    """One thread waits on the store for all; ids that are added meanwhile must be seen soon."""
    never = double(store_app).apply_async((1,), countdown=1000)
    got: list[Any] = []
    first = threading.Thread(target=lambda: got.append(never.get(timeout=20, propagate=False)))
    first.start()
    rig.eventually(lambda: store_app.waiter._leader is not None)
    with rig.work(store_app):
        took = []
        for i in range(10):
            began = time.monotonic()
            assert double(store_app).delay(i).get(timeout=20) == 2 * i
            took.append(time.monotonic() - began)
        assert sorted(took)[5] < 0.9, took
    assert store_app.store is not None
    store_app.store.put([Record(never.id, "REVOKED", b"")])
    first.join(10)
    assert isinstance(got[0], TaskRevoked)

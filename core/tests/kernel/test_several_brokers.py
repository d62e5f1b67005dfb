"""Several brokers in one application: what goes where, and that one that is away holds up nothing but its own."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from taskq import TaskQ
from taskq.cli.group import taskq as main
from taskq.errors import AuthenticationFailed, ConfigError, NotSupported, SendManyError, TransportError
from taskq.message import Job
from taskq.spi.pool import Finished
from taskq.worker.sharing import SharedPool
from taskq_lib_memory import forget


class Broken(TransportError):
    retryable = True


@pytest.fixture
def app(rig: Any) -> Iterator[TaskQ]:
    """``default`` is on the application's own broker, ``far`` on another one."""
    other = f"other-{uuid.uuid4().hex[:10]}"
    made: TaskQ = rig.app(
        "memory", brokers={"other": f"memory://{other}"}, queues={"far": {"broker": "other"}}, publish_retries=0
    )

    @made.task(name="near")
    def near(i: int) -> str:
        return f"near {i}"

    @made.task(name="far", queue="far")
    def far(i: int) -> str:
        return f"far {i}"

    yield made
    made.close()
    forget(other)


def lane(worker: Any, broker: str) -> Any:
    return next(lane for lane in worker.lanes if lane.broker == broker)


class Away:
    """Makes one of an application's brokers fail until it is told to be back."""

    def __init__(self, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
        self._patch, self._app = monkeypatch, app

    def goes(self, broker: str, *targets: Any) -> None:
        def fails(*args: Any, **kwargs: Any) -> Any:
            raise Broken("the test took it away")

        for target in (self._app.components.broker(broker), *targets):
            for name in ("send", "declare", "stats", "fetch", "settle", "extend", "commit", "flush", "subscribe"):
                if hasattr(target, name):
                    self._patch.setattr(target, name, fails)

    def back(self) -> None:
        self._patch.undo()


@pytest.fixture
def away(app: TaskQ) -> Iterator[Away]:
    with pytest.MonkeyPatch.context() as patch:
        yield Away(app, patch)


def test_each_queue_is_on_its_broker(rig: Any, app: TaskQ) -> None:
    results = [app.tasks[name].delay(i) for i in range(3) for name in ("near", "far")]
    assert app.components.broker("").stats(["default", "far"])["default"].ready == 3  # type: ignore[attr-defined]
    assert app.components.broker("other").stats(["far"])["far"].ready == 3  # type: ignore[attr-defined]
    assert "far" not in app.components.broker("").stats(["far"])  # type: ignore[attr-defined]
    with rig.work(app, "threads") as worker:
        assert [r.get(timeout=10) for r in results] == [f"{name} {i}" for i in range(3) for name in ("near", "far")]
        assert [lane.broker for lane in worker.lanes] == ["", "other"]
        assert sum(lane.settler.ended for lane in worker.lanes) == 6
        health = worker.health()
        assert (health.ready, health.queues, health.ended) == (True, ("default", "far"), 6)


def test_slots_are_shared(rig: Any, app: TaskQ) -> None:
    """A concurrency of two is two, however many brokers there are."""
    now, most, lock = 0, 0, threading.Lock()

    @app.task(name="count")
    def count() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1

    results = [count.apply_async(queue=queue) for _ in range(20) for queue in ("default", "far")]
    with rig.work(app, "threads", concurrency=2):
        for result in results:
            result.get(timeout=20)
    assert most == 2


@pytest.mark.parametrize("gone", ["", "other"])
def test_one_broker_that_is_away_holds_up_its_own_only(
    rig: Any, app: TaskQ, away: Away, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    # results are on a store of their own: the default one is on the application's broker
    caplog.set_level(logging.INFO, "taskq.worker")
    mine, other = ("near", "far") if gone else ("far", "near")
    runs: list[str] = []

    @app.task(name="note")
    def note(i: int, broker: str) -> None:
        runs.append(f"{broker}{i}")

    queues = {"near": "default", "far": "far"}
    with rig.work(app, "threads") as worker:
        waiting = [note.apply_async((i, other), queue=queues[other]) for i in range(1)]
        rig.eventually(lambda: len(runs) == 1)
        waiting[0].get(timeout=10)
        broken = lane(worker, gone)
        away.goes(gone, broken.consumer, *filter(None, [broken.settler._committer]))
        rig.eventually(lambda: broken.broker_down)
        with pytest.raises(Broken):
            note.apply_async((9, other), queue=queues[other])
        for i in range(10):
            note.apply_async((i, mine), queue=queues[mine])
        rig.eventually(lambda: len([run for run in runs if run.startswith(mine)]) == 10)
        health = worker.health()
        assert health.live
        assert not health.ready
        assert any(f"the broker {gone or broken.label} is not available" in reason for reason in health.reasons)
        away.back()
        rig.eventually(lambda: not broken.broker_down)
        note.apply_async((1, other), queue=queues[other])
        rig.eventually(lambda: f"{other}1" in runs)
        assert worker.health().ready
    assert f"the broker {gone or broken.label} is not available" in caplog.text
    assert f"the broker {gone or broken.label} is back" in caplog.text


def test_what_ended_is_settled_when_its_broker_is_back(rig: Any, app: TaskQ, away: Away) -> None:
    gate, runs = threading.Event(), []

    @app.task(name="held", queue="far")
    def held() -> int:
        gate.wait(20)
        runs.append(1)
        return 7

    with rig.work(app, "threads", concurrency=3) as worker:
        result = held.delay()
        far = lane(worker, "other")
        rig.eventually(lambda: far.held)
        away.goes("other", far.consumer)
        gate.set()
        rig.eventually(lambda: far.settler.blocked)
        assert app.tasks["near"].delay(1).get(timeout=10) == "near 1"
        away.back()
        assert result.get(timeout=10) == 7
        rig.eventually(lambda: not far.settler.waiting)
    assert runs == [1]


def test_a_broker_that_is_away_at_the_start_is_waited_for(
    rig: Any, app: TaskQ, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "taskq.worker")
    app.connect()
    result = app.tasks["far"].delay(1)
    app.close()
    gone, make = True, app.components.make_transport

    def sometimes(broker: str = "") -> Any:
        transport = make(broker)
        if broker and gone:

            def fails() -> None:
                raise Broken("not there yet")

            transport.open = fails  # type: ignore[method-assign]
        return transport

    monkeypatch.setattr(app.components, "make_transport", sometimes)
    with rig.work(app, "threads") as worker:
        assert app.tasks["near"].delay(1).get(timeout=10) == "near 1"
        assert not lane(worker, "other").up
        assert worker.health().reasons == ("the broker other is not available",)
        assert worker.running() == []
        gone = False
        assert result.get(timeout=10) == "far 1"
        rig.eventually(lambda: worker.health().ready)
    assert "starts without it, and waits for it" in caplog.text
    assert "its queues are served from now on" in caplog.text


def test_a_worker_that_never_saw_one_of_its_brokers_ends_well(rig: Any, app: TaskQ, monkeypatch: Any) -> None:
    make = app.components.make_transport

    def never(broker: str = "") -> Any:
        if not broker:
            raise Broken("never there")
        return make(broker)

    app.store  # noqa: B018  opened while it can be
    monkeypatch.setattr(app.components, "make_transport", never)
    app.tasks["far"].apply_async((1,), ignore_result=True)
    with rig.work(app, "threads") as worker:
        rig.eventually(lambda: lane(worker, "other").settler.ended == 1)


def test_a_broker_that_refuses_us_ends_the_start(rig: Any, app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    make = app.components.make_transport

    def refused(broker: str = "") -> Any:
        if broker:
            raise AuthenticationFailed("wrong password")
        return make(broker)

    monkeypatch.setattr(app.components, "make_transport", refused)
    with pytest.raises(AuthenticationFailed, match="wrong password"):
        app.worker(pool="threads").start()


def test_a_broker_that_refuses_us_later_ends_the_worker(rig: Any, app: TaskQ, monkeypatch: Any) -> None:
    with rig.work(app, "threads", exit_code=1) as worker:

        def refused(*args: Any, **kwargs: Any) -> Any:
            raise AuthenticationFailed("the password was changed")

        monkeypatch.setattr(lane(worker, "other").consumer, "fetch", refused)
        lane(worker, "other").wake()
        rig.eventually(lambda: not worker._thread.is_alive())
    assert isinstance(worker._failure, AuthenticationFailed)


def test_what_may_be_held_is_shared(rig: Any, app: TaskQ) -> None:
    gate = threading.Event()
    app.task(name="wait")(lambda: gate.wait(20))
    for queue in ("default", "far"):
        app.send_many([app.tasks["wait"].s().set(queue=queue) for _ in range(10)])
    with rig.work(app, "threads", concurrency=1, prefetch=4) as worker:
        rig.eventually(lambda: all(lane.held for lane in worker.lanes))
        time.sleep(0.2)
        assert worker.held_count() <= 4
        gate.set()
        rig.wait_empty(app)
        rig.eventually(lambda: worker.held_count() == 0)
    with pytest.raises(ConfigError, match=r"worker\.prefetch is 1, but this worker takes messages from 2 brokers"):
        app.worker(pool="threads", prefetch=1).start()


def test_solo_serves_one_broker(rig: Any, app: TaskQ) -> None:
    with pytest.raises(NotSupported, match=r"pool solo .* serves one broker.* other \(memory:"):
        app.worker(pool="solo").start()
    result = app.tasks["far"].delay(1)
    with rig.work(app, "solo", queues=["far"]):
        assert result.get(timeout=10) == "far 1"


def test_several_pools_on_several_brokers(rig: Any, app: TaskQ) -> None:
    @app.task(name="coroutine")
    async def coroutine(i: int) -> int:
        return i

    with rig.work(app, "threads=2,asyncio=2"):
        results = [app.tasks["near"].delay(1), app.tasks["far"].delay(2)]
        results += [coroutine.apply_async((i,), queue=queue) for i in range(20) for queue in ("default", "far")]
        for result in results:
            result.get(timeout=10)


def test_retries_and_dead_letters_stay_on_the_broker(rig: Any, app: TaskQ) -> None:
    @app.task(name="fails", queue="far", max_retries=1, retry_backoff=0.01)
    def fails() -> None:
        raise ValueError("no")

    result = fails.delay()
    with rig.work(app, "threads"):
        with pytest.raises(ValueError, match="no"):
            result.get(timeout=10)
        rig.eventually(lambda: "far.dead" in app.components.broker("other").stats(["far.dead"]))  # type: ignore[attr-defined]
    assert app.components.broker("other").stats(["far.dead"])["far.dead"].ready == 1  # type: ignore[attr-defined]
    assert "far.dead" not in app.components.broker("").stats(["far.dead"])  # type: ignore[attr-defined]


def test_what_is_sent_to_both_at_once(app: TaskQ, away: Away) -> None:
    near, far = app.tasks["near"], app.tasks["far"]
    assert len(app.send_many([near.s(1), far.s(2), near.s(3)])) == 3
    away.goes("other")
    with pytest.raises(SendManyError, match="2 of 3 messages were accepted, 1 were not, 0 are in doubt") as caught:
        app.send_many([near.s(1), far.s(2), near.s(3)])
    assert [len(part) for part in (caught.value.accepted, caught.value.failed, caught.value.unknown)] == [2, 1, 0]
    away.back()
    with pytest.raises(NotSupported, match="cannot span brokers"):
        app.send_many([near.s(1), far.s(2)], transaction=object())


def test_coroutines_send_to_both(app: TaskQ) -> None:
    near, far = app.tasks["near"], app.tasks["far"]

    async def send() -> None:
        await near.adelay(1)
        await far.adelay(2)
        await app.asend_many([near.s(1), far.s(2)])
        await app.asend_task("unknown", queue="far")

    asyncio.run(send())
    assert app.components.broker("").stats(["default"])["default"].ready == 2  # type: ignore[attr-defined]
    assert app.components.broker("other").stats(["far"])["far"].ready == 3  # type: ignore[attr-defined]


def test_a_client_needs_only_the_broker_that_it_sends_to(app: TaskQ, monkeypatch: pytest.MonkeyPatch) -> None:
    make = app.components.make_transport

    def only_other(broker: str = "") -> Any:
        if not broker:
            raise Broken("away")
        return make(broker)

    monkeypatch.setattr(app.components, "make_transport", only_other)
    app.tasks["far"].delay(1)
    with pytest.raises(TransportError, match="away"):
        app.tasks["near"].delay(1)


def test_commands_ask_each_broker(rig: Any, app: TaskQ, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over files, as another process would: nothing of this application is used."""
    near, far = f"sqlite:///{tmp_path}/near.db", f"sqlite:///{tmp_path}/far.db"
    (tmp_path / "taskq.toml").write_text(
        f'broker = "{near}"\n[brokers]\nother = "{far}"\n[queues.far]\nbroker = "other"\n'
    )
    monkeypatch.chdir(tmp_path)
    sender = TaskQ("commands")
    for queue in ("default", "far", "far"):
        sender.send_task("nobody", queue=queue)

    def run(*arguments: str) -> Any:
        result = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    assert {row["queue"]: row["ready"] for row in run("queues")} == {"default": 1, "far": 2}

    @sender.task(name="dies", queue="far")
    def dies() -> None:
        raise ValueError("no")

    run("purge", "-f")
    dies.delay()
    with rig.work(sender, "threads"):
        rig.eventually(lambda: run("queues")[1]["dead"] == 1)
    assert [entry["task"] for entry in run("dead", "list")] == ["dies"]
    assert run("dead", "replay", "--all", "--to", "default") == {"default": 0, "far": 1}
    assert {row["queue"]: (row["ready"], row["dead"]) for row in run("queues")} == {"default": (1, 0), "far": (0, 0)}
    checks = {row["check"]: row["problem"] for row in json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)}
    assert checks["broker other"] == ""
    output = CliRunner().invoke(main, ["maintain"]).output
    assert output.splitlines() == ["broker: done", "broker other: done", "result store: done"]
    sender.close()


# ------------------------------------------------------------------------------------------- the pool they share


class FakePool:
    """Takes so many, gives them back as a pool does."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.jobs: list[Job] = []

    def free(self) -> int:
        return self.most - len(self.jobs)

    def submit(self, jobs: list[Job]) -> int:
        taken = jobs[: self.free()]
        self.jobs += taken
        return len(taken)

    def take_back(self, limit: int) -> list[int]:
        back = [self.jobs.pop().key for _ in range(min(limit, len(self.jobs)))]
        self.most -= 1  # somebody resized it meanwhile
        return back


class FakeEngine:
    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.looked = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.heard.append((name, *arguments))

    def room_made(self) -> None:
        self.looked += 1


def make_job(key: int) -> Job:
    return Job(key, b"", "t", "q", 1, 0, None, None)


@pytest.fixture
def two() -> tuple[FakePool, SharedPool, Any, Any]:
    pool = FakePool(6)
    shared = SharedPool(pool)  # type: ignore[arg-type]
    one, other = shared.share(), shared.share()
    one.engine, other.engine = FakeEngine(), FakeEngine()  # type: ignore[assignment]
    return pool, shared, one, other


def test_a_share_takes_back_its_own(two: Any) -> None:
    pool, _, one, other = two
    assert one.submit([make_job(1), make_job(2)]) == 2
    assert other.submit([make_job(3), make_job(4)]) == 2
    assert one.submit([make_job(5), make_job(6), make_job(7)]) == 2
    assert one.take_back(1 << 30) == [6, 5, 2, 1]
    assert [job.key for job in pool.jobs] == [3, 4], "what is of others stays, in order"
    assert other.take_back(1 << 30) == [4, 3]


def test_what_finds_no_room_again_is_handed_back(two: Any) -> None:
    pool, _, one, other = two
    one.submit([make_job(1)])
    other.submit([make_job(2), make_job(3), make_job(4)])
    pool.most = 3
    assert one.take_back(1 << 30) == [1]
    assert [job.key for job in pool.jobs] == [2, 3]
    assert other.engine.heard == [("returned", [4])]


def test_each_hears_of_its_own_and_that_there_is_room(two: Any) -> None:
    _, shared, one, other = two
    one.submit([make_job(1), make_job(2)])
    other.submit([make_job(3), make_job(4)])
    ends = [Finished(key, None, 0.0) for key in (1, 99)]  # type: ignore[arg-type]
    shared.finished(ends)
    assert one.engine.heard == [("finished", ends[:1])]
    assert (one.engine.looked, other.engine.looked) == (0, 1)
    shared.crashed([2], [3], "it died")
    assert one.engine.heard[1:] == [("crashed", [2], (), "it died")]
    assert other.engine.heard == [("crashed", (), [3], "it died")]
    shared.returned([4])
    assert other.engine.heard[1:] == [("returned", [4])]

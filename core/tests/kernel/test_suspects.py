"""Crash loops end, hand-backs do not count, and whoever does not know a task leaves it to others."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from msgspec import structs

from taskq import TaskQ, current_request, envelope
from taskq.envelope import PARKED
from taskq.errors import StoreUnavailable, TaskDead
from taskq.message import RELEASE, Job, Lost, Outcome, Settlement
from taskq.runtime import TaskRuntime
from taskq.spi import DeliveryCount
from taskq_transport_memory.consumer import MemoryConsumer
from taskq_transport_memory.transport import MemoryTransport


@pytest.fixture
def runs() -> list[Any]:
    return []


@pytest.fixture(params=["memory", "split", "storeless", "sqlite"])
def any_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def counting(app: TaskQ, runs: list[Any]) -> Any:
    @app.task(name="count")
    def count() -> int:
        runs.append(current_request().deliveries)
        return len(runs)

    return count


def test_a_crash_loop_ends_in_the_dead_letter_queue(rig: Any, any_backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(any_backend, max_deliveries=3)
    count = counting(app, runs)
    result = count.delay()
    if any_backend == "storeless":  # nothing but the broker's count to go by
        rig.crash(app, times=3)
    else:
        _crash_in_workers(rig, app, 3)
    with rig.work(app, pool):
        rig.wait_empty(app)
    assert runs == []
    ((info, payload),) = rig.dead(app)
    assert (info.id, info.task, info.state, info.deliveries) == (result.id, "count", "DEAD", 4)
    assert "started 3 times without an outcome (max_deliveries is 3)" in info.reason
    assert envelope.decode(payload)[0].id == result.id
    if any_backend != "storeless":
        assert result.state == "DEAD"
        with pytest.raises(TaskDead, match="started 3 times"):
            result.get(timeout=1)


def _crash_in_workers(rig: Any, app: TaskQ, times: int) -> None:
    """Have the next message started and lost by one worker after another, as kills would leave it."""
    rig.crash(app)
    for _ in range(times - 1):
        # what a worker does up to the start, then death: the start is on record, the delivery without an end
        worker = app.worker(pool="solo")
        worker._prepare()
        (job,) = worker.lanes[0].engine.admit(worker.lanes[0].engine.fetch(1, 2.0)) or worker.lanes[0].engine.suspects
        assert worker.lanes[0].admission.clear(job)
        assert not worker.lanes[0].consumer.settle([Settlement(job.delivery.receipt, RELEASE, 0.0, True)])
        worker.lanes[0].consumer.close()


def test_a_process_that_dies_under_a_task_counts_as_a_start(
    rig: Any, backend: str, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pool reports a crash; here the runtime's own, as no process dies in a test of threads."""
    app = rig.app(backend, max_deliveries=2)
    count = counting(app, runs)
    app.task(name="deadly")(lambda: None)
    execute = TaskRuntime.execute

    def dies(self: TaskRuntime, job: Job) -> Outcome:
        if job.task == "deadly":
            raise MemoryError("as if killed")
        return execute(self, job)

    monkeypatch.setattr(TaskRuntime, "execute", dies)
    with rig.work(app, pool):
        result = app.tasks["deadly"].delay()
        with pytest.raises(TaskDead):
            result.get(timeout=10)
        assert count.delay().get(timeout=10) == 1
        rig.wait_empty(app)
    ((info, _),) = rig.dead(app)
    assert (info.task, info.state) == ("deadly", "DEAD")


def test_below_the_limit_it_runs_again(rig: Any, any_backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(any_backend, max_deliveries=3)
    counting(app, runs).delay()
    rig.crash(app, times=2)
    rig.drain(app, pool)
    assert runs == [3]
    assert rig.dead(app) == []


def test_hand_backs_of_unstarted_messages_do_not_count(rig: Any, any_backend: str, pool: str, runs: list[Any]) -> None:
    app = rig.app(any_backend, max_deliveries=2)
    count = counting(app, runs)
    count.delay()
    for _ in range(50):
        consumer, (delivery,) = rig.fetch(app)
        consumer.settle([Settlement(delivery.receipt, RELEASE)])
        consumer.close()
    rig.drain(app, pool)
    assert runs == [1]


def test_lost_before_the_start_does_not_count_where_starts_are_on_record(
    rig: Any, backend: str, pool: str, runs: list[Any]
) -> None:
    """A worker that was killed held hundreds of messages; those that it had not started are innocent."""
    app = rig.app(backend, max_deliveries=2)
    counting(app, runs).delay()
    rig.crash(app, times=20)
    rig.drain(app, pool)
    assert len(runs) == 1
    assert rig.dead(app) == []


def test_suspects_start_one_at_a_time(rig: Any, backend: str, runs: list[Any]) -> None:
    """One of them may kill the worker: the others must not be with it then."""
    app = rig.app(backend)
    lock, most = threading.Lock(), []

    @app.task
    def work(i: int) -> int:
        with lock:
            runs.append(i)
            most.append(len(runs))
        threading.Event().wait(0.01)
        with lock:
            runs.remove(i)
        return i

    results = app.send_many([work.s(i) for i in range(6)])
    consumer, deliveries = rig.fetch(app, limit=6)
    consumer.settle([Settlement(d.receipt, RELEASE, 0.0, True) for d in deliveries])
    consumer.close()
    with rig.work(app, "threads", concurrency=4):
        assert [r.get(timeout=10) for r in results] == list(range(6))
    assert max(most) == 1


def test_a_suspect_waits_while_the_store_cannot_be_asked(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app("split")
    count = counting(app, runs)
    result = count.delay()
    rig.crash(app)
    asked = threading.Event()

    def down(ids: Any) -> Any:
        asked.set()
        raise StoreUnavailable("no route")

    app.connect()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.store, "get", down)
        with rig.work(app, pool):
            assert asked.wait(10)
            assert runs == []
            patch.undo()
            assert result.get(timeout=10) == 1


# ------------------------------------------------------------------------------------------ brokers that count badly


@pytest.fixture(params=[DeliveryCount.REDELIVERED, DeliveryCount.COUNTS_RELEASES])
def counting_badly(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DeliveryCount:
    """Have the memory transport tell "again" only, or count every release, whatever it is asked to count."""
    count: DeliveryCount = request.param
    weaker = structs.replace(MemoryTransport.capabilities.fget(None), delivery_count=count)  # type: ignore[attr-defined]
    monkeypatch.setattr(MemoryTransport, "capabilities", property(lambda self: weaker))
    fetch, settle = MemoryConsumer.fetch, MemoryConsumer.settle

    def fetch_badly(self: Any, *args: Any, **options: Any) -> Any:
        fetched = fetch(self, *args, **options)
        if count is DeliveryCount.REDELIVERED:
            for delivery in fetched.deliveries:
                delivery.deliveries = min(2, delivery.deliveries)
        return fetched

    def settle_badly(self: Any, settlements: Any) -> Any:
        return settle(self, [structs.replace(s, counted=True) for s in settlements])

    monkeypatch.setattr(MemoryConsumer, "fetch", fetch_badly)
    monkeypatch.setattr(MemoryConsumer, "settle", settle_badly)
    return count


@pytest.mark.parametrize("kind", ["memory", "storeless"])
def test_a_crash_loop_ends_where_the_broker_cannot_count(
    rig: Any, pool: str, kind: str, runs: list[Any], counting_badly: DeliveryCount, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app(kind, max_deliveries=3)
    counting(app, runs)
    app.task(name="deadly")(lambda: None)
    starts: list[str] = []
    execute = TaskRuntime.execute

    def dies(self: TaskRuntime, job: Job) -> Outcome:
        if job.task == "deadly":
            starts.append(job.task)
            raise MemoryError("as if killed")
        return execute(self, job)

    monkeypatch.setattr(TaskRuntime, "execute", dies)
    app.tasks["deadly"].delay()
    with rig.work(app, pool):
        rig.eventually(lambda: rig.dead(app))
        rig.wait_empty(app)
    ((info, _),) = rig.dead(app)
    assert (info.task, info.state) == ("deadly", "DEAD")
    assert len(starts) == (3 if kind == "memory" else 9), "where nothing counts starts, more is forgiven"


@pytest.mark.parametrize("kind", ["memory", "storeless"])
def test_a_message_that_came_again_runs_where_the_broker_cannot_count(
    rig: Any, pool: str, kind: str, runs: list[Any], counting_badly: DeliveryCount
) -> None:
    app = rig.app(kind, max_deliveries=3)
    result = counting(app, runs).delay()
    rig.crash(app, times=2)
    rig.drain(app, pool)
    assert len(runs) == 1
    assert rig.dead(app) == []
    if kind == "memory":
        assert result.get(timeout=10) == 1


# --------------------------------------------------------------------------------------------------- unknown tasks


def test_an_unknown_task_is_offered_to_others_first(
    rig: Any, backend: str, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """During a deployment an old worker meets a task of the new release; a new worker then runs it."""
    monkeypatch.setattr("taskq.worker.admission._PARK_DELAY", 0.2)
    old = rig.app(backend)
    old.task(name="old")(lambda: None)
    result = old.send_task("count")
    with rig.work(old, pool):
        rig.eventually(lambda: rig.counts(old) == (0, 0, 1))
    (header,) = rig.headers(old)
    assert header.id == result.id
    assert header.get(PARKED) == pytest.approx(header.enqueued_at, abs=60)
    assert rig.dead(old) == []
    new = rig.twin(old)
    counting(new, runs)
    with rig.work(new, pool):
        assert result.get(timeout=10) == 1
    assert runs == [1]


def test_the_offer_ends(rig: Any, pool: str, runs: list[Any]) -> None:
    app = rig.app(unknown_task_wait=0.05)
    counting(app, runs)
    result = app.send_task("nobody.knows")
    with rig.work(app, pool):
        rig.eventually(lambda: result.state == "DEAD")
        rig.wait_empty(app)
    ((info, payload),) = rig.dead(app)
    assert "within 0.05 s" in info.reason
    assert envelope.decode(payload)[0].task == "nobody.knows"


def test_what_was_lost_before_its_start_here_is_not_held_against_it(
    rig: Any, pool: str, runs: list[Any], counting_badly: DeliveryCount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker that dies again and again gives back what was only waiting in a worker; that killed nobody."""
    app = rig.app("storeless", max_deliveries=1)
    monkeypatch.setattr("taskq.worker.admission._FORGIVEN", 1)
    gate = threading.Event()
    app.task(name="block")(lambda: gate.wait(20))
    count = counting(app, runs)
    options = {"concurrency": 1} if pool == "threads" else {}
    monkeypatch.setattr("taskq.worker.take.TakeEstimator.target", lambda self: 4)
    monkeypatch.setattr("taskq.worker.keeper._SLOW_TICKS", 10**9)
    with rig.work(app, pool, **options) as worker:
        app.send_many([app.tasks["block"].s(), count.s()])
        job = rig.eventually(lambda: next((j for j in list(worker.lanes[0].held.values()) if j.task == "count"), None))
        receipt = job.delivery.receipt
        worker.lanes[0].consumer.settle([Settlement(receipt, RELEASE, 0.0, True)])
        worker.lanes[0].engine.lost([Lost(receipt, "the test's own")])
        gate.set()
        rig.wait_empty(app)
    assert len(runs) == 1
    assert rig.dead(app) == []

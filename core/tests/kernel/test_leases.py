"""Leases: kept while a task runs, adopted when they were lost meanwhile, and never hoarded behind a slow task."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from taskq import TaskQ, current_request
from taskq.envelope import Header
from taskq.errors import TimeLimitExceeded
from taskq.message import DONE, RELEASE, Delivery, Job, Lost, Outcome, Settlement
from taskq.spi import Finished, HandBack


@pytest.fixture
def runs() -> list[Any]:
    return []


class Gate:
    """A task's stop: it says that it has begun and waits until it may go on."""

    def __init__(self) -> None:
        self.began, self.go_on = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.began.set()
        assert self.go_on.wait(20)


@pytest.fixture
def gate() -> Any:
    made = Gate()
    yield made
    made.go_on.set()


def gated(app: TaskQ, gate: Gate, runs: list[Any]) -> Any:
    @app.task(name="gated")
    def task(i: int = 0) -> int:
        runs.append(i)
        if i == 0 and not gate.began.is_set():
            gate()
        return i

    return task


def lose(app: TaskQ, worker: Any) -> None:
    """Let the worker's lease end, as a stopped process or a cut network does."""
    server = app.transport.server  # type: ignore[attr-defined]
    with server.lock:
        worker.lanes[0].consumer.deadline = 0.0
        server.queues.reap(server.clock.monotonic())


def test_a_task_that_outlasts_many_leases_runs_once(
    rig: Any, backend: str, pool: str, runs: list[Any], gate: Gate
) -> None:
    app = rig.app(backend, lease=1.0)
    task = gated(app, gate, runs)
    result = task.delay()
    other = rig.twin(app, lease=app.settings.lease)
    gated(other, gate, runs)
    with rig.work(app, pool), rig.work(other, pool):
        assert gate.began.wait(10)
        threading.Event().wait(2.5 * app.settings.lease)
        assert rig.counts(app) == (0, 1, 0)
        gate.go_on.set()
        assert result.get(timeout=10) == 0
    assert runs == [0]


@pytest.mark.parametrize("backend", ["memory", "split"])
def test_a_message_that_comes_back_to_its_running_task_is_adopted(
    rig: Any, backend: str, pool: str, runs: list[Any], gate: Gate
) -> None:
    app = rig.app(backend, lease=0.5)
    task = gated(app, gate, runs)
    result = task.delay()
    with rig.work(app, pool) as worker:
        assert gate.began.wait(10)
        lose(app, worker)
        if pool == "solo":  # its thread is in the task: it fetches when that has ended
            rig.eventually(lambda: worker.lanes[0].admission.orphans)
        else:
            rig.eventually(lambda: rig.counts(app) == (0, 1, 0))
            rig.eventually(lambda: not worker.lanes[0].admission.orphans)
        gate.go_on.set()
        assert result.get(timeout=10) == 0
        rig.wait_empty(app)
    assert runs == [0]


def orphan(rig: Any, app: Any, worker: Any) -> int:
    """Have the one running task lose its lease, without its message coming back yet; return its key."""
    (job,) = worker.lanes[0].held.values()
    worker.lanes[0].engine.lost([Lost(job.delivery.receipt, "the test's own")])
    assert list(worker.lanes[0].admission.orphans.values()) == [job]
    return int(job.key)


def test_a_run_that_died_after_its_lease_is_not_waited_for(rig: Any, runs: list[Any], gate: Gate) -> None:
    """Its message would else be adopted by a run that is no more, and stay for ever."""
    app = rig.app()
    result = gated(app, gate, runs).delay()
    with rig.work(app, "threads", concurrency=2) as worker:
        assert gate.began.wait(10)
        receipt = next(iter(worker.lanes[0].held.values())).delivery.receipt
        key = orphan(rig, app, worker)
        worker.lanes[0].engine.crashed([key], [], "its process died")
        assert not worker.lanes[0].admission.orphans
        gate.go_on.set()
        worker.lanes[0].consumer.settle([Settlement(receipt, RELEASE, 0.0, True)])
        assert result.get(timeout=10) == 0
        rig.wait_empty(app)
    assert len(runs) == 2


def test_a_run_that_was_ended_after_its_lease_keeps_that_outcome(rig: Any, runs: list[Any], gate: Gate) -> None:
    app = rig.app()
    task = gated(app, gate, runs)
    result = task.delay()
    with rig.work(app, "threads", concurrency=2) as worker:
        assert gate.began.wait(10)
        receipt = next(iter(worker.lanes[0].held.values())).delivery.receipt
        key = orphan(rig, app, worker)
        worker.lanes[0].engine.aborted([key], TimeLimitExceeded("too long"))
        worker.lanes[0].consumer.settle([Settlement(receipt, RELEASE, 0.0, True)])
        with pytest.raises(TimeLimitExceeded, match="too long"):
            result.get(timeout=10)
        gate.go_on.set()
        rig.wait_empty(app)
    assert len(runs) == 1


def test_what_came_back_is_run_when_it_was_not_ours(rig: Any, pool: str, runs: list[Any]) -> None:
    app = rig.app()

    @app.task
    def work() -> int:
        return current_request().deliveries

    result = work.delay()
    consumer, _ = rig.fetch(app)
    consumer.deadline = 0.0
    with rig.work(app, pool):
        assert result.get(timeout=10) == 2


def test_unstarted_copies_of_lost_messages_are_dropped(rig: Any, pool: str, runs: list[Any], gate: Gate) -> None:
    app = rig.app(lease=0.5)
    task = gated(app, gate, runs)
    app.send_many([task.s(i) for i in range(1, 200)])  # quick ones, so that several are taken at once
    with rig.work(app, pool, concurrency=1) as worker:
        rig.eventually(lambda: len(runs) == 199)
        rig.wait_empty(app)
        worker.lanes[0].engine.unstarted = list  # the keeper may not hand them back first
        results = app.send_many([task.s(i) for i in (0, 201, 202, 203, 204)])
        assert gate.began.wait(10)
        rig.eventually(lambda: len(worker.lanes[0].held) >= 2)
        lose(app, worker)
        if pool == "solo":  # threads take back at once what they lost
            rig.eventually(lambda: not worker.lanes[0].held)
        del worker.lanes[0].engine.unstarted
        other = rig.twin(app)
        gated(other, gate, runs)
        with rig.work(other, pool, concurrency=1):
            assert [r.get(timeout=10) for r in results[1:]] == [201, 202, 203, 204]
            gate.go_on.set()
            assert results[0].get(timeout=10) == 0
            rig.wait_empty(app)
    assert sorted(i for i in runs if i > 200) == [201, 202, 203, 204]


def test_what_waits_behind_a_slow_task_is_handed_back(
    rig: Any, backend: str, pool: str, runs: list[Any], gate: Gate
) -> None:
    """Messages were taken ahead while tasks were quick; one turns out slow: another worker must get the rest."""
    app = rig.app(backend)
    task = gated(app, gate, runs)
    app.send_many([task.s(i) for i in [*range(1, 300), 0, *range(300, 320)]])
    with rig.work(app, pool, concurrency=1):
        assert gate.began.wait(20)
        rig.eventually(lambda: rig.counts(app)[1] == 1)
        left = rig.counts(app)[0]
        other = rig.twin(app)
        gated(other, gate, runs)
        with rig.work(other, pool, concurrency=1):
            rig.eventually(lambda: rig.counts(app)[0] == 0)
            rig.eventually(lambda: len(runs) == 320)
        gate.go_on.set()
        rig.wait_empty(app)
    assert left <= 20
    assert sorted(runs) == list(range(320))  # each once, and in order
    assert runs == [*range(1, 300), 0, *range(300, 320)]


def test_nothing_is_taken_ahead_where_it_cannot_be_handed_back(
    rig: Any, runs: list[Any], gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    import msgspec

    app = rig.app()
    never = msgspec.structs.replace(app.transport.capabilities, hand_back=HandBack.NO)
    monkeypatch.setattr(type(app.transport), "capabilities", property(lambda self: never))
    task = gated(app, gate, runs)
    app.send_many([task.s(i) for i in [*range(1, 50), 0, *range(50, 60)]])
    with rig.work(app, "threads", concurrency=2):
        most = 0

        def watch() -> bool:
            nonlocal most
            most = max(most, rig.counts(app)[1])
            return gate.began.is_set() and len(runs) == 60

        rig.eventually(watch)
        gate.go_on.set()
        rig.wait_empty(app)
    assert most <= 2


def test_prefetch_is_the_most_that_is_held(rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app()
    app.task(name="noop")(lambda: None)
    with rig.work(app, pool, prefetch=3) as worker:
        assert worker.lanes[0].consumer._credit <= 3


def test_what_ended_before_a_slow_task_does_not_wait_for_it(
    rig: Any, backend: str, runs: list[Any], gate: Gate
) -> None:
    """The solo pool runs a slice of jobs before it reports; a slow one among them must not hold the others' results."""
    app = rig.app(backend)
    task = gated(app, gate, runs)
    warm_up = app.send_many([task.s(i) for i in range(1, 300)])
    results = app.send_many([task.s(i) for i in (300, 301, 302, 0)])
    with rig.work(app):
        assert gate.began.wait(20)
        assert [r.get(timeout=10) for r in results[:3]] == [300, 301, 302]
        assert [r.get(timeout=10) for r in warm_up] == list(range(1, 300))
        assert not results[3].ready()
        gate.go_on.set()
        assert results[3].get(timeout=10) == 0
        rig.wait_empty(app)
    assert len(runs) == 303


def test_runs_whose_message_never_comes_back_are_forgotten(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskq.worker.engine._ORPHANS", 2)
    app = rig.app()
    app.task(name="noop")(lambda i: i)
    with rig.work(app, pool) as worker:
        jobs = [
            Job(-i, b"", "noop", "default", 1, 0, Header(f"x{i}", "noop"), Delivery(b"", f"r{i}", "default"))
            for i in range(1, 6)
        ]
        worker.lanes[0].held.update({job.key: job for job in jobs})
        worker.lanes[0].engine.lost([Lost(f"r{i}") for i in range(1, 6)])
        assert not worker.lanes[0].held
        worker.lanes[0].engine.collect([Finished(job.key, Outcome(DONE, "SUCCESS"), 0.0) for job in jobs])
        assert len(worker.lanes[0].admission.orphans) == 2
        assert len(worker.lanes[0].finished_orphans) == 2


def test_jobs_on_their_way_to_the_pool_are_not_handed_back_too(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Intake and keeper move jobs at the same time: each job is run here or given back, not both and not neither."""
    app = rig.app()
    ran: list[int] = []
    app.task(name="work")(ran.append)
    with rig.work(app, "threads", concurrency=2) as worker:
        submit, threads = worker.pool.submit, []

        def hand_back() -> None:
            worker.lanes[0].engine.give_back(worker.lanes[0].engine.unstarted())
            worker.lanes[0].engine.settle_soon()

        def while_the_keeper_hands_back(jobs: Any) -> int:
            thread = threading.Thread(target=hand_back)
            threads.append(thread)
            thread.start()
            thread.join(0.02)
            return int(submit(jobs))

        monkeypatch.setattr(worker.pool, "submit", while_the_keeper_hands_back)
        app.send_many([app.tasks["work"].s(i) for i in range(40)])
        rig.wait_empty(app)
        for thread in threads:
            thread.join(10)
        monkeypatch.undo()
        rig.wait_empty(app)
    assert sorted(ran) == list(range(40))


def test_autoscaling_does_not_hold_up_the_leases(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker may take its time to count messages."""
    app = rig.app(lease=0.3)
    app.task(name="work")(lambda: 1)
    entered, go_on = threading.Event(), threading.Event()

    def slow(queues: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return {}

    component = type(app).component
    idle = type("Idle", (), {"decide": lambda self, sample, state: (sample.slots, state)})()
    monkeypatch.setattr(type(app), "component", lambda s, k, n: idle if k == "autoscaler" else component(s, k, n))
    with rig.work(app, "threads", concurrency=None, autoscale=(1, 2)) as worker:
        extended = []
        consumer = worker.lanes[0].consumer
        extend = consumer.extend
        monkeypatch.setattr(consumer, "extend", lambda receipts=None: (extended.append(1), extend(receipts))[1])
        monkeypatch.setattr(app.transport, "stats", slow)
        assert entered.wait(20)
        seen = len(extended)
        rig.eventually(lambda: len(extended) >= seen + 3)
        go_on.set()
        monkeypatch.undo()


def test_an_end_that_meets_its_adoption_is_settled(rig: Any, pool: str, app: TaskQ) -> None:
    """The run ends just as its message comes back: whoever looks second must see it."""
    app.task(name="noop")(lambda: None)
    with rig.work(app, pool) as worker:
        app.tasks["noop"].delay()
        rig.wait_empty(app)
        job = Job(9999, b"", "noop", "default", 1, 0, Header("1", "noop", "json", 0, 0.0, None, None), None)

        class Late(dict[int, Any]):
            def __setitem__(self, key: int, value: Any) -> None:
                # what the intake does between the finisher's look at what is held and this
                worker.lanes[0].held[key] = job
                assert self.pop(key, None) is None
                super().__setitem__(key, value)

        worker.lanes[0].finished_orphans = Late()
        worker.lanes[0].engine.collect([Finished(9999, Outcome(DONE, "SUCCESS"), 0.0)])
        assert worker.lanes[0].held == {}
        assert worker.lanes[0].finished_orphans == {}

"""From a finished task to an ended message: nothing is lost or run twice, whichever server is down or dies when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from taskq.errors import ConnectionLost, ResultTooLarge, StoreUnavailable, TransportError
from taskq.message import ACK, Outbound, SendFailure
from taskq.spi import LeaseScope


class Down:
    """Makes a method raise while ``down`` and ``hits(its first argument)``; tells when the first call was refused."""

    def __init__(self, owner: Any, name: str, error: Callable[[], Exception], monkeypatch: pytest.MonkeyPatch) -> None:
        self.down = False
        self.hits: Callable[[Any], bool] = lambda batch: True
        self.refused = threading.Event()
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.down and self.hits(args[0]):
                self.refused.set()
                raise error()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)


@pytest.fixture
def runs() -> list[Any]:
    return []


# ------------------------------------------------------------------------------------------------ the store is down


def test_while_the_store_is_down_outcomes_are_kept(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app("split", lease=1.0)

    @app.task
    def work(i: int) -> int:
        runs.append(i)
        return i

    app.connect()
    store = Down(app.store, "put", lambda: StoreUnavailable("no route"), monkeypatch)
    with rig.work(app, pool) as worker:
        store.down = True
        first = [work.delay(i) for i in range(3)]
        assert store.refused.wait(10)
        rig.eventually(lambda: worker.lanes[0].settler.blocked)
        # intake stops: what is sent now waits at the broker, whatever was taken before
        rig.eventually(lambda: len(worker.lanes[0].held) == 0 or len(runs) == 3)
        ran = len(runs)
        second = [work.delay(i) for i in range(10, 15)]
        threading.Event().wait(2.4)  # more than two leases: the messages must stay ours
        assert len(runs) == ran
        assert all(r.state == "UNKNOWN" for r in first)
        store.down = False
        assert [r.get(timeout=10) for r in first + second] == [0, 1, 2, 10, 11, 12, 13, 14]
        rig.wait_empty(app)
        assert not worker.lanes[0].settler.blocked
    assert sorted(runs) == [0, 1, 2, 10, 11, 12, 13, 14]  # nothing was run again


def test_a_store_that_answers_late_does_not_cost_the_leases(
    rig: Any, pool: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put may hang until its timeout; the keeper must not wait for it."""
    app = rig.app("split", lease=1.0)

    @app.task
    def work() -> int:
        runs.append(1)
        return len(runs)

    app.connect()
    entered, go_on = threading.Event(), threading.Event()
    original = app.store.put

    def slow_put(records: Any) -> Any:
        entered.set()
        assert go_on.wait(20)
        return original(records)

    monkeypatch.setattr(app.store, "put", slow_put)
    with rig.work(app, pool) as worker:
        extended = []
        consumer = worker.lanes[0].consumer
        extend = consumer.extend
        monkeypatch.setattr(consumer, "extend", lambda receipts=None: (extended.append(1), extend(receipts))[1])
        result = work.delay()
        assert entered.wait(10)
        seen = len(extended)
        rig.eventually(lambda: len(extended) >= seen + 4)
        assert rig.counts(app) == (0, 1, 0)
        go_on.set()
        assert result.get(timeout=10) == 1
        rig.wait_empty(app)
    assert runs == [1]


def test_leases_of_finished_messages_are_renewed_one_by_one_too(
    rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where leases belong to messages, those that wait to be settled need theirs as well."""
    app = rig.app("split", lease=1.0)
    transport = type(app.transport)
    per_message = msgspec.structs.replace(app.transport.capabilities, lease_scope=LeaseScope.MESSAGE)
    monkeypatch.setattr(transport, "capabilities", property(lambda self: per_message))

    @app.task
    def work() -> int:
        return 1

    store = Down(app.store, "put", lambda: StoreUnavailable("no route"), monkeypatch)
    store.down = True
    with rig.work(app, pool) as worker:
        extended: list[Any] = []
        extend = worker.lanes[0].consumer.extend
        monkeypatch.setattr(
            worker.lanes[0].consumer,
            "extend",
            lambda receipts=None: (extended.append(list(receipts)), extend(receipts))[1],
        )
        result = work.delay()
        assert store.refused.wait(10)
        extended.clear()
        rig.eventually(lambda: len(extended) >= 2)
        assert all(len(receipts) == 1 for receipts in extended)
        store.down = False
        assert result.get(timeout=10) == 1


def test_a_store_that_never_comes_back_ends_the_worker(rig: Any, pool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app("split")

    @app.task
    def work() -> int:
        return 1

    app.connect()

    def broken() -> Exception:
        error = StoreUnavailable("the tables are of another version")
        error.retryable = False
        return error

    store = Down(app.store, "put", broken, monkeypatch)
    store.down = True
    with rig.work(app, pool, exit_code=1) as worker:
        work.delay()
        rig.eventually(lambda: not worker._thread.is_alive())
    assert rig.counts(app) == (1, 0, 0)


def test_the_broker_may_be_away_for_a_while(
    rig: Any, pool: str, runs: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "taskq.worker")
    app = rig.app()

    @app.task
    def work(i: int) -> int:
        runs.append(i)
        return i

    with rig.work(app, pool) as worker:
        assert work.delay(0).get(timeout=10) == 0
        down = Down(worker.lanes[0].consumer, "fetch", lambda: ConnectionLost("reset by peer"), monkeypatch)
        down.down = True
        worker.lanes[0].consumer.wake()
        assert down.refused.wait(10)
        result = work.delay(1)
        down.down = False
        assert result.get(timeout=10) == 1
        rig.eventually(lambda: "the broker is back" in caplog.text)
    assert "the broker is not available: reset by peer" in caplog.text
    assert runs == [0, 1]


# ---------------------------------------------------------------------------- a worker dies between two of its steps


@pytest.mark.parametrize("step", ["put", "send", "settle"])
def test_a_retry_survives_a_death_at_every_step(
    rig: Any, step: str, runs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, send follow-ups, acknowledge: what died in between is done again, the task run again only if it must."""
    app = rig.app("split")
    gate = threading.Event()

    @app.task(bind=True, max_retries=1, retry_backoff=0)
    def flaky(self: Any) -> str:
        assert gate.wait(10)
        runs.append(self.request.attempt)
        if self.request.attempt == 0:
            raise ValueError("first")
        return "second"

    result = flaky.delay()
    with rig.work(app, exit_code=1) as worker:
        owner = {"put": app.store, "send": app.transport, "settle": worker.lanes[0].consumer}[step]
        step_dies = Down(owner, step, died_here, monkeypatch)
        if step == "settle":  # what the dead cannot acknowledge comes back to the queue all the same
            step_dies.hits = lambda batch: any(settlement.kind == ACK for settlement in batch)
        step_dies.down = True
        gate.set()
        rig.eventually(lambda: not worker._thread.is_alive())
        assert step_dies.refused.is_set()
        step_dies.down = False
    assert rig.counts(app)[0] >= 1
    with rig.work(app):
        assert result.get(timeout=10) == "second"
        rig.wait_empty(app)
    # Before the outcome is stored nobody can know that the task has run; after that it is not run again. Its follow-up
    # is sent again, as nobody knows whether it was: a broker that does not drop repeated ids then has it twice.
    assert runs.count(0) == (2 if step == "put" else 1)
    assert runs.count(1) == (2 if step == "settle" else 1)


def died_here() -> Exception:
    error = TransportError("died here")
    error.retryable = False
    return error


def test_a_redelivered_message_with_a_stored_result_is_not_run(rig: Any, pool: str, runs: list[Any]) -> None:
    app = rig.app("split")

    @app.task
    def work() -> int:
        runs.append(1)
        return len(runs)

    result = work.delay()
    (payload,) = rig.payloads(app)
    rig.drain(app, pool)
    rig.raw(app, payload)
    rig.crash(app)
    rig.drain(app, pool)
    assert runs == [1]
    assert result.get(timeout=1) == 1


def test_an_earlier_attempt_that_comes_back_after_a_later_one_is_dropped(rig: Any, runs: list[Any]) -> None:
    app = rig.app("split")

    @app.task(bind=True, max_retries=1, retry_backoff=0)
    def flaky(self: Any) -> str:
        runs.append(self.request.attempt)
        if self.request.attempt == 0:
            raise ValueError
        return "done"

    result = flaky.delay()
    (payload,) = rig.payloads(app)
    with rig.work(app):
        assert result.get(timeout=10) == "done"
    rig.raw(app, payload)
    rig.crash(app)
    rig.drain(app)
    assert runs == [0, 1]


# ------------------------------------------------------------------------------------------------ what does not fit


@pytest.mark.parametrize("backend", ["memory", "split"])
def test_a_result_that_the_store_finds_too_large(
    rig: Any, backend: str, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store's own limit is met at the last moment; the caller is told, the other results are kept."""
    app = rig.app(backend)

    @app.task
    def work(size: int) -> str:
        return "x" * size

    app.connect()
    records = app.store.server.records  # type: ignore[union-attr]
    original = records.put

    def limited(batch: Any, now: float) -> Any:
        batch = list(batch)
        if any(len(record.payload) > 500 for record in batch):
            raise ResultTooLarge("this store keeps 500 bytes")
        return original(batch, now)

    monkeypatch.setattr(records, "put", limited)
    results = app.send_many([work.s(size) for size in (1, 1000, 2, 2000, 3)])
    with rig.work(app, pool):
        for result, size in zip(results, (1, 1000, 2, 2000, 3), strict=True):
            if size < 500:
                assert result.get(timeout=10) == "x" * size
            else:
                with pytest.raises(ResultTooLarge, match="keeps 500 bytes"):
                    result.get(timeout=10)
        rig.wait_empty(app)


def test_a_follow_up_that_is_refused_for_good_does_not_stop_the_worker(
    rig: Any, runs: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = rig.app("split")

    @app.task
    def fail() -> None:
        runs.append(1)
        raise ValueError

    @app.task
    def work() -> int:
        return 1

    app.connect()
    original = app.transport.send

    def send(batch: list[Outbound]) -> Any:
        if batch[0].queue.endswith(".dead"):
            return [SendFailure(0, "larger than this broker takes", retryable=False)]
        return original(batch)

    with rig.work(app):
        monkeypatch.setattr(app.transport, "send", send)
        fail.delay()
        rig.eventually(lambda: "cannot be sent" in caplog.text)
        assert work.delay().get(timeout=10) == 1
        ready, in_flight, delayed = rig.counts(app)
        assert ready + in_flight + delayed == 1  # kept, not lost
        monkeypatch.undo()


def test_an_unexpected_error_while_settling_ends_the_worker_visibly(
    rig: Any, pool: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of a plugin must not leave a worker that takes messages and never ends one."""
    app = rig.app("split")

    @app.task
    def work() -> int:
        return 1

    app.connect()
    with rig.work(app, pool, exit_code=1) as worker:
        monkeypatch.setattr(app.store, "put", lambda records: 1 / 0)
        work.delay()
        rig.eventually(lambda: not worker._thread.is_alive())
        monkeypatch.undo()
    assert "division by zero" in caplog.text
    assert rig.counts(app) == (1, 0, 0)


def test_fused_and_acknowledged_at_start_settle_together(rig: Any, runs: list[Any]) -> None:
    """A message without a receipt must not cost the others their one-step commit."""
    app = rig.app()

    @app.task(delivery="at_most_once", max_retries=1, retry_backoff=0, bind=True)
    def once(self: Any) -> int:
        runs.append(self.request.attempt)
        if self.request.attempt == 0:
            raise ValueError
        return 1

    @app.task
    def work(i: int) -> int:
        return i

    with rig.work(app, "threads", concurrency=4) as worker:
        assert worker.lanes[0].fused
        results = [r for i in range(10) for r in (once.delay(), work.delay(i))]
        values = [r.get(timeout=10) for r in results]
    assert values == [v for i in range(10) for v in (1, i)]


def test_a_retry_is_fused_beside_what_was_acknowledged_at_its_start(rig: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between storing its outcome and sending its retry would lose it: a fused record holds no follow-ups."""
    app, stored, sent = rig.app(), [], []

    @app.task(delivery="at_most_once")
    def once() -> int:
        return 1

    @app.task(max_retries=1, retry_backoff=0, bind=True)
    def work(self: Any) -> int:
        if self.request.attempt == 0:
            raise ValueError
        return 2

    with rig.work(app, "threads", concurrency=2) as worker:
        real = worker.lanes[0].settler.finish
        waiting: list[Any] = []

        def together(jobs: Any, batch: Any) -> None:
            if len(waiting) < 2:
                waiting.extend(zip(jobs, batch, strict=True))
                jobs, batch = [job for job, _ in waiting], [finished for _, finished in waiting]
            if len(waiting) == 2:
                real(jobs, batch)

        monkeypatch.setattr(worker.lanes[0].settler, "finish", together)
        put, send = app.store.put, app.transport.send
        monkeypatch.setattr(app.store, "put", lambda records: (stored.extend(records), put(records))[1])
        first, second = work.delay(), once.delay()
        monkeypatch.setattr(app.transport, "send", lambda batch: (sent.extend(batch), send(batch))[1])
        assert second.get(timeout=10) == 1
        assert first.get(timeout=10) == 2
    assert [record.id for record in stored] == [second.id]
    assert sent == []


def test_an_unexpected_error_beside_the_next_slice_ends_the_worker(
    rig: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A large batch is settled on a thread of its own; that this one dies must not leave the worker waiting for it."""
    monkeypatch.setattr("taskq.worker.inline._FLOOD", 2)
    app = rig.app("split")

    @app.task
    def work(i: int) -> int:
        return i

    with rig.work(app, "solo", exit_code=1) as worker:
        pump = worker.lanes[0].settler.pump

        def breaks() -> float:
            if threading.current_thread().name == "taskq-settler":
                raise RuntimeError("out of the blue")
            return pump()

        monkeypatch.setattr(worker.lanes[0].settler, "pump", breaks)
        app.send_many([work.s(i) for i in range(1000)])
        rig.eventually(lambda: not worker._thread.is_alive())
    assert "out of the blue" in caplog.text

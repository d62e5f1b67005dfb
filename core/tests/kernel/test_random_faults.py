"""Workers among servers that fail at random: every task ends, with the right result, and nothing is left behind."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import ExitStack
from typing import Any

import pytest

from taskq import TaskQ, current_request, gather
from taskq.errors import ConnectionLost, StoreUnavailable
from taskq.message import Lost


class Faults:
    """Makes methods of servers fail now and then: before their work, or after it (the answer is lost)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.on = True
        self.hits: Counter[str] = Counter()

    def spoil(self, owner: Any, name: str, chance: float, patch: pytest.MonkeyPatch, *, after: bool = True) -> None:
        original = getattr(owner, name)
        error = StoreUnavailable if name in ("put", "get", "apply") else ConnectionLost

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                fails = self.on and self.random.random() < chance
                late = after and self.random.random() < 0.5
            if not fails:
                return original(*args, **kwargs)
            self.hits[name] += 1
            if late:
                original(*args, **kwargs)
            raise error(f"random fault in {name}")

        patch.setattr(owner, name, call)


def declare(app: TaskQ, ran: Counter[str]) -> None:
    @app.task(name="work", max_retries=10, retry_backoff=0)
    def work(i: int, rounds: int) -> list[int]:
        request = current_request()
        ran[f"{request.id}.{request.attempt}"] += 1
        if request.attempt < rounds:
            raise ValueError("again")
        if i % 7 == 0:
            time.sleep(0.005)
        return [i, request.attempt]

    @app.task(name="parent")
    def parent(i: int) -> str:
        return app.tasks["work"].delay(i, 0).id


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("engine", "settler"):
        monkeypatch.setattr(f"taskq.worker.{part}._FIRST_PAUSE", 0.005)
        monkeypatch.setattr(f"taskq.worker.{part}._LONGEST_PAUSE", 0.02)


@pytest.mark.usefixtures("_impatient")
def test_everything_ends_whatever_fails(rig: Any, backend: str, pool: str, fault_seed: int) -> None:
    one_round(rig, backend, pool, fault_seed)


@pytest.mark.soak
@pytest.mark.usefixtures("_impatient")
def test_everything_ends_whatever_fails_for_long(rig: Any, backend: str, pool: str, fault_seed: int) -> None:
    for number in range(50):
        one_round(rig, backend, pool, fault_seed + number)


def one_round(rig: Any, backend: str, pool: str, seed: int) -> None:
    app, ran, faults = rig.app(backend, lease=1.0, publish_retries=50), Counter[str](), Faults(seed)
    other = rig.twin(app, lease=1.0, publish_retries=50)
    for each in (app, other):
        declare(each, ran)
        each.connect()
    rounds = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr("taskq.producer._FIRST_PAUSE", 0.001)
        for each in (app, other):
            faults.spoil(each.store, "put", 0.4, patch)
            faults.spoil(each.store, "get", 0.2, patch)
            faults.spoil(each.transport, "send", 0.3, patch, after=False)
        for each in (app, other):
            worker = stack.enter_context(rig.work(each, pool, prefetch=4))
            faults.spoil(worker.lanes[0].consumer, "fetch", 0.2, patch, after=False)
            faults.spoil(worker.lanes[0].consumer, "settle", 0.4, patch)
            faults.spoil(worker.lanes[0].consumer, "extend", 0.4, patch)
            if worker.lanes[0].fused:
                committer = worker.lanes[0].settler._committer
                faults.spoil(committer, "commit", 0.4, patch)
        calls = [app.tasks["work"].s(i, rounds.choice([0, 0, 0, 1, 2])) for i in range(200)]
        results = [r for i in range(0, 200, 20) for r in app.send_many(calls[i : i + 20])]
        parents = [other.tasks["parent"].delay(i) for i in range(10)]
        values = gather(results, timeout=60)
        children = [app.AsyncResult(task_id).get(timeout=60) for task_id in gather(parents, timeout=60)]
        faults.on = False
        rig.wait_empty(app)
    assert values == [[i, call.args[1]] for i, call in enumerate(calls)], f"seed {seed}"
    assert children == [[i, 0] for i in range(10)]
    assert rig.dead(app) == []
    assert sum(faults.hits.values()) > 20, faults.hits
    # A fault while settling repeats the settling, not the run: only what was lost on the way may have run again.
    again = sum(count - 1 for count in ran.values())
    assert again <= faults.hits["fetch"] + faults.hits["settle"] + faults.hits["extend"] + faults.hits["send"], ran


def test_leases_that_are_lost_at_random(rig: Any, pool: str, fault_seed: int) -> None:
    """Messages come back while they run, wait or are being settled: adopted, dropped or run again, never lost."""
    app, ran = rig.app("split", lease=0.5, max_deliveries=1000), Counter[str]()
    declare(app, ran)
    app.connect()
    chance, stop = random.Random(fault_seed), threading.Event()

    def thief(worker: Any) -> None:
        server = app.transport.server  # type: ignore[attr-defined]
        while not stop.wait(chance.random() * 0.01):
            with server.lock:
                worker.lanes[0].consumer.deadline = 0.0
                server.queues.reap(server.clock.monotonic())

    with rig.work(app, pool) as worker:
        stealing = threading.Thread(target=thief, args=(worker,))
        stealing.start()
        try:
            results = app.send_many([app.tasks["work"].s(i, i % 3) for i in range(150)])
            assert gather(results, timeout=50) == [[i, i % 3] for i in range(150)]
        finally:
            stop.set()
            stealing.join()
        rig.wait_empty(app)
    assert rig.dead(app) == []
    assert not worker.lanes[0].held


def test_unknown_losses_are_harmless(rig: Any, pool: str) -> None:
    app = rig.app()
    app.task(name="work")(lambda: 1)
    with rig.work(app, pool) as worker:
        worker.lanes[0].engine.lost([Lost("never heard of"), Lost(17)])
        assert app.tasks["work"].delay().get(timeout=10) == 1

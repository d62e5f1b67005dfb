"""The wall clock of a worker jumps an hour forth and back, by the clock seam: nothing is lost, nothing runs twice.

| what | outcome |
|---|---|
| a task that runs | runs on, once: leases do not follow the wall clock |
| a retry, a countdown on a broker with a clock of its own | on time |
| a countdown on SQLite, whose clock is the worker's | early by a jump forth; late by a jump back, until it is right |
| ``expires`` | judged by the worker's clock: early or late by the error |
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from taskq import TaskQ, Worker
from taskq.spi import SystemClock
from tests.faults.conftest import Site
from tests.support.processes import eventually

HOUR = 3600.0
LEASE = 1.0


class Wall:
    """The machine's wall clock, with an error that a test sets."""

    error = 0.0


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    wall = Wall()
    monkeypatch.setattr(SystemClock, "now", staticmethod(lambda: time.time() + wall.error))
    return wall


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.server)])
def place(request: pytest.FixtureRequest, make_site: Callable[[str], Site]) -> Site:
    return make_site(request.param)


class Program:
    """An application with its tasks, on the machine whose clock is wrong at times."""

    def __init__(self, site: Site, wall: Wall) -> None:
        self.wall = wall
        self.app: TaskQ = site.app(lease=LEASE)
        self.runs: list[tuple[str, float]] = []
        self.gate = threading.Event()
        self.app.task(name="gated")(self.gated)
        self.app.task(name="short")(self.short)
        self.app.task(name="flaky", max_retries=3, retry_backoff=0.2, retry_jitter=False)(self.flaky)

    def gated(self) -> str:
        self.runs.append(("gated", time.monotonic()))
        self.gate.wait(30)
        return "done"

    def short(self) -> str:
        self.runs.append(("short", time.monotonic()))
        return "done"

    def flaky(self) -> int:
        self.runs.append(("flaky", time.monotonic()))
        self.wall.error = -HOUR if self.wall.error > 0 else HOUR
        if len(self.runs) < 3:
            raise ValueError("again")
        return len(self.runs)

    @contextmanager
    def work(self) -> Iterator[Worker]:
        with self.app.worker(pool="threads", concurrency=2, grace=5.0) as worker:
            yield worker


@pytest.mark.timeout(90)
def test_what_runs_runs_on_and_once(place: Site, wall: Wall) -> None:
    first, second = Program(place, wall), Program(place, wall)
    result = first.app.tasks["gated"].delay()
    with first.work():
        eventually(lambda: first.runs)
        with second.work():  # would take what the first one loses
            for error in (HOUR, -HOUR, 0.0):
                wall.error = error
                time.sleep(1.5 * LEASE)
            assert len(first.runs + second.runs) == 1
            assert [r.get(timeout=20) for r in [second.app.tasks["short"].delay()]] == ["done"]
            first.gate.set()
            assert result.get(timeout=20) == "done"
    assert [name for name, _ in first.runs + second.runs].count("gated") == 1


@pytest.mark.timeout(60)
def test_retries_come_whatever_the_clock_says(place: Site, wall: Wall) -> None:
    machine = Program(place, wall)
    with machine.work():
        assert machine.app.tasks["flaky"].delay().get(timeout=30) == 3
    assert len(machine.runs) == 3


@pytest.mark.timeout(60)
@pytest.mark.parametrize("error", [HOUR, -HOUR])
def test_a_countdown_keeps_its_time_or_is_off_by_the_error(place: Site, wall: Wall, error: float) -> None:
    machine = Program(place, wall)
    began = time.monotonic()
    result: Any = machine.app.tasks["short"].apply_async(countdown=1.5)
    wall.error = error
    with machine.work():
        if place.broker.name == "sqlite" and error < 0:
            time.sleep(3.0)
            assert machine.runs == [], "by this machine's clock it is too early"
            wall.error = 0.0
        assert result.get(timeout=20) == "done"
        waited = machine.runs[0][1] - began
        early = place.broker.name == "sqlite" and error > 0
        assert early or waited >= 1.0
    assert len(machine.runs) == 1

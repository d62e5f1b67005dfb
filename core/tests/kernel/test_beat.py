"""Tasks that are sent by the clock."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from taskq import TaskQ
from taskq.beat import Beat
from taskq.errors import ConnectionFailed
from taskq.spi import Fire, Schedule
from taskq.testing import VirtualClock


class Keeper:
    """A scheduler in memory: every schedule is due every ten seconds."""

    def __init__(self) -> None:
        self.schedules: dict[str, Schedule] = {}
        self.settled: list[tuple[str, float]] = []
        self.opened = self.closed = False

    def open(self) -> None:
        self.opened = True

    def close(self) -> None:
        self.closed = True

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        schedule.next_due = now + 10
        return self.schedules.setdefault(schedule.id, schedule)

    def list(self, *, after: str | None = None, limit: int = 100) -> list[Schedule]:
        return [*self.schedules.values()][:limit]

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> list[Fire]:
        due = [s for s in self.schedules.values() if s.enabled and s.next_due is not None and s.next_due <= now]
        return [Fire(schedule=s, due=s.next_due or 0.0, owner=owner) for s in due][:limit]

    def settle(self, fired: Any, *, now: float) -> None:
        for fire in fired:
            self.settled.append((fire.schedule.id, fire.due))
            fire.schedule.next_due = now + 10

    def next_due(self) -> float | None:
        return min((s.next_due for s in self.schedules.values() if s.next_due is not None), default=None)

    def wake(self, timeout: float) -> bool:
        return threading.Event().wait(min(timeout, 0.01))


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


def beat_of(app: TaskQ, clock: VirtualClock) -> tuple[Beat, Any]:
    keeper: Any = Keeper()
    beat = Beat(app, keeper, clock)
    beat.open()
    return beat, keeper


SCHEDULES = {
    "tidy": {"task": "tidy", "rule": "every 10", "args": [1], "kwargs": {"deep": True}, "options": {"priority": 8}}
}


def test_what_is_due_is_sent_once(rig: Any, clock: VirtualClock) -> None:
    app = rig.app(schedules=SCHEDULES)
    ran: list[Any] = []
    app.task(name="tidy")(lambda n, deep: ran.append((n, deep)))
    beat, keeper = beat_of(app, clock)
    assert beat.fire_due() == pytest.approx(10)
    assert rig.counts(app) == (0, 0, 0)
    clock.advance(10)
    assert beat.fire_due() == pytest.approx(10)
    (header,) = rig.headers(app)
    assert header.id == f"tidy@{keeper.settled[0][1]:.3f}"
    assert header.get("p") == 8
    beat.fire_due()
    rig.drain(app)
    assert ran == [(1, True)]
    clock.advance(25)
    beat.fire_due()
    rig.drain(app)
    assert len(ran) == 2  # a missed time is not made up twice


def test_a_broker_that_is_away_loses_no_firing(rig: Any, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    app = rig.app(schedules=SCHEDULES, publish_retries=0)
    app.task(name="tidy")(lambda n, deep: None)
    beat, keeper = beat_of(app, clock)
    clock.advance(10)
    app.connect()

    def away(batch: Any) -> Any:
        raise ConnectionFailed("refused")

    with monkeypatch.context() as patch:
        patch.setattr(app.transport, "send", away)
        assert beat.fire_due() < 10
    assert keeper.settled == []
    beat.fire_due()
    assert len(keeper.settled) == 1
    assert rig.counts(app) == (1, 0, 0)


def test_a_schedule_that_cannot_be_sent_does_not_stop_the_others(
    rig: Any, clock: VirtualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Wrong arguments, an option that nobody knows: it is said each time, and the others go on."""
    app = rig.app(
        schedules={
            "arguments": {"task": "tidy", "rule": "every 10", "args": [1, 2, 3]},
            "options": {"task": "tidy", "rule": "every 10", "options": {"prioriti": 5}},
            **SCHEDULES,
        }
    )
    app.task(name="tidy")(lambda n=0, deep=False: None)
    beat, keeper = beat_of(app, clock)
    clock.advance(10)
    beat.fire_due()
    assert rig.counts(app) == (1, 0, 0)
    assert "schedule arguments" in caplog.text
    assert "did you mean 'priority'" in caplog.text
    assert {name for name, _ in keeper.settled} == {"arguments", "options", "tidy"}


def test_run_until_stop(rig: Any, clock: VirtualClock) -> None:
    app = rig.app(schedules=SCHEDULES)
    app.task(name="tidy")(lambda n, deep: None)
    keeper: Any = Keeper()
    beat = Beat(app, keeper, clock)
    thread = threading.Thread(target=beat.run)
    thread.start()
    rig.eventually(lambda: keeper.opened and keeper.schedules)
    clock.advance(10)
    rig.eventually(lambda: rig.counts(app) == (1, 0, 0))
    beat.stop()
    thread.join(10)
    assert not thread.is_alive()
    assert keeper.closed


def test_the_applications_clock_is_the_beats(rig: Any, clock: VirtualClock) -> None:
    app = rig.app(schedules=SCHEDULES)
    app.clock = clock
    app.task(name="tidy")(lambda n, deep: None)
    beat = Beat(app, Keeper())  # type: ignore[arg-type]
    beat.open()
    clock.advance(10)
    beat.fire_due()
    assert rig.counts(app) == (1, 0, 0)

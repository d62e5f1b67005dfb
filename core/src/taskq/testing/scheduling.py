"""What every scheduler must do. All times here are virtual: nothing waits for a schedule.

A plugin's test::

    class TestConformance(SchedulerSuite):
        name = "simple"
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest

from taskq.errors import ConfigError, NotSupported
from taskq.spi import (
    ComponentConfig,
    Fire,
    Schedule,
    Scheduler,
    SchedulerSpec,
)
from taskq.testing.base import SOAK, Suite, seed, select, unique

T0 = 1_000_000.0
"""Long ago, so that a component which looks at a clock of its own gives itself away."""


class SchedulerRig:
    """One test's schedulers on one store, and short words for what tests do."""

    def __init__(self, suite: SchedulerSuite, folder: Path) -> None:
        self._suite = suite
        self._options = suite.options_for(suite.load_spec(), **suite.fresh_options(folder))
        self._open: list[Scheduler] = []
        self.spec = suite.load_spec()
        self.main = self.another()

    def another(self) -> Scheduler:
        """Open a further scheduler on the same store."""
        scheduler = self.spec.factory(ComponentConfig(options=self._options, app="kit"))
        scheduler.open()
        self._open.append(scheduler)
        return scheduler

    def add(self, rule: str, *, now: float = T0, id: str | None = None, **fields: Any) -> Schedule:
        return self.main.upsert(Schedule(id=id or unique(), task="kit.task", rule=rule, **fields), now=now)

    def lease(self, now: float, owner: str = "one", *, limit: int = 100, ttl: float = 30.0) -> Sequence[Fire]:
        return self.main.lease(owner, now, limit=limit, ttl=ttl)

    def fire(self, now: float, owner: str = "one") -> list[float]:
        """Lease and settle; return the due times."""
        fires = self.lease(now, owner)
        self.main.settle(fires, now=now)
        return [fire.due for fire in fires]

    def next_due(self, schedule: Schedule) -> float | None:
        found = self.main.get(schedule.id)
        assert found is not None
        return found.next_due

    def close(self) -> None:
        for scheduler in self._open:
            scheduler.close()


class SchedulerSuite(Suite):
    """All tests of a scheduler; subclass it and name the scheduler."""

    name: ClassVar[str]
    """The scheduler's name, as its entry point is named."""
    persistent: ClassVar[bool] = False
    """Whether two schedulers made with the same options share their schedules, and a reopened one finds them again.
    Always tested where the spec says ``shared``."""

    def load_spec(self) -> SchedulerSpec:
        spec: SchedulerSpec = select("scheduler", self.name)
        return spec

    def fresh_options(self, folder: Path) -> Mapping[str, Any]:
        """Return options, besides the suite's, that give each test an empty store; ``folder`` is an empty folder."""
        return {}

    @pytest.fixture
    def rig(self, tmp_path: Path) -> Iterator[SchedulerRig]:
        rig = SchedulerRig(self, tmp_path)
        yield rig
        rig.close()

    def _shared(self, rig: SchedulerRig) -> SchedulerRig:
        if not (self.persistent or rig.spec.shared):
            pytest.skip("neither shared nor persistent")
        return rig

    # ------------------------------------------------------------------------------------------ spec, schedules

    def test_spec(self, rig: SchedulerRig) -> None:
        """Check that the spec has the plugin's name and declares the two rules that every scheduler keeps."""
        assert rig.spec.name == self.name
        assert {"every", "at"} <= set(rig.spec.rules)
        assert rig.main.list() == [] or not list(rig.main.list()), "fresh_options gave a store with schedules in it"

    def test_opening_and_closing_twice_does_no_harm(self, rig: SchedulerRig) -> None:
        """Check that a second ``open`` or ``close`` returns and does nothing."""
        schedule = rig.add("every 60")
        rig.main.open()
        assert rig.main.get(schedule.id) == schedule
        rig.main.close()
        rig.main.close()

    def test_the_first_due_time(self, rig: SchedulerRig) -> None:
        """Check that ``every`` is due one interval from now, at the latest, and ``at`` at its moment, passed or not."""
        every = rig.add("every 60")
        assert every.next_due is not None
        assert T0 < every.next_due <= T0 + 60
        assert rig.add(f"at {T0 + 5.5}").next_due == T0 + 5.5
        assert rig.add(f"at {T0 - 5}").next_due == T0 - 5
        assert every.last_fired is None

    def test_what_was_kept_is_returned(self, rig: SchedulerRig) -> None:
        """Check that ``upsert`` and ``get`` return the schedule with all its fields, and share no data with it."""
        args: list[Any] = [1, "text", None, 1.5, True, [{}]]
        given_one = Schedule(
            id="id with ä/:", task="kit.task", rule="every 60", args=args, kwargs={"deep": {"list": [1]}},
            options={"queue": "q", "priority": 9},
        )  # fmt: skip
        kept = rig.main.upsert(given_one, now=T0)
        assert (kept.args, kept.kwargs, kept.options) == (args, {"deep": {"list": [1]}}, {"queue": "q", "priority": 9})
        assert rig.main.get(kept.id) == kept
        args[5].append("changed")
        kept.kwargs["deep"]["list"].append("changed")
        found = rig.main.get(kept.id)
        assert found is not None
        assert (found.args[5], found.kwargs) == ([{}], {"deep": {"list": [1]}})
        assert rig.main.get("unknown") is None

    def test_an_unchanged_rule_goes_on_where_it_was(self, rig: SchedulerRig) -> None:
        """Check that an application that upserts its schedules at every start does not put them off each time."""
        first = rig.add("every 60", id="a")
        again = rig.add("every 60", id="a", now=T0 + 50)
        assert again == first, "an identical upsert changed the schedule"
        changed = rig.add("every 60", id="a", now=T0 + 50, args=[1])
        assert (changed.next_due, changed.args) == (first.next_due, [1])
        assert changed.version > first.version, "version must grow with a change"
        assert rig.fire(T0 + 61) == [first.next_due]
        assert rig.add("every 60", id="a", now=T0 + 62).last_fired is not None

    def test_a_changed_rule_starts_anew(self, rig: SchedulerRig) -> None:
        """Check that a schedule with another rule gets a new due time, also when it would not have fired again."""
        old = rig.add("every 60", id="a")
        new = rig.add("every 7", id="a", now=T0 + 50)
        assert new.next_due is not None
        assert T0 + 50 < new.next_due <= T0 + 57
        assert new.version > old.version
        rig.add(f"at {T0 + 52}", id="a", now=T0 + 51)
        assert rig.fire(T0 + 53) == [T0 + 52]
        assert rig.add(f"at {T0 + 60}", id="a", now=T0 + 54).next_due == T0 + 60

    @pytest.mark.parametrize(
        "rule", ["sometimes 5", "", "every", "every soon", "every 0", "every -1", "every nan", "every inf", "at x"]
    )
    def test_a_rule_without_sense_is_refused(self, rig: SchedulerRig, rule: str) -> None:
        """Check that a rule without sense gives NotSupported, or another ConfigError, and that nothing is kept."""
        with pytest.raises(ConfigError):
            rig.add(rule, id="bad")
        assert rig.main.get("bad") is None

    def test_an_undeclared_rule_is_refused(self, rig: SchedulerRig) -> None:
        """Check that a rule of a kind that the spec does not declare gives NotSupported, and that the text names it."""
        if "cron" in rig.spec.rules:
            pytest.skip("cron is declared")
        rig.add("every 60", id="kept")
        for name in ("new", "kept"):
            with pytest.raises(NotSupported, match="cron"):
                rig.add("cron 0 4 * * *", id=name)
        kept = rig.main.get("kept")
        assert kept is not None
        assert kept.rule == "every 60"
        assert rig.main.get("new") is None

    def test_remove(self, rig: SchedulerRig) -> None:
        """Check that a removed schedule is gone, does not fire, and may be settled without harm."""
        schedule = rig.add("every 60")
        fires = rig.lease(T0 + 61)
        assert rig.main.remove(schedule.id) is True
        assert rig.main.remove(schedule.id) is False
        assert rig.main.get(schedule.id) is None
        rig.main.settle(fires, now=T0 + 61)
        assert rig.main.get(schedule.id) is None
        assert rig.fire(T0 + 1000) == []
        assert rig.main.next_due() is None

    def test_list(self, rig: SchedulerRig) -> None:
        """Check that ``list`` is sorted by id, and that pages of any size, each begun after the last id, give all."""
        names = sorted(f"s{number:03}" for number in range(25))
        for name in random.sample(names, len(names)):
            rig.add("every 60", id=name)
        for size in (1, 7, 100):
            found: list[str] = []
            while page := rig.main.list(after=found[-1] if found else None, limit=size):
                assert len(page) <= size
                found += [schedule.id for schedule in page]
                assert len(found) <= len(names), "list gives schedules twice"
            assert found == names

    def test_next_due(self, rig: SchedulerRig) -> None:
        """Check that ``next_due`` is the earliest of the enabled schedules, None without any."""
        assert rig.main.next_due() is None
        rig.add(f"at {T0 + 50}", id="later")
        rig.add(f"at {T0 + 10}", id="disabled", enabled=False)
        assert rig.main.next_due() == T0 + 50
        rig.add(f"at {T0 + 20}", id="sooner")
        assert rig.main.next_due() == T0 + 20
        assert rig.fire(T0 + 20) == [T0 + 20]
        assert rig.main.next_due() == T0 + 50
        rig.main.remove("later")
        assert rig.main.next_due() is None

    # ------------------------------------------------------------------------------------------ firing

    def test_nothing_fires_early(self, rig: SchedulerRig) -> None:
        """Check that a firing is leased from its due time on, not before."""
        rig.add(f"at {T0 + 10}")
        assert not rig.lease(T0 + 9.999)
        (fire,) = rig.lease(T0 + 10)
        assert (fire.due, fire.owner, fire.schedule.task) == (T0 + 10, "one", "kit.task")

    def test_the_earliest_fires_first(self, rig: SchedulerRig) -> None:
        """Check that firings come in the order of their due times, not more than ``limit``, and the rest later."""
        moments = [T0 + offset for offset in (5, 1, 4, 2, 3)]
        for moment in moments:
            rig.add(f"at {moment}")
        first = rig.lease(T0 + 10, limit=2)
        assert [fire.due for fire in first] == [T0 + 1, T0 + 2]
        rig.main.settle(first, now=T0 + 10)
        assert [fire.due for fire in rig.lease(T0 + 10)] == [T0 + 3, T0 + 4, T0 + 5]

    def test_it_does_not_drift(self, rig: SchedulerRig) -> None:
        """Check that the n-th firing is due n intervals after the first, however late each was sent, and that the
        rounding of thousands of additions does not add up.
        """
        start = 1_750_000_000.25
        schedule = rig.add("every 0.1", now=start)
        first = schedule.next_due
        assert first is not None
        late = random.Random(1)
        for number in range(3000 if SOAK else 150):
            nominal = first + number * 0.1
            (due,) = rig.fire(nominal + late.uniform(0.001, 0.09))
            assert abs(due - nominal) < 1e-6, f"firing {number} is off by {due - nominal:.7f} s"

    def test_missed_firings_become_one(self, rig: SchedulerRig) -> None:
        """Check that after a pause a schedule fires once, for the last time that it missed, and goes on in step."""
        schedule = rig.add("every 10")
        first = schedule.next_due
        assert first is not None
        late = first + 47
        assert rig.fire(late) == [first + 40]
        assert rig.fire(late) == []
        assert rig.next_due(schedule) == first + 50
        assert rig.fire(first + 50) == [first + 50]

    def test_at_fires_once(self, rig: SchedulerRig) -> None:
        """Check that ``at`` fires once for ever, also when it was long past, and when it is upserted again."""
        schedule = rig.add(f"at {T0 - 1000}")
        assert rig.fire(T0) == [T0 - 1000]
        assert rig.next_due(schedule) is None
        rig.add(schedule.rule, id=schedule.id, now=T0 + 1)
        assert rig.fire(T0 + 2) == []

    def test_a_disabled_schedule_rests(self, rig: SchedulerRig) -> None:
        """Check that a disabled schedule neither fires nor counts for ``next_due``, and fires again when enabled."""
        rig.add("every 10", id="a")
        rig.add("every 10", id="a", enabled=False)
        assert rig.fire(T0 + 100) == []
        assert rig.main.next_due() is None
        rig.add("every 10", id="a", now=T0 + 105)
        assert len(rig.fire(T0 + 120)) == 1

    def test_other_owners_wait_for_the_lease(self, rig: SchedulerRig) -> None:
        """Check that a leased firing is not given to another owner before its ttl ends, and is given then."""
        rig.add(f"at {T0}")
        assert len(rig.lease(T0, "one", ttl=30)) == 1
        assert not rig.lease(T0, "two", ttl=30), "two owners hold the same firing"
        assert not rig.lease(T0 + 29, "two", ttl=30)
        (fire,) = rig.lease(T0 + 31, "two", ttl=30)
        assert (fire.due, fire.owner) == (T0, "two")
        assert not rig.lease(T0 + 32, "one", ttl=30), "the first owner has lost it"

    def test_what_is_not_settled_fires_again(self, rig: SchedulerRig) -> None:
        """Check that a firing whose owner died is given to another, for the same time or the latest that was missed."""
        schedule = rig.add("every 10")
        first = schedule.next_due
        assert first is not None
        rig.lease(first, "dies", ttl=5)
        (again,) = rig.lease(first + 6, "lives")
        assert again.due == first
        rig.main.settle([again], now=first + 6)
        assert rig.fire(first + 6, "lives") == []

    def test_settling_again_changes_nothing(self, rig: SchedulerRig) -> None:
        """Check that a repeated or late ``settle`` neither fires again nor skips a firing."""
        schedule = rig.add("every 10")
        first = schedule.next_due
        assert first is not None
        early = rig.lease(first, "one", ttl=5)
        late = rig.lease(first + 6, "two", ttl=5)
        for fires in (late, late, early, early):
            rig.main.settle(fires, now=first + 7)
            assert rig.next_due(schedule) == first + 10
        following = rig.lease(first + 10, "two", ttl=5)
        assert [fire.due for fire in following] == [first + 10]
        rig.main.settle(late, now=first + 11)
        assert not rig.lease(first + 11, "one", ttl=5), "settling an earlier firing gave up the lease of this one"
        rig.main.settle(following, now=first + 11)
        rig.main.settle(early, now=first + 12)
        assert rig.next_due(schedule) == first + 20
        found = rig.main.get(schedule.id)
        assert found is not None
        assert found.last_fired is not None
        rig.main.settle([], now=first + 12)

    def test_several_threads_fire_once(self, rig: SchedulerRig) -> None:
        """Check that among several owners that lease and settle at once, each (schedule, due time) goes to one only."""
        self._race(rig, [rig.main] * 4)

    def test_random_histories(self, rig: SchedulerRig) -> None:
        """Check over a random history of upserts, leases, settles and crashes that no (schedule, due time) is held by
        two owners at a time or leased after it was settled, and that each due time is one of its schedule's.
        """
        chance = random.Random(seed())
        now = T0
        firsts: dict[str, tuple[float, float]] = {}
        held: dict[tuple[str, float], tuple[str, float]] = {}
        settled: set[tuple[str, float]] = set()
        for number in range(8):
            interval = chance.choice([1, 2.5, 7, 30])
            schedule = rig.add(f"every {interval}", id=f"s{number}", now=now + number)
            assert schedule.next_due is not None
            firsts[schedule.id] = schedule.next_due, interval
        for _ in range(2000 if SOAK else 150):
            now += chance.choice([0.0, 0.3, 1.0, 5.0])
            owner, ttl = chance.choice("abc"), chance.choice([2.0, 10.0])
            fires = rig.lease(now, owner, limit=chance.randint(1, 8), ttl=ttl)
            for fire in fires:
                key = fire.schedule.id, fire.due
                first, interval = firsts[fire.schedule.id]
                steps = (fire.due - first) / interval
                assert fire.due <= now
                assert abs(steps - round(steps)) < 1e-6, f"{fire.due} is none of the due times of {fire.schedule.rule}"
                assert now - fire.due < interval + 1e-6, "a schedule that missed several times fires for the latest"
                assert key not in settled, f"{key} fires again after it was settled"
                holder, until = held.get(key, (owner, 0.0))
                assert holder == owner or until <= now, f"{key} is held by {holder} and was given to {owner}"
                held[key] = owner, now + ttl
            if chance.random() < 0.7:  # else the owner dies
                rig.main.settle(fires, now=now + 0.1)
                settled |= {(fire.schedule.id, fire.due) for fire in fires}
            if chance.random() < 0.1:
                name = f"s{chance.randrange(8)}"
                rig.add(f"every {firsts[name][1]}", id=name, now=now, args=[now])

    def _race(self, rig: SchedulerRig, schedulers: Sequence[Scheduler]) -> None:
        for number in range(12):
            rig.add("every 1", id=f"s{number}")
        seen: list[tuple[str, float]] = []
        with ThreadPoolExecutor(len(schedulers)) as pool:
            for step in range(2, 12):
                now = T0 + step
                barrier = threading.Barrier(len(schedulers))

                def take(
                    number: int, now: float = now, barrier: threading.Barrier = barrier
                ) -> list[tuple[str, float]]:
                    scheduler, mine = schedulers[number], []
                    barrier.wait()
                    while fires := scheduler.lease(f"owner-{number}", now, limit=2, ttl=100.0):
                        mine += [(fire.schedule.id, fire.due) for fire in fires]
                        time.sleep(0.0005)  # while it is sent, the others look
                        scheduler.settle(fires, now=now)
                    return mine

                seen += itertools.chain.from_iterable(pool.map(take, range(len(schedulers))))
        assert len(seen) == len(set(seen)), "a firing went to two owners"
        assert len(seen) == 12 * 10, f"{len(seen)} of {12 * 10} firings"

    # ------------------------------------------------------------------------------------------ waking

    def test_wake(self, rig: SchedulerRig) -> None:
        """Check that ``wake`` waits its time when nothing changes, returns early when a schedule is changed, and that a
        change that came before it was called is not missed.
        """
        scheduler = rig.main
        while scheduler.wake(0.0):
            pass  # tells of changes since open
        begin = time.monotonic()
        assert scheduler.wake(0.1) is False
        assert time.monotonic() - begin >= 0.09, "wake came back before its time"
        rig.add("every 60", id="a")
        assert scheduler.wake(self.patience_s) is True, "a change before the call was missed"
        assert scheduler.wake(0.0) is False, "one change wakes once"
        for change in (
            lambda: rig.add("every 70", id="a"),
            lambda: rig.add("every 70", id="b"),
            lambda: rig.main.remove("a"),
        ):
            timer = threading.Timer(0.05, change)
            timer.start()
            assert scheduler.wake(self.patience_s) is True, "wake slept through a change"
            timer.join()

    # ------------------------------------------------------------------------------------------ several of them

    def test_two_share_their_schedules(self, rig: SchedulerRig) -> None:
        """Check that a second scheduler on the same store sees, changes and is woken by what the first one has."""
        other = self._shared(rig).another()
        while other.wake(0.0):
            pass
        schedule = rig.add("every 10", args=[1])
        assert other.wake(self.patience_s) is True, "a change by another scheduler does not wake this one"
        assert other.get(schedule.id) == schedule
        assert other.next_due() == schedule.next_due
        assert other.remove(schedule.id) is True
        assert rig.main.get(schedule.id) is None

    def test_two_do_not_fire_twice(self, rig: SchedulerRig) -> None:
        """Check that among several schedulers on one store, each firing goes to one only."""
        self._shared(rig)
        self._race(rig, [rig.main, rig.another(), rig.another()])

    def test_schedules_and_leases_outlive_their_scheduler(self, rig: SchedulerRig) -> None:
        """Check that a reopened store has the schedules, their due times and the leases of an owner that died."""
        self._shared(rig)
        every = rig.add("every 10")
        first = every.next_due
        assert first is not None
        rig.lease(first, "dies", ttl=30)
        rig.main.close()
        rig.main = rig.another()
        assert rig.main.get(every.id) == every
        assert not rig.lease(first + 1, "lives", ttl=30)
        assert [fire.due for fire in rig.lease(first + 31, "lives", ttl=30)] == [first + 30]

"""Schedulers and autoscalers, each broken in one way, and the tests of the kit that must see it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from msgspec.structs import replace

from taskq.errors import ConfigError
from taskq.spi import Fire, LoadSample, Schedule
from taskq_autoscaler_simple.autoscaler import SimpleAutoscaler, Smoothed
from taskq_scheduler_simple.scheduler import SimpleScheduler
from taskq_scheduler_simple.state import State

RANDOM = "test_random_histories"


class Simple(SimpleScheduler):
    """A sound scheduler, to break; made from a component's config."""

    caught_by: ClassVar[tuple[str, ...]] = ()
    on_a_file: ClassVar[bool] = False

    def __init__(self, config: Any) -> None:
        super().__init__(config.options)

    def edit(self, schedule_id: str, **fields: Any) -> None:
        """Change what is kept, past all rules."""
        entry = self._state.entries[schedule_id]
        entry.schedule = replace(entry.schedule, **fields)


# ------------------------------------------------------------------------------------------------ schedules


class CountsFromTheEpoch(Simple):
    caught_by = ("test_the_first_due_time",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        return super().upsert(schedule, now=0.0)


class SkipsPassedMoments(Simple):
    caught_by = ("test_the_first_due_time", "test_at_fires_once")

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        kept = super().upsert(schedule, now=now)
        if schedule.rule.startswith("at") and kept.next_due is not None and kept.next_due < now:
            self.edit(schedule.id, next_due=None)
        return replace(kept, next_due=self._state.entries[schedule.id].schedule.next_due)


class StartsAnewAtEveryUpsert(Simple):
    caught_by = ("test_an_unchanged_rule_goes_on_where_it_was",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        self.remove(schedule.id)
        return super().upsert(schedule, now=now)


class KeepsTheOldTimeOfANewRule(Simple):
    caught_by = ("test_a_changed_rule_starts_anew",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        before = self.get(schedule.id)
        super().upsert(schedule, now=now)
        if before is not None:
            self.edit(schedule.id, next_due=before.next_due)
        found = self.get(schedule.id)
        assert found is not None
        return found


class ForgetsTheVersion(Simple):
    caught_by = ("test_an_unchanged_rule_goes_on_where_it_was",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        super().upsert(schedule, now=now)
        self.edit(schedule.id, version=1)
        found = self.get(schedule.id)
        assert found is not None
        return found


class KeepsTheCallersLists(Simple):
    caught_by = ("test_what_was_kept_is_returned",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        kept = super().upsert(schedule, now=now)
        self.edit(schedule.id, args=schedule.args)
        return kept


class TakesAnyRule(Simple):
    caught_by = ("test_an_undeclared_rule_is_refused", "test_a_rule_without_sense_is_refused")

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        try:
            return super().upsert(schedule, now=now)
        except ConfigError:
            return super().upsert(replace(schedule, rule="every 60"), now=now)


class KeepsWhatItRefuses(Simple):
    caught_by = ("test_an_undeclared_rule_is_refused", "test_a_rule_without_sense_is_refused")

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        try:
            return super().upsert(schedule, now=now)
        except ConfigError:
            super().upsert(replace(schedule, rule="every 60"), now=now)
            raise


class RemovesInVain(Simple):
    caught_by = ("test_remove",)

    def remove(self, schedule_id: str) -> bool:
        return self.get(schedule_id) is not None


class ListsAsTheyCome(Simple):
    caught_by = ("test_list",)

    def list(self, *, after: str | None = None, limit: int = 100) -> Sequence[Schedule]:
        return [e.schedule for name, e in self._state.entries.items() if after is None or name > after][:limit]


class ListsTheLastAgain(Simple):
    caught_by = ("test_list",)

    def list(self, *, after: str | None = None, limit: int = 100) -> Sequence[Schedule]:
        return super().list(after=None if after is None else after[:-1], limit=limit)


class CountsDisabledOnes(Simple):
    caught_by = ("test_next_due", "test_a_disabled_schedule_rests")

    def next_due(self) -> float | None:
        times = [entry.schedule.next_due for entry in self._state.entries.values()]
        return min((due for due in times if due is not None), default=None)


# ------------------------------------------------------------------------------------------------ firing


class HasAClockOfItsOwn(Simple):
    caught_by = ("test_nothing_fires_early", "test_it_does_not_drift")

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, time.time(), limit=limit, ttl=ttl)


class FiresEarly(Simple):
    caught_by = ("test_nothing_fires_early", RANDOM)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, now + 0.5, limit=limit, ttl=ttl)


class FiresAfterTheDueTimeOnly(Simple):
    caught_by = ("test_nothing_fires_early",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, math.nextafter(now, 0.0), limit=limit, ttl=ttl)


class FiresTwice(Simple):
    """Leases hold nobody off."""

    caught_by = ("test_other_owners_wait_for_the_lease", "test_several_threads_fire_once", RANDOM)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, now, limit=limit, ttl=0.0)


class LeasesForEver(Simple):
    caught_by = ("test_other_owners_wait_for_the_lease", "test_what_is_not_settled_fires_again")

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, now, limit=limit, ttl=1e9)


class TakesTheLeaseForTheSettlement(Simple):
    """What its owner does not settle is lost."""

    caught_by = ("test_what_is_not_settled_fires_again",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        fires = super().lease(owner, now, limit=limit, ttl=ttl)
        super().settle(fires, now=now)
        return fires


class IgnoresTheLimit(Simple):
    caught_by = ("test_the_earliest_fires_first",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, now, limit=1000, ttl=ttl)


class FiresTheLatestFirst(Simple):
    caught_by = ("test_the_earliest_fires_first",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return super().lease(owner, now, limit=limit, ttl=ttl)[::-1]


class Drifts(Simple):
    """Counts the interval from when it was sent."""

    caught_by = ("test_it_does_not_drift",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        super().settle(fired, now=now)
        for fire in fired:
            if fire.schedule.rule.startswith("every"):
                self.edit(fire.schedule.id, next_due=now + float(fire.schedule.rule[6:]))


class AddsUpRounding(Simple):
    caught_by = ("test_it_does_not_drift",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        for fire in fired:
            entry = self._state.entries[fire.schedule.id]
            entry.anchor = fire.due
        super().settle(fired, now=now)


class FiresAllThatWasMissed(Simple):
    caught_by = ("test_missed_firings_become_one", RANDOM)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        fires = super().lease(owner, now, limit=limit, ttl=ttl)
        return [replace(fire, due=fire.schedule.next_due) for fire in fires]


class SkipsWhatWasMissed(Simple):
    caught_by = ("test_missed_firings_become_one",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        fires = super().lease(owner, now, limit=limit, ttl=ttl)
        late = [fire for fire in fires if fire.due < now - 5]
        super().settle(late, now=now)
        return [fire for fire in fires if fire not in late]


class FiresAtTheMomentOfTheLease(Simple):
    caught_by = ("test_missed_firings_become_one", RANDOM)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        return [replace(fire, due=now) for fire in super().lease(owner, now, limit=limit, ttl=ttl)]


class FiresOnceForEver(Simple):
    caught_by = ("test_missed_firings_become_one",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        for fire in fired:
            self.edit(fire.schedule.id, next_due=None)


class FiresAtAgain(Simple):
    caught_by = ("test_at_fires_once",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        kept = super().upsert(schedule, now=now)
        if schedule.rule.startswith("at"):
            self.edit(schedule.id, next_due=float(schedule.rule[3:]))
        return kept


class FiresDisabledOnes(Simple):
    caught_by = ("test_a_disabled_schedule_rests",)

    def upsert(self, schedule: Schedule, *, now: float) -> Schedule:
        return super().upsert(replace(schedule, enabled=True), now=now)


class SettlesWhatIsNotDue(Simple):
    """Each settlement goes on by an interval, repeated or not."""

    caught_by = ("test_settling_again_changes_nothing",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        for fire in fired:
            found = self.get(fire.schedule.id)
            if found is not None and found.next_due is not None:
                super().settle([replace(fire, due=found.next_due)], now=now)


class GoesBackAtALateSettlement(Simple):
    caught_by = ("test_settling_again_changes_nothing",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        for fire in fired:
            if fire.schedule.id in self._state.entries:
                self.edit(fire.schedule.id, next_due=fire.due)
        super().settle(fired, now=now)


class GivesUpTheLeaseOfTheNext(Simple):
    caught_by = ("test_settling_again_changes_nothing",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        super().settle(fired, now=now)
        for fire in fired:
            if fire.schedule.id in self._state.entries:
                self._state.entries[fire.schedule.id].owner = None


class SettlesTheUnknown(Simple):
    caught_by = ("test_remove",)

    def settle(self, fired: Sequence[Fire], *, now: float) -> None:
        for fire in fired:
            self.edit(fire.schedule.id, last_fired=now)
        super().settle(fired, now=now)


class LosesRaces(Simple):
    """Looks first and marks afterwards."""

    caught_by = ("test_several_threads_fire_once",)

    def lease(self, owner: str, now: float, *, limit: int, ttl: float) -> Sequence[Fire]:
        before = {name: (entry.owner, entry.until) for name, entry in self._state.entries.items()}
        fires = super().lease(owner, now, limit=limit, ttl=ttl)
        for fire in fires:
            entry = self._state.entries[fire.schedule.id]
            entry.owner, entry.until = before[fire.schedule.id]
        time.sleep(0.001)
        for fire in fires:
            entry = self._state.entries[fire.schedule.id]
            entry.owner, entry.until = owner, now + ttl
        return fires


class IsDeaf(Simple):
    caught_by = ("test_wake",)

    def wake(self, timeout: float) -> bool:
        time.sleep(timeout)
        return False


class IsRestless(Simple):
    caught_by = ("test_wake",)

    def wake(self, timeout: float) -> bool:
        return super().wake(0.0)


class WakesForWhatComesOnly(Simple):
    """A change before the call is missed."""

    caught_by = ("test_wake",)

    def wake(self, timeout: float) -> bool:
        self._seen = self._state.changes
        return super().wake(timeout)


# ------------------------------------------------------------------------------------------------ on a file


class WritesWithoutALock(Simple):
    caught_by = ("test_two_do_not_fire_twice",)
    on_a_file = True

    @contextmanager
    def _locked(self, path: Path) -> Iterator[None]:
        time.sleep(0.001)
        yield


class ReadsAtOpenOnly(Simple):
    caught_by = ("test_two_share_their_schedules",)
    on_a_file = True

    def _read(self, path: Path) -> State:
        self.__dict__.setdefault("once", super()._read(path))
        return self.__dict__["once"]


class ForgetsLeases(Simple):
    caught_by = ("test_schedules_and_leases_outlive_their_scheduler",)
    on_a_file = True

    def _read(self, path: Path) -> State:
        state = super()._read(path)
        for entry in state.entries.values():
            entry.owner = None
        return state


class KeepsNothing(Simple):
    caught_by = ("test_schedules_and_leases_outlive_their_scheduler", "test_two_share_their_schedules")
    on_a_file = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._path = None


# ------------------------------------------------------------------------------------------------ autoscalers


class Scaler(SimpleAutoscaler):
    """A sound autoscaler, to break."""

    caught_by: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any) -> None:
        super().__init__(config.options)


class HasAMemory(Scaler):
    caught_by = ("test_it_is_pure",)
    last: Any = None

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, self.last = super().decide(sample, self.last)
        return wanted, None


class SharesAMemory(Scaler):
    """Its memory is outside of the instance."""

    caught_by = ("test_it_is_pure",)
    calls: ClassVar[list[int]] = []

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        self.calls.append(sample.busy)
        wanted, state = super().decide(sample, state)
        return wanted + len(self.calls) % 2, state


class ChangesTheState(Scaler):
    caught_by = ("test_it_is_pure",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        state = state or {"smoothed": None}
        wanted, state["smoothed"] = super().decide(sample, state["smoothed"])
        return wanted, state


class NeedsABacklog(Scaler):
    caught_by = ("test_any_sample_gets_an_answer",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        return super().decide(replace(sample, backlog=sample.backlog + 0), state)  # type: ignore[operator]


class DividesBySlots(Scaler):
    caught_by = ("test_any_sample_gets_an_answer",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, state = super().decide(sample, state)
        return wanted + 0 * int(sample.busy / sample.slots), state


class AnswersWithAFraction(Scaler):
    caught_by = ("test_any_sample_gets_an_answer",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[Any, Any]:
        _, state = super().decide(sample, state)
        return state.need, state


class GoesBelowZero(Scaler):
    caught_by = ("test_any_sample_gets_an_answer",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, state = super().decide(sample, state)
        return wanted - 2, state


class WantsASlotForEachMessage(Scaler):
    caught_by = ("test_any_sample_gets_an_answer",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        return sample.busy + (sample.backlog or 0), state


class FleesFromWork(Scaler):
    caught_by = ("test_more_load_never_means_fewer_slots", "test_a_burst_gets_more_slots")

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, state = super().decide(sample, state)
        return (1 if (sample.backlog or 0) > 100 else wanted), state


class NeverGrows(Scaler):
    caught_by = ("test_a_burst_gets_more_slots", "test_a_constant_load_settles")

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, state = super().decide(sample, state)
        return min(wanted, sample.slots), state


class NeverShrinks(Scaler):
    caught_by = ("test_idle_slots_are_given_back",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        wanted, state = super().decide(sample, state)
        return max(wanted, sample.slots), state


class Flaps(Scaler):
    """No smoothing, no margin: the number follows every breath of the load."""

    caught_by = ("test_a_constant_load_settles",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        need = (sample.busy + (sample.backlog or 0)) / 0.8
        return math.ceil(min(need, 100_000)), Smoothed(need, sample.at)


class IsGenerous(Scaler):
    caught_by = ("test_a_constant_load_settles",)

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        return 40, state


SCHEDULERS = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Simple)][1:]
AUTOSCALERS = [mutant for mutant in globals().values() if isinstance(mutant, type) and issubclass(mutant, Scaler)][1:]

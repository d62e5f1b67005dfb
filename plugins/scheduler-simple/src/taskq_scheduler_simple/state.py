"""What is kept: schedules with their leases, and what can be done to them. No clock, no lock, no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from taskq.errors import EncodeError
from taskq.spi import Fire, Schedule
from taskq_scheduler_simple.rules import parse

_copy_encoder = msgspec.json.Encoder()
_schedule_decoder = msgspec.json.Decoder(Schedule)


class Entry(Struct):
    """A schedule, the origin of its interval, and who is sending its firing until when."""

    schedule: Schedule
    anchor: float
    owner: str | None = None
    until: float = 0.0


class State(Struct):
    """All schedules by id. ``changes`` counts what others should wake up for."""

    entries: dict[str, Entry] = {}
    changes: int = 0

    def upsert(self, given: Schedule, now: float) -> Schedule:
        """Add or replace; an unchanged rule goes on where it was. Return the schedule as kept."""
        rule = parse(given.rule, given.id)
        for name in ("args", "kwargs", "options"):
            _check(getattr(given, name), f"Schedule {given.id!r}: {name}")
        old = self.entries.get(given.id)
        schedule = copy(given)
        if old is None:
            anchor, schedule.next_due = rule.first(now)
            schedule.last_fired, schedule.version = None, 1
            self.entries[given.id] = Entry(schedule, anchor)
        else:
            kept = old.schedule
            schedule.next_due, schedule.last_fired, schedule.version = kept.next_due, kept.last_fired, kept.version
            if schedule == kept:
                return schedule
            schedule.version += 1
            if schedule.rule != kept.rule:
                old.anchor, schedule.next_due = rule.first(now)
                old.owner = None  # what was being sent belongs to the old rule
            old.schedule = schedule
        self.changes += 1
        return copy(schedule)

    def remove(self, schedule_id: str) -> bool:
        """Remove; whether it was there."""
        if self.entries.pop(schedule_id, None) is None:
            return False
        self.changes += 1
        return True

    def get(self, schedule_id: str) -> Schedule | None:
        """Return one."""
        entry = self.entries.get(schedule_id)
        return None if entry is None else copy(entry.schedule)

    def list(self, after: str | None, limit: int) -> Sequence[Schedule]:
        """Return some, sorted by id."""
        ids = sorted(name for name in self.entries if after is None or name > after)
        return [copy(self.entries[name].schedule) for name in ids[: max(0, limit)]]

    def lease(self, owner: str, now: float, limit: int, ttl: float) -> Sequence[Fire]:
        """Return due firings, and hold them."""
        found = []
        for entry in self.entries.values():
            schedule = entry.schedule
            due = schedule.next_due
            if not schedule.enabled or due is None or due > now:
                continue
            if entry.owner not in (None, owner) and entry.until > now:
                continue
            found.append((parse(schedule.rule, schedule.id).latest(due, entry.anchor, now), schedule.id, entry))
        found.sort(key=lambda item: item[:2])
        fires = []
        for due, _, entry in found[: max(0, limit)]:
            entry.owner, entry.until = owner, now + ttl
            fires.append(Fire(schedule=copy(entry.schedule), due=due, owner=owner))
        return fires

    def settle(self, fired: Sequence[Fire]) -> bool:
        """Mark as sent and go on to the next times; whether that changed anything."""
        changed = False
        for fire in fired:
            entry = self.entries.get(fire.schedule.id)
            if entry is None or entry.schedule.rule != fire.schedule.rule:
                continue
            # Who settles does not matter: (id, due) was sent, and another owner that leased it sends the same message.
            schedule = entry.schedule
            if schedule.next_due is None or fire.due < schedule.next_due:
                continue  # settled before
            schedule.next_due = parse(schedule.rule, schedule.id).after(fire.due, entry.anchor)
            schedule.last_fired = fire.due
            entry.owner = None
            changed = True
        return changed

    def next_due(self) -> float | None:
        """Return when there is something to lease: a firing that is being sent counts from the end of its lease."""
        return min(
            (
                due if entry.owner is None else max(due, entry.until)
                for entry in self.entries.values()
                if entry.schedule.enabled and (due := entry.schedule.next_due) is not None
            ),
            default=None,
        )


def copy(schedule: Schedule) -> Schedule:
    """Return a copy that shares nothing with the original."""
    return _schedule_decoder.decode(_copy_encoder.encode(schedule))


def _check(value: Any, where: str) -> None:
    """Refuse what JSON would change.

    Raises:
        EncodeError: the value is no plain data.
    """
    kind = type(value)
    if kind in (str, int, bool, type(None)) or (kind is float and math.isfinite(value)):
        return
    if kind in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif kind is dict and all(type(key) is str for key in value):
        for key, item in value.items():
            _check(item, f"{where}[{key!r}]")
    else:
        shown = repr(value) if isinstance(value, float) else f"a {kind.__name__}"
        raise EncodeError(
            f"{where} is {shown}; a schedule keeps plain JSON data only (None, booleans, numbers, text, lists, dicts "
            "with text keys). Pass an id or a text and let the task make the rest of it."
        )

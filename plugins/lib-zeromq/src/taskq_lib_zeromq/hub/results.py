"""Results and coordination in the hub: state machines without sockets, clocks or threads."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from heapq import heapify, heappop, heappush

from msgspec import Struct

from taskq.message import Record
from taskq.spi import Op, OpKind, OpResult
from taskq_lib_zeromq.hub.journal import Journal

NEVER = float("inf")
_OVERHEAD = 300
"""Bytes that a record takes besides its payload."""


class Kept(Struct, gc=False):
    """A record, when it expires on the wall clock, and what it counts against the cap."""

    record: Record
    expires: float
    size: int
    segment: int = 0


class Results:
    """Records by task id, none older than its ttl, no more bytes than the cap."""

    def __init__(self, cap: int, *, evicts: bool, journal: Journal | None = None) -> None:
        self.cap = cap
        self.evicts = evicts
        self.journal = journal
        self.kept: dict[str, Kept] = {}
        self.bytes = 0
        self.evicted = 0
        self._expiries: list[tuple[float, str]] = []

    def full(self, records: Sequence[Record], now: float) -> str:
        """Return why there is no room for records where none may be evicted, else nothing."""
        if self.evicts:
            return ""
        more = sum(_size(r) for r in records if r.id not in self.kept)
        if self.bytes + more <= self.cap:
            return ""
        self.expire(now)
        if self.bytes + more <= self.cap:
            return ""
        return (
            f"its results take {self.bytes} of {self.cap} bytes; read and forget results, let them expire sooner "
            "(result_ttl), or start the hub with more --result-bytes or --results-full evict"
        )

    def put(self, record: Record, now: float) -> bool:
        """Keep a record; False where a better one is there."""
        old = self.kept.get(record.id)
        if old is not None:
            if old.expires > now and not _better(record, old.record):
                return False
            self.bytes -= old.size
            del self.kept[record.id]  # so that the new one is the youngest
            if self.journal is not None:
                self.journal.dropped(old)
        size = _size(record)
        kept = Kept(record, now + record.ttl, size)
        self.kept[record.id] = kept
        self.bytes += size
        heappush(self._expiries, (kept.expires, record.id))
        if self.journal is not None:
            self.journal.kept(kept)
        if self.bytes > self.cap:
            self._evict()
        return True

    def _evict(self) -> None:
        """Drop the oldest; dictionaries keep the order of insertion."""
        while self.bytes > self.cap and len(self.kept) > 1:
            self._drop(next(iter(self.kept)))
            self.evicted += 1

    def get(self, ids: Sequence[str], now: float) -> list[Record | None]:
        found = []
        for record_id in ids:
            kept = self.kept.get(record_id)
            found.append(kept.record if kept is not None and kept.expires > now else None)
        return found

    def delete(self, ids: Sequence[str]) -> None:
        for record_id in ids:
            if record_id in self.kept:
                self._drop(record_id)
        if len(self._expiries) > 1000 and len(self._expiries) > 4 * len(self.kept):
            self._expiries = [(k.expires, i) for i, k in self.kept.items()]
            heapify(self._expiries)

    def _drop(self, record_id: str) -> None:
        kept = self.kept.pop(record_id)
        self.bytes -= kept.size
        if self.journal is not None:
            self.journal.dropped(kept)

    def due(self) -> float:
        """Return when ``expire`` has something to do."""
        return self._expiries[0][0] if self._expiries else NEVER

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            _, record_id = heappop(expiries)
            kept = self.kept.get(record_id)
            if kept is not None and kept.expires <= now:
                self._drop(record_id)

    def restore(self, kept: Kept) -> None:
        """Take a record from the journal."""
        self.kept[kept.record.id] = kept
        self.bytes += kept.size
        heappush(self._expiries, (kept.expires, kept.record.id))


def _size(record: Record) -> int:
    return len(record.payload) + (len(record.follow_ups) if record.follow_ups else 0) + _OVERHEAD


def _better(new: Record, old: Record) -> bool:
    a, b = (new.epoch, new.attempt), (old.epoch, old.attempt)
    if a != b:
        return a > b
    return not old.terminal


class Entry(Struct, gc=False):
    """One key of coordination: its value and when it expires on the wall clock, 0 for never."""

    key: str
    value: bytes
    expires: float = 0.0
    segment: int = 0


class Coordinator:
    """Keys, semaphores and time indexes. Nothing here is ever evicted."""

    def __init__(self, journal: Journal | None = None) -> None:
        self.journal = journal
        self.keys: dict[str, Entry] = {}
        self.slots: dict[str, dict[str, float]] = {}
        self.indexes: dict[str, tuple[dict[str, float], list[tuple[float, str]]]] = {}
        self._expiries: list[tuple[float, str]] = []

    def apply(self, ops: Sequence[Op], now: float) -> list[OpResult]:
        return [self._one(op, now) for op in ops]

    def _one(self, op: Op, now: float) -> OpResult:
        entry = self._live(op.key, now)
        current = entry.value if entry is not None else None
        kind = op.kind
        if kind is OpKind.GET:
            return OpResult(entry is not None, current)
        if kind is OpKind.INCREMENT:
            if entry is None:
                return self._set(op.key, b"%d" % op.amount, op.ttl, now)
            try:
                value = b"%d" % (int(entry.value) + op.amount)
            except ValueError:
                return OpResult(False, current)
            ttl = entry.expires - now if entry.expires else None
            return self._set(op.key, value, ttl, now)
        if kind is OpKind.DELETE:
            if entry is None or (op.expected is not None and op.expected != current):
                return OpResult(False, current)
            self._drop(op.key)
            return OpResult(True, None)
        if (kind is OpKind.PUT_IF_ABSENT and entry is not None) or (
            kind is OpKind.COMPARE_AND_SET and op.expected != current
        ):
            return OpResult(False, current)
        return self._set(op.key, op.value or b"", op.ttl, now)

    def _live(self, key: str, now: float) -> Entry | None:
        entry = self.keys.get(key)
        if entry is not None and entry.expires and entry.expires <= now:
            self._drop(key)
            return None
        return entry

    def _set(self, key: str, value: bytes, ttl: float | None, now: float) -> OpResult:
        entry = Entry(key, value, now + ttl if ttl is not None else 0.0)
        old = self.keys.pop(key, None)
        if old is not None and self.journal is not None:
            self.journal.entry_dropped(old)
        self.keys[key] = entry
        if entry.expires:
            heappush(self._expiries, (entry.expires, key))
        if self.journal is not None:
            self.journal.entry(entry)
        return OpResult(True, value)

    def _drop(self, key: str) -> None:
        entry = self.keys.pop(key)
        if self.journal is not None:
            self.journal.entry_dropped(entry)

    # ------------------------------------------------------------------------------------------------ semaphores

    def acquire(self, key: str, owner: str, slots: int, ttl: float, now: float) -> bool:
        owners = self.slots.setdefault(key, {})
        self._end_slots(owners, now)
        if owner not in owners and len(owners) >= slots:
            return False
        owners[owner] = now + ttl
        heappush(self._expiries, (now + ttl, key))
        self._note_slots(key)
        return True

    def renew(self, key: str, owner: str, ttl: float, now: float) -> bool:
        owners = self.slots.get(key)
        if owners is None or owners.get(owner, 0.0) <= now:
            return False
        owners[owner] = now + ttl
        heappush(self._expiries, (now + ttl, key))
        self._note_slots(key)
        return True

    def release(self, key: str, owner: str) -> None:
        owners = self.slots.get(key)
        if owners is not None and owners.pop(owner, None) is not None:
            self._note_slots(key)

    def _end_slots(self, owners: dict[str, float], now: float) -> None:
        for owner in [o for o, ends in owners.items() if ends <= now]:
            del owners[owner]

    def _note_slots(self, key: str) -> None:
        if self.journal is not None:
            self.journal.slots(key, self.slots[key])
        if not self.slots[key]:
            del self.slots[key]

    # ---------------------------------------------------------------------------------------------- time indexes

    def index_put(self, index: str, entries: dict[str, float]) -> None:
        members, order = self.indexes.setdefault(index, ({}, []))
        for member, at in entries.items():
            old = members.get(member)
            if old is not None:
                del order[bisect_left(order, (old, member))]
            members[member] = at
            insort(order, (at, member))
            if self.journal is not None:
                self.journal.member(index, member, at)

    def index_due(self, index: str, now: float, limit: int) -> list[tuple[str, float]]:
        found = self.indexes.get(index)
        if found is None:
            return []
        due: list[tuple[str, float]] = []
        for at, member in found[1]:
            if at > now or len(due) >= limit:
                break
            due.append((member, at))
        return due

    def index_remove(self, index: str, wanted: Sequence[str]) -> list[str]:
        found = self.indexes.get(index)
        if found is None:
            return []
        members, order = found
        removed = []
        for member in wanted:
            at = members.pop(member, None)
            if at is not None:
                del order[bisect_left(order, (at, member))]
                removed.append(member)
                if self.journal is not None:
                    self.journal.member(index, member, None)
        if not members:
            del self.indexes[index]
        return removed

    # ----------------------------------------------------------------------------------- from the journal

    def restore_entry(self, entry: Entry) -> None:
        """Take a key from the journal."""
        self.keys[entry.key] = entry
        if entry.expires:
            heappush(self._expiries, (entry.expires, entry.key))

    def restore_slots(self, key: str, owners: dict[str, float]) -> None:
        """Take a semaphore from the journal."""
        self.slots[key] = owners
        for ends in owners.values():
            heappush(self._expiries, (ends, key))

    def restore_member(self, index: str, member: str, at: float) -> None:
        """Take a member of a time index from the journal."""
        members, order = self.indexes.setdefault(index, ({}, []))
        members[member] = at
        insort(order, (at, member))

    # -------------------------------------------------------------------------------------------------- time

    def due(self) -> float:
        """Return when ``expire`` has something to do."""
        return self._expiries[0][0] if self._expiries else NEVER

    def expire(self, now: float) -> None:
        """Drop what has expired."""
        expiries = self._expiries
        while expiries and expiries[0][0] <= now:
            _, key = heappop(expiries)
            self._live(key, now)
            owners = self.slots.get(key)
            if owners is not None:
                before = len(owners)
                self._end_slots(owners, now)
                if len(owners) != before:
                    self._note_slots(key)

    def names(self, now: float, visit: Callable[[str], None]) -> None:
        """Name all that is kept."""
        for key in list(self.keys):
            if self._live(key, now) is not None:
                visit(f"k:{key}")
        for key, owners in self.slots.items():
            if any(ends > now for ends in owners.values()):
                visit(f"s:{key}")
        for index in self.indexes:
            visit(f"t:{index}")

"""Results and coordination entries in memory. Every method runs under the server's lock and is given the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Protocol

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi import Op, OpKind, OpResult

NEVER = float("inf")


class Waiter(Protocol):
    """A thread that waits for results."""

    ids: frozenset[str]

    def ring(self) -> None: ...


def checked_key(key: str) -> str:
    """Return a coordination key that every server could keep.

    Raises:
        StoreError: longer than 200 bytes, or not printable ASCII.
    """
    if not key or len(key) > 200 or not key.isascii() or not key.isprintable():
        error = StoreError(f"coordination key {key[:210]!r} is not 1 to 200 printable ASCII characters")
        error.retryable = False
        raise error
    return key


class Records:
    """All records, coordination entries, semaphores and time indexes of one server."""

    def __init__(self) -> None:
        self.results: dict[str, tuple[Record, float]] = {}
        self.values: dict[str, tuple[bytes, float]] = {}
        self.places: dict[str, dict[str, float]] = {}
        self.indexes: dict[str, dict[str, float]] = {}
        self.waiting: dict[Waiter, None] = {}

    # ------------------------------------------------------------------------------------------------- results

    def put(self, records: Iterable[Record], now: float) -> list[str]:
        """Store records that supersede what is there; return the ids of the others."""
        superseded: list[str] = []
        results = self.results
        for record in records:
            kept = results.get(record.id)
            if kept is not None and kept[1] > now:
                old = kept[0]
                if old.epoch != record.epoch:
                    worse = old.epoch > record.epoch
                elif old.attempt != record.attempt:
                    worse = old.attempt > record.attempt
                else:
                    worse = old.terminal
                if worse:
                    superseded.append(record.id)
                    continue
            results[record.id] = (record, now + record.ttl)
            if self.waiting and record.terminal:
                for waiter in self.waiting:
                    if record.id in waiter.ids:
                        waiter.ring()
        return superseded

    def get(self, ids: Iterable[str], now: float) -> list[Record | None]:
        found = [self.results.get(i) for i in ids]
        return [kept[0] if kept is not None and kept[1] > now else None for kept in found]

    def delete(self, ids: Iterable[str]) -> None:
        for i in ids:
            self.results.pop(i, None)

    def sweep(self, now: float) -> None:
        """Forget everything that has expired."""
        self.results = {i: kept for i, kept in self.results.items() if kept[1] > now}
        self.values = {k: kept for k, kept in self.values.items() if kept[1] > now}
        for key, owners in list(self.places.items()):
            self.places[key] = {o: until for o, until in owners.items() if until > now}
            if not self.places[key]:
                del self.places[key]

    # -------------------------------------------------------------------------------------------- coordination

    def apply(self, ops: Iterable[Op], now: float) -> list[OpResult]:
        return [self._apply(op, now) for op in ops]

    def _apply(self, op: Op, now: float) -> OpResult:
        key = checked_key(op.key)
        kept = self.values.get(key)
        if kept is not None and kept[1] <= now:
            del self.values[key]
            kept = None
        current = kept[0] if kept is not None else None
        until = NEVER if op.ttl is None else now + op.ttl
        match op.kind:
            case OpKind.GET:
                return OpResult(current is not None, current)
            case OpKind.DELETE:
                if current is None or (op.expected is not None and op.expected != current):
                    return OpResult(False, current)
                del self.values[key]
                return OpResult(True, None)
            case OpKind.INCREMENT:
                try:
                    value = b"%d" % (int(current or b"0") + op.amount)
                except ValueError:  # not a number: left as it is
                    return OpResult(False, current)
                self.values[key] = (value, until if kept is None else kept[1])
                return OpResult(True, value)
            case OpKind.PUT_IF_ABSENT:
                wanted = current is None
            case OpKind.COMPARE_AND_SET:
                wanted = current == op.expected
            case OpKind.PUT:
                wanted = True
        if not wanted:
            return OpResult(False, current)
        self.values[key] = (op.value or b"", until)
        return OpResult(True, op.value or b"")

    def acquire(self, key: str, owner: str, slots: int, until: float, now: float) -> bool:
        owners = self.places.setdefault(checked_key(key), {})
        for other in [o for o, end in owners.items() if end <= now]:
            del owners[other]
        if owner not in owners and len(owners) >= slots:
            return False
        owners[owner] = until
        return True

    def renew(self, key: str, owner: str, until: float, now: float) -> bool:
        owners = self.places.get(checked_key(key), {})
        if owners.get(owner, 0.0) <= now:
            return False
        owners[owner] = until
        return True

    def release(self, key: str, owner: str) -> None:
        self.places.get(checked_key(key), {}).pop(owner, None)

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        self.indexes.setdefault(index, {}).update(entries)

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        due = [(at, member) for member, at in self.indexes.get(index, {}).items() if at <= now]
        return [(member, at) for at, member in nsmallest(limit, due)]

    def index_remove(self, index: str, members: Sequence[str]) -> list[str]:
        entries = self.indexes.get(index, {})
        return [m for m in members if entries.pop(m, None) is not None]

"""A consumer of the memory transport: what it holds, and the one-step commit with the memory store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportClosed
from taskq.message import RELEASE, Delivery, Fetched, Lost, Outbound, Record, Settlement
from taskq_lib_memory import Bell, Patience
from taskq_transport_memory.shares import Shares

if TYPE_CHECKING:
    from taskq.spi import Commit, Committer, Receipt, ResultStore, SubscribeOrder, Subscription
    from taskq_lib_memory import Entry, MemoryServer
    from taskq_transport_memory.transport import MemoryTransport

_NOTHING = Fetched()
_UNLIMITED = 1 << 62


class MemoryConsumer:
    """Holds messages of a ``MemoryServer`` under one lease."""

    def __init__(self, transport: MemoryTransport, server: MemoryServer, lease_s: float) -> None:
        self._transport = transport
        self._server = server
        self._lease_s = lease_s
        self._bell = Bell()
        self.ring = self._bell.ring
        server.bells.add(self._bell)
        self._woken = False
        self._closed = False
        self._starved = False
        self._shares = Shares(())
        self._credit = _UNLIMITED
        self._max_bytes = _UNLIMITED
        self._held_bytes = 0
        self._lost: dict[Any, None] = {}
        self.held: dict[Any, Entry] = {}
        self.names: frozenset[str] = frozenset()
        self.deadline = 0.0

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        with self._server.lock:
            by_name = [(self._server.queues.queue(s.queue), s.weight) for s in queues]
            self._shares = Shares(by_name, order)
            self.names = frozenset(s.queue for s in queues)

    def credit(self, n: int, max_bytes: int) -> None:
        with self._server.lock:
            self._credit = n
            self._max_bytes = max_bytes
            self._held_bytes = sum(len(e.payload) for e in self.held.values())
        self._bell.ring()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        patience: Patience | None = None
        while True:
            fetched, due = self._take(limit, wait > 0)
            if fetched is not None:
                return fetched
            if wait <= 0:
                return _NOTHING
            if patience is None:
                patience = Patience(self._server, wait)
            left = patience.left()
            if left <= 0:
                # The last look, also for a message that came and rang this consumer since the one before.
                return self._take(limit, False)[0] or _NOTHING
            try:
                self._bell.wait(patience.until(due, left))
            except BaseException:
                self._take(0, False)  # stop standing in line for messages
                raise

    def _take(self, limit: int, wait: bool) -> tuple[Fetched | None, float]:
        """Return what can be had at once, else None and when something may be due."""
        self._check()
        server = self._server
        queues = server.queues
        now = server.clock.monotonic()
        with server.lock:
            self.deadline = now + self._lease_s  # who asks for work is alive
            soonest = queues.reap(now)
            queues.promote(now)
            if queues.waiting:
                queues.waiting.pop(self, None)
            lost = self._reported() if self._lost else ()
            room = min(limit, self._credit - len(self.held))
            starved = room <= 0
            entries = [] if starved else self._shares.take(room)
            if entries and self._max_bytes < _UNLIMITED:
                starved = not self._within_bytes(entries)
            if entries:
                receipt = queues.next_receipt
                queues.next_receipt = end = receipt + len(entries)
                self.held.update(zip(range(receipt, end), entries, strict=True))
                if self not in queues.holders:
                    queues.holders[self] = None
                self._starved = self._woken = False
                deliveries = [
                    Delivery(e.payload, r, e.queue, e.ended + 1, e.group) for r, e in enumerate(entries, receipt)
                ]
                return Fetched(deliveries, lost), 0.0
            if lost or self._woken:
                self._starved = self._woken = False
                return Fetched((), lost), 0.0
            # Without credit no message that is sent can help, only a settlement.
            self._starved = starved and wait
            if wait and not starved:
                queues.waiting[self] = None
            return None, min(soonest, queues.next_due)

    def _within_bytes(self, entries: list[Entry]) -> bool:
        """Keep what fits the byte credit, at least one message where nothing is held; whether anything is left."""
        total = self._held_bytes
        for i, entry in enumerate(entries):
            total += len(entry.payload)
            if total > self._max_bytes and (i or self.held):
                rest = entries[i:]
                del entries[i:]
                self._server.queues.give_back(rest)
                total -= len(entry.payload)
                break
        self._held_bytes = total
        return bool(entries)

    # ------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        server = self._server
        now = server.clock.monotonic()
        with server.lock:
            return self.settle_locked(settlements, now)

    def settle_locked(self, settlements: Sequence[Settlement], now: float) -> list[Lost]:
        queues = self._server.queues
        lost: list[Lost] = []
        returned: list[Entry] = []
        pop = self.held.pop
        count_bytes = self._max_bytes < _UNLIMITED
        for s in settlements:
            entry = pop(s.receipt, None)
            if entry is None:
                self._lost.pop(s.receipt, None)
                lost.append(Lost(s.receipt, "not held: the lease ended, or it was settled before"))
                continue
            if count_bytes:
                self._held_bytes -= len(entry.payload)
            if s.kind == RELEASE:
                if s.counted:
                    entry.ended += 1
                if s.delay > 0:
                    queues.delay(entry, now + s.delay, keeps_group=True)
                    queues.notify(entry.queue, 1)
                else:
                    returned.append(entry)
            elif entry.group is not None:
                queues.finished(entry)
        if returned:
            queues.give_back(returned)
        self.deadline = now + self._lease_s
        if self._starved:
            self._bell.ring()
        return lost

    def flush(self, timeout: float) -> Sequence[Lost]:
        return ()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        server = self._server
        with server.lock:
            self.deadline = server.clock.monotonic() + self._lease_s
            return self._reported()

    def fuse(self, store: ResultStore) -> Committer | None:
        return MemoryCommitter(self, self._server) if getattr(store, "server", None) is self._server else None

    # ------------------------------------------------------------------------------------------------- anywhere

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def close(self) -> None:
        if self._closed or self._server.inherited():
            return
        self._closed = True
        with self._server.lock:
            queues = self._server.queues
            queues.waiting.pop(self, None)
            queues.holders.pop(self, None)
            entries = list(self.held.values())
            self.held.clear()
            queues.give_back(entries)
            # A message that woke this consumer, which will not look any more, must wake another.
            for name in self.names:
                if (queue := queues.by_name.get(name)) is not None and (ready := queue.ready()):
                    queues.notify(name, ready)
        self._bell.ring()
        self._transport.forget(self)

    def take_away(self) -> list[Entry]:
        entries = list(self.held.values())
        self._lost.update(dict.fromkeys(self.held))
        self.held.clear()
        self._held_bytes = 0
        self._bell.ring()
        return entries

    def _reported(self) -> list[Lost]:
        lost = [Lost(r, "the lease ended") for r in self._lost]
        self._lost.clear()
        return lost

    def _check(self) -> None:
        if self._closed:
            raise TransportClosed("this consumer of memory:// is closed; make a new one with Transport.consumer()")
        self._transport.check()


class MemoryCommitter:
    """Stores outcomes and settles under the one lock of transport and store."""

    def __init__(self, consumer: MemoryConsumer, server: MemoryServer) -> None:
        self._consumer = consumer
        self._server = server

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        consumer = self._consumer
        consumer._check()
        server = self._server
        now = server.clock.monotonic()
        with server.lock:
            held = consumer.held
            records: list[Record] = []
            follow_ups: list[Outbound] = []
            for commit in commits:
                if commit.settlement.receipt in held:
                    if commit.record is not None:
                        records.append(commit.record)
                    if commit.follow_ups:
                        follow_ups.extend(commit.follow_ups)
            if records:
                server.records.put(records, now)
            if follow_ups:
                server.queues.send(follow_ups, now)
            return consumer.settle_locked([c.settlement for c in commits], now)

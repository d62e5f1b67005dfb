"""Reading a journal: what was changed, in order, and the state that comes of it."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from taskq_lib_zeromq.hub import journal as j
from taskq_lib_zeromq.hub.broker import Broker
from taskq_lib_zeromq.hub.consumers import Consumer
from taskq_lib_zeromq.hub.results import Coordinator, Entry, Kept, Results
from taskq_lib_zeromq.protocol import Message

_TYPES: dict[int, Any] = {
    j._SENT: list[Message],
    j._DELIVERED: tuple[str, float, int, list[int]],
    j._ENDED: list[int],
    j._RELEASED: tuple[int, int, float],
    j._LEFT: str,
    j._SETTLED: tuple[str, int],
    j._QUEUES: list[str],
    j._ORDERED: str,
    j._KEPT: Kept,
    j._DROPPED: str,
    j._ENTRY: Entry,
    j._ENTRY_DROPPED: str,
    j._SLOTS: tuple[str, dict[str, float]],
    j._MEMBER: tuple[str, str, float | None],
}
_DECODERS = {kind: msgspec.msgpack.Decoder(what).decode for kind, what in _TYPES.items()}


class Replay:
    """Applies entries one by one; ``finish`` fills the hub."""

    def __init__(self) -> None:
        self.segment = 1
        self.messages: dict[int, Message] = {}
        self.due: dict[int, float] = {}
        """When delayed messages become ready, on the wall clock."""
        self.held: dict[int, tuple[str, int]] = {}
        """Consumer and receipt of messages in flight."""
        self.leases: dict[str, float] = {}
        self.settled: dict[str, int] = {}
        self.others: dict[str, tuple[int, tuple[int, Any]]] = {}
        """All else by key: segment, and the entry that tells of it."""
        self.last = 0

    def apply(self, kind: int, raw: msgspec.Raw, offset: float) -> None:
        """Apply one entry; ``offset`` is from the monotonic to the wall clock when it was written."""
        what: Any = _DECODERS[kind](raw)
        if kind == j._SENT:
            for message in what:
                message.segment = self.segment
                self.messages[message.seq] = message
                self.last = max(self.last, message.seq)
                if message.delay > 0:
                    self.due[message.seq] = message.at + offset
        elif kind == j._DELIVERED:
            consumer, lease, first, seqs = what
            self.leases[consumer] = lease
            for receipt, seq in enumerate(seqs, first):
                self.held[seq] = (consumer, receipt)
                self.due.pop(seq, None)
        elif kind == j._ENDED:
            for seq in what:
                self.messages.pop(seq, None)
                self.held.pop(seq, None)
                self.due.pop(seq, None)
        elif kind == j._RELEASED:
            seq, ended, due = what
            self.held.pop(seq, None)
            if seq in self.messages:
                self.messages[seq].ended = ended
                if due:
                    self.due[seq] = due + offset
        elif kind == j._LEFT:
            self.leases.pop(what, None)
            self.settled.pop(what, None)
        elif kind == j._SETTLED:
            self.settled[what[0]] = what[1]
        else:
            self._other(kind, what)

    def _other(self, kind: int, what: Any) -> None:
        if kind == j._QUEUES:
            for name in what:
                self._keep(f"q:{name}", kind, [name])
        elif kind == j._ORDERED:
            self._keep(f"o:{what}", kind, what)
        elif kind == j._KEPT:
            self._keep(f"r:{what.record.id}", kind, what)
        elif kind == j._DROPPED:
            self.others.pop(f"r:{what}", None)
        elif kind == j._ENTRY:
            self._keep(f"k:{what.key}", kind, what)
        elif kind == j._ENTRY_DROPPED:
            self.others.pop(f"k:{what}", None)
        elif kind == j._SLOTS:
            self._keep_if(bool(what[1]), f"s:{what[0]}", kind, what)
        elif kind == j._MEMBER:
            self._keep_if(what[2] is not None, f"t:{what[0]}\0{what[1]}", kind, what)

    def _keep(self, key: str, kind: int, what: Any) -> None:
        self.others.pop(key, None)
        self.others[key] = (self.segment, (kind, what))

    def _keep_if(self, there: bool, key: str, kind: int, what: Any) -> None:
        if there:
            self._keep(key, kind, what)
        else:
            self.others.pop(key, None)

    def finish(self, broker: Broker, results: Results, coordinator: Coordinator) -> None:
        """Fill a new hub."""
        now, wall = time.monotonic(), time.time()
        for _, (kind, what) in self.others.values():
            if kind == j._QUEUES:
                broker.queue(what[0])
            elif kind == j._ORDERED:
                broker.queue(what).ordered = True
            elif kind == j._KEPT:
                results.restore(what)
            elif kind == j._ENTRY:
                coordinator.restore_entry(what)
            elif kind == j._SLOTS:
                coordinator.restore_slots(*what)
            elif kind == j._MEMBER:
                coordinator.restore_member(*what)
        broker.restored(self.last)
        for seq, (name, receipt) in sorted(self.held.items(), key=lambda item: item[1][1]):
            message = self.messages.get(seq)
            if message is None:
                continue
            lease = self.leases.get(name, 10.0)
            consumer = broker.consumers.get(name)
            if consumer is None:
                # its lease begins anew, so that it has time to find the hub again
                consumer = broker.consumers[name] = Consumer(name, lease, now)
                consumer.last_settle = self.settled.get(name, 0)
                broker.now = now
                broker.beat(consumer)
            consumer.held[receipt] = message
            consumer.bytes += len(message.payload)
            queue = broker.queue(message.queue)
            if queue.ordered and message.group is not None:
                queue.busy.add(message.group)
        for seq in sorted(self.messages.keys() - self.held.keys()):
            message = self.messages[seq]
            queue = broker.queue(message.queue)
            due = self.due.get(seq, 0.0) - wall
            if due > 0:
                broker.delay(queue, message, now + due)
            else:
                message.at = now
                queue.push(message)

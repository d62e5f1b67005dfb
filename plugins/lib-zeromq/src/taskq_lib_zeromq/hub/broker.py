"""The hub's queues and consumers: a state machine without sockets, clocks or threads.

What it has to say to clients goes to ``out``, which the server writes once the journal, if there is one, has it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from heapq import heappop, heappush
from typing import Any

from taskq.message import RELEASE, Settlement
from taskq_lib_zeromq.hub.consumers import Consumer
from taskq_lib_zeromq.hub.journal import Journal
from taskq_lib_zeromq.hub.queues import Queue
from taskq_lib_zeromq.protocol import Adopted, Attach, Confirm, Deliver, Gone, Message

NEVER = float("inf")
_RECEIPT_BITS = 40
"""A receipt is the hub's epoch and, in as many bits, a number: those of before a restart are known as such."""


class Broker:
    """All queues of one hub, and who holds what of them."""

    def __init__(self, epoch: int, out: Callable[[bytes, Any], None], journal: Journal | None = None) -> None:
        self.epoch = epoch
        self.out = out
        self.journal = journal
        self.queues: dict[str, Queue] = {}
        self.consumers: dict[str, Consumer] = {}
        self.connections: dict[bytes, Consumer] = {}
        """By connection, intake or settling."""
        self.parked = 0
        """Consumers that wait for messages."""
        self._due: list[tuple[float, str]] = []
        """When to look at the delayed messages of which queue."""
        self._next_expiry = NEVER
        self._receipt = (epoch << _RECEIPT_BITS) + 1
        self._seq = 0
        self.now = 0.0
        """The monotonic time of the turn that is under way, set by the server."""

    def restored(self, last: int) -> None:
        """Go on counting after what a journal told of."""
        self._seq = last

    # ---------------------------------------------------------------------------------------------------- queues

    def queue(self, name: str) -> Queue:
        """Return a queue, made where it is missing."""
        found = self.queues.get(name)
        if found is None:
            found = self.queues[name] = Queue(name)
            if self.journal is not None:
                self.journal.declared([name])
        return found

    def declare(self, names: Iterable[str], ordered: Iterable[str]) -> list[str]:
        """Make queues; return those that are new. A queue that holds messages is not made ordered afterwards."""
        made = []
        for name in names:
            if name not in self.queues:
                made.append(name)
                self.queue(name)
        for name in ordered:
            queue = self.queue(name)
            if not queue.ordered:
                queue.make_ordered(m for c in self.consumers.values() for m in c.held.values() if m.queue == name)
                if self.journal is not None:
                    self.journal.ordered(name)
        return made

    def send(self, batch: Sequence[Message]) -> list[tuple[int, str]]:
        """Queue messages; return the index and reason of those that are impossible."""
        now = self.now
        refused: list[tuple[int, str]] = []
        seq = self._seq
        name, queue = None, None
        touched: dict[Queue, None] = {}
        for index, message in enumerate(batch):
            if message.queue != name or queue is None:
                name = message.queue
                queue = self.queue(name)
                touched[queue] = None
            priority = message.priority
            if not 0 <= priority <= 9:
                refused.append((index, f"priority {priority} of message {message.id} is not from 0 to 9"))
                continue
            seq += 1
            message.seq = seq
            message.ended = 0
            if message.delay > 0:
                self.delay(queue, message, now + message.delay)
                continue
            message.at = now
            if queue.ordered:
                queue.push(message)
            else:
                queue.lines[9 - priority].append(message)
                queue.count += 1
        self._seq = seq
        if self.journal is not None:
            bad = {index for index, _ in refused}
            self.journal.sent([m for i, m in enumerate(batch) if i not in bad] if bad else batch)
        for queue in touched:
            self._filled(queue)
        return refused

    def delay(self, queue: Queue, message: Message, due: float, *, keeps_group: bool = False) -> None:
        """Hide a message until then."""
        queue.delay(message, due, keeps_group=keeps_group)
        if queue.delayed[0][2] is message:
            heappush(self._due, (due, queue.name))

    def _filled(self, queue: Queue) -> None:
        """Tell those who wait that a queue may have messages."""
        if not queue.count:
            return
        for consumer in queue.subscribers:
            consumer.ready[queue] = None
        if not self.parked:
            return
        subscribers = queue.subscribers
        count = len(subscribers)
        start = queue.turn
        for step in range(count):
            place = (start + step) % count
            if subscribers[place].want:
                if self._serve(subscribers[place]):
                    queue.turn = place + 1
                if not queue.count:
                    return

    # -------------------------------------------------------------------------------------------------- delivery

    def demand(self, consumer: Consumer, n: int, limit: int, *, park: bool) -> None:
        """Answer a demand, now or when there is something."""
        if consumer.want:
            consumer.want = 0
            self.parked -= 1
        found = self._take(consumer, limit) if limit else None
        if found is None:
            if park:
                consumer.want, consumer.want_n = limit, n
                self.parked += 1
                return
            found = Deliver(n)
        found.n = n
        found.settled = consumer.last_settle
        assert consumer.intake is not None
        self.out(consumer.intake, found)

    def _serve(self, consumer: Consumer) -> bool:
        """Give a waiting consumer what there is; whether there was something for it."""
        if consumer.intake is None:
            return False
        found = self._take(consumer, consumer.want)
        if found is None:
            return False
        found.n = consumer.want_n
        found.settled = consumer.last_settle
        consumer.want = 0
        self.parked -= 1
        self.out(consumer.intake, found)
        return True

    def _take(self, consumer: Consumer, limit: int) -> Deliver | None:
        room = min(limit, consumer.may_take())
        if room <= 0 or not consumer.ready:
            return None
        held = consumer.held
        first = receipt = self._receipt
        size, most = consumer.bytes, consumer.max_bytes
        taken: list[Message] = []
        payloads: list[bytes] = []
        runs: list[tuple[str, int]] = []
        special = False
        for queue in consumer.in_turn():
            before = len(payloads)
            for line in queue.lines:
                if not line:
                    continue
                popleft = line.popleft
                while line and room:
                    message = line[0]
                    payload = message.payload
                    if size + len(payload) > most and held:
                        room = 0
                        break
                    popleft()
                    size += len(payload)
                    held[receipt] = message
                    receipt += 1
                    room -= 1
                    payloads.append(payload)
                    taken.append(message)
                    if message.ended or message.priority != 5 or message.group is not None:
                        special = True
                if not room:
                    break
            got = len(payloads) - before
            if got:
                queue.count -= got
                runs.append((queue.name, got))
            consumer.looked_at(queue)
            if not room:
                break
        if not payloads:
            return None
        consumer.bytes = size
        self._receipt = receipt
        if self.journal is not None:
            self.journal.delivered(consumer.id, consumer.lease_s, first, taken)
        if special:
            return Deliver(
                0, first, runs, payloads, [m.ended for m in taken], [m.priority for m in taken],
                [m.group for m in taken],
            )  # fmt: skip
        return Deliver(0, first, runs, payloads)

    def undelivered(self, connection: bytes, deliver: Deliver) -> None:
        """Take back a delivery whose connection is gone."""
        consumer = self.connections.pop(connection, None)
        if consumer is None:
            return
        if consumer.intake == connection:
            consumer.intake = None
            self._unpark(consumer)
        self._return(consumer, range(deliver.first, deliver.first + len(deliver.payloads)), counted=False)

    def _unpark(self, consumer: Consumer) -> None:
        if consumer.want:
            consumer.want = 0
            self.parked -= 1

    # --------------------------------------------------------------------------------------------------- settling

    def settle(self, consumer: Consumer, acks: Sequence[int], back: Sequence[Settlement]) -> list[int]:
        """End deliveries; return the receipts that are not held."""
        lost: list[int] = []
        done: list[Message] = []
        pop = consumer.held.pop
        size = 0
        for receipt in acks:
            message = pop(receipt, None)
            if message is None:
                lost.append(receipt)
                continue
            size += len(message.payload)
            done.append(message)
        consumer.bytes -= size
        if self.journal is not None and done:
            self.journal.ended(done)
        freed: dict[Queue, None] = {}
        for message in done:
            if message.group is not None:
                queue = self.queues[message.queue]
                if queue.ordered:
                    queue.finished(message.group)
                    freed[queue] = None
        if back:
            lost += self._released(consumer, back)
        for queue in freed:
            self._filled(queue)
        return lost

    def served(self, consumer: Consumer) -> None:
        """Give a consumer whose credit has grown what it waits for."""
        if consumer.want and consumer.ready:
            self._serve(consumer)

    def _released(self, consumer: Consumer, back: Sequence[Settlement]) -> list[int]:
        lost: list[int] = []
        head: dict[Queue, list[Message]] = {}
        now = self.now
        for settlement in back:
            message = consumer.held.pop(settlement.receipt, None)
            if message is None:
                lost.append(settlement.receipt)
                continue
            consumer.bytes -= len(message.payload)
            message.ended += settlement.counted
            queue = self.queue(message.queue)
            if settlement.delay > 0:
                message.delay = settlement.delay
                self.delay(queue, message, now + settlement.delay, keeps_group=True)
            else:
                message.at = now
                head.setdefault(queue, []).append(message)
            if self.journal is not None:
                self.journal.released(message, message.at if settlement.delay > 0 else 0.0)
        for queue, messages in head.items():
            queue.put_back(messages)
            self._filled(queue)
        return lost

    def _return(self, consumer: Consumer, receipts: Iterable[int], *, counted: bool) -> None:
        self._released(consumer, [Settlement(r, RELEASE, 0.0, counted) for r in receipts if r in consumer.held])

    # -------------------------------------------------------------------------------------------------- consumers

    def attach(self, connection: bytes, request: Attach) -> list[int]:
        """Make a consumer known on a connection, new or again; return those of its receipts that are lost."""
        now = self.now
        consumer = self.consumers.get(request.consumer)
        if consumer is None:
            consumer = self.consumers[request.consumer] = Consumer(request.consumer, request.lease_ms / 1000, now)
        consumer.lease_s = request.lease_ms / 1000
        consumer.credit, consumer.max_bytes = request.credit, request.max_bytes
        self.beat(consumer)
        self._subscribe(consumer, request.order, request.queues)
        if request.intake:
            self._unpark(consumer)
            if consumer.intake is not None and consumer.intake != connection:
                self.connections.pop(consumer.intake, None)
            consumer.intake = connection
            mine = set(request.holds)
            self._return(consumer, [r for r in consumer.held if r not in mine], counted=False)
        else:
            if consumer.settling is not None and consumer.settling != connection:
                self.connections.pop(consumer.settling, None)
            consumer.settling = connection
        self.connections[connection] = consumer
        return [r for r in request.holds if r not in consumer.held]

    def adopt(self, name: str, held: Sequence[Adopted]) -> list[int]:
        """Take over what a consumer holds from before this hub's memory; return what cannot be."""
        consumer = self.consumers.get(name)
        if consumer is None:
            return [a.receipt for a in held]
        taken: list[Message] = []
        lost: list[int] = []
        for adopted in held:
            message = adopted.message
            old = adopted.receipt >> _RECEIPT_BITS != self.epoch
            if not old or adopted.receipt in consumer.held or not 0 <= message.priority <= 9:
                lost.append(adopted.receipt)
                continue
            message.delay = 0.0
            self._seq += 1
            message.seq = self._seq
            message.at = self.now
            queue = self.queue(message.queue)
            if queue.ordered and message.group is not None:
                queue.busy.add(message.group)
            consumer.held[adopted.receipt] = message
            consumer.bytes += len(message.payload)
            taken.append(message)
        if self.journal is not None and taken:
            self.journal.sent(taken)
        return lost

    def _subscribe(self, consumer: Consumer, order: str, queues: Sequence[tuple[str, int]]) -> None:
        wanted = {self.queue(name): (place, max(1, weight)) for place, (name, weight) in enumerate(queues)}
        for queue in consumer.queues.keys() - wanted.keys():
            queue.subscribers.remove(consumer)
        for queue in wanted.keys() - consumer.queues.keys():
            queue.subscribers.append(consumer)
        consumer.queues = wanted
        consumer.order = order
        consumer.ready.clear()
        for queue in wanted:
            if queue.count:
                consumer.ready[queue] = None

    def beat(self, consumer: Consumer) -> None:
        """Renew a lease."""
        consumer.deadline = self.now + consumer.lease_s
        self._next_expiry = min(self._next_expiry, consumer.deadline)

    def detach(self, name: str) -> None:
        """Forget a consumer that ends; what it holds goes back, uncounted."""
        self._forget(name, counted=False)

    def _forget(self, name: str, *, counted: bool) -> Consumer | None:
        consumer = self.consumers.pop(name, None)
        if consumer is None:
            return None
        self._unpark(consumer)
        for queue in consumer.queues:
            queue.subscribers.remove(consumer)
        for connection in (consumer.intake, consumer.settling):
            if connection is not None:
                self.connections.pop(connection, None)
        self._return(consumer, list(consumer.held), counted=counted)
        if self.journal is not None:
            self.journal.left(name)
        return consumer

    # -------------------------------------------------------------------------------------------------- time

    def due(self) -> float:
        """Return when ``advance`` must be called next."""
        return min(self._due[0][0] if self._due else NEVER, self._next_expiry)

    def advance(self) -> None:
        """Do what is due: make delayed messages ready, end leases."""
        now = self.now
        while self._due and self._due[0][0] <= now:
            queue = self.queues.get(heappop(self._due)[1])
            if queue is not None and queue.promote(now):
                self._filled(queue)
            if queue is not None and queue.delayed:
                heappush(self._due, (queue.delayed[0][0], queue.name))
        if now >= self._next_expiry:
            for consumer in [c for c in self.consumers.values() if c.deadline <= now]:
                intake, settling = consumer.intake, consumer.settling
                self._forget(consumer.id, counted=True)
                if intake is not None:
                    self.out(intake, Gone(consumer.id))
                if settling is not None:
                    self.out(settling, Confirm(0, known=False))
            self._next_expiry = min((c.deadline for c in self.consumers.values()), default=NEVER)

    # -------------------------------------------------------------------------------------------------- looking

    def stats(self, names: Sequence[str]) -> dict[str, tuple[int, int, int, float | None]]:
        """Return ready, in flight, delayed and the oldest age of each queue that exists."""
        counts = dict.fromkeys(names, 0)
        for consumer in self.consumers.values():
            for message in consumer.held.values():
                if message.queue in counts:
                    counts[message.queue] += 1
        found = {}
        for name in names:
            queue = self.queues.get(name)
            if queue is not None:
                oldest = min((line[0].at for line in queue.lines if line), default=None)
                age = None if oldest is None else max(0.0, self.now - oldest)
                found[name] = (queue.ready, counts[name], len(queue.delayed), age)
        return found

    def purge(self, names: Sequence[str]) -> dict[str, int]:
        """Drop what is ready or delayed."""
        dropped = {}
        for name in names:
            queue = self.queues.get(name)
            gone: list[Message] = []
            if queue is not None:
                held = [m for c in self.consumers.values() for m in c.held.values() if m.queue == name]
                gone = queue.purge(held)
                if self.journal is not None and gone:
                    self.journal.ended(gone)
            dropped[name] = len(gone)
        return dropped

    def peek(self, name: str, limit: int, after: str | None) -> list[tuple[str, Message, float]]:
        """Return cursor, message and delay: those ready in order of delivery, then those delayed as they come due."""
        queue = self.queues.get(name)
        if queue is None:
            return []
        skip = int(after) + 1 if after is not None and after.isdigit() else 0
        found: list[tuple[str, Message, float]] = []
        position = -1
        for message in queue.waiting():
            position += 1
            if position >= skip:
                found.append((str(position), message, 0.0))
                if len(found) >= limit:
                    return found
        for due, _, message, _ in sorted(queue.delayed, key=lambda entry: entry[:2]):
            position += 1
            if position >= skip:
                found.append((str(position), message, max(0.0, due - self.now)))
                if len(found) >= limit:
                    break
        return found


def new_epoch() -> int:
    """Return a number for a hub's start that another start hardly has."""
    return int.from_bytes(os.urandom(3), "big") >> 2 | 1

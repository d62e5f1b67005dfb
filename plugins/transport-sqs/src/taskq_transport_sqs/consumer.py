"""A consumer of the SQS transport.

Nothing is pushed and a long poll cannot be called off, so polls run on threads of their own and feed buffers, which
``fetch`` waits for. Each poll under way reserves what it may bring, and no more is asked for than a fetch wanted.
``wake`` frees the fetch alone; what its polls bring afterwards stays held for the next one.

Of a FIFO queue's group the server hands out several messages at once. One is delivered, its successors are kept here,
renewed and released along with it, and the next is delivered when it is settled.
"""

from __future__ import annotations

import logging
import math
import os
import random
import select
import socket
import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import QueueMissing, TransportClosed, TransportError
from taskq.message import RELEASE, Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq_transport_sqs import names
from taskq_transport_sqs.hands import Hands
from taskq_transport_sqs.options import MAX_HOLD_S
from taskq_transport_sqs.settling import Change, Settler

if TYPE_CHECKING:
    from taskq.spi import SubscribeOrder
    from taskq_transport_sqs.queues import Queue
    from taskq_transport_sqs.transport import SqsTransport

logger = logging.getLogger("taskq.transport.sqs")
_UNLIMITED = 1 << 50
_BATCH = 10
_MOST_LONG_POLLS = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
_AFTER_ERROR = 0.2
_STALE = 1.0
"""Seconds after which what waits here unfetched is handed back for others."""
_LAST_POLLS = 1.0
"""Longest time in seconds that closing waits for polls under way."""
_GONE = "the lease ended, so the server gives the message out again"
_NOT_HELD = "not held: it was settled before, or its lease ended"


class _Lane:
    """A subscribed queue: what was received of it and waits here, and the polls under way."""

    __slots__ = ("active", "attempts", "buffer", "groups", "level", "paused", "polls", "queue", "weight")

    def __init__(self, queue: Queue, weight: int) -> None:
        self.queue = queue
        self.weight = weight
        self.active = True
        self.buffer: deque[Delivery] = deque()
        self.groups: dict[str, deque[Delivery]] = {}
        """Of each group that one message is out of: its successors."""
        self.attempts: list[str] = []
        """Ids of FIFO receives whose answers were lost."""
        self.polls = 0
        self.level = 1
        """Polls to have under way at once; grows while they come back full."""
        self.paused = 0.0


class _Held:
    """What is known of one message that the server has handed to us."""

    __slots__ = ("deadline", "delivered", "doubtful", "group", "lane", "since", "size", "waiting")

    def __init__(self, lane: _Lane, size: int, now: float, deadline: float, group: str | None) -> None:
        self.lane = lane
        self.size = size
        self.since = now
        self.deadline = deadline
        self.group = group
        self.delivered = False
        self.doubtful = False
        """Whether it was settled without an answer of the server."""
        self.waiting = False
        """Whether it waits for one before it in its group."""


class SqsConsumer:
    """Holds messages, each under a lease of its own."""

    def __init__(self, transport: SqsTransport) -> None:
        self._transport = transport
        self._client = transport.client
        self._settler = Settler(transport)
        self._lease = transport.lease_s
        self._pid = os.getpid()
        self._state = threading.Lock()
        """Guards what is held and the lanes; never held over a call of the server."""
        self._held: dict[str, _Held] = {}
        self._bytes = 0
        self._out = 0
        """How many are delivered, of those held."""
        self._out_bytes = 0
        self._reserved = 0
        """What polls under way may bring."""
        self._appetite = 0
        """What the last fetch asked for and has not been given."""
        self._polling = 0
        self._quick = 0
        """Polls under way that do not wait for messages."""
        self._error: TransportError | None = None
        self._done_before: set[Receipt] = set()
        """Settled by a call that failed for others, and is going to be repeated."""
        self._lanes: list[_Lane] = []
        self._order: SubscribeOrder = "fair"
        self._turn = 0
        self._credit = self._max_bytes = _UNLIMITED
        self._typical = 0.0
        """A message's size in bytes, as of late."""
        self._woken = False
        self._closed = False
        self._hands = Hands(transport.options.connections, "taskq-sqs-poll")
        self._ear, self._bell = socket.socketpair()
        self._ear.setblocking(False)
        self._bell.setblocking(False)

    def _check(self) -> None:
        if self._pid != os.getpid():
            raise TransportClosed(f"this consumer belongs to process {self._pid}; make a new one after a fork")
        if self._closed:
            raise TransportClosed("the consumer is closed; make a new one")

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        found = [(self._transport.queues.find(s.queue), max(1, s.weight)) for s in queues]
        unwanted: list[Change] = []
        with self._state:
            known = {lane.queue.name: lane for lane in self._lanes}
            lanes = []
            for queue, weight in found:
                lane = known.pop(queue.name, None) or _Lane(queue, weight)
                lane.weight = weight
                lanes.append(lane)
            for lane in known.values():
                lane.active = False
                unwanted += self._empty_lane(lane)
            self._lanes = lanes
            self._order = order
        self._hands.resize(self._transport.options.connections + min(len(lanes), _MOST_LONG_POLLS))
        self._hand_back(unwanted)

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._credit, self._max_bytes = n, max_bytes
        self._ring()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        self._appetite = limit + ahead
        long = wait >= 1.0  # a long poll is a whole number of seconds
        asked = False
        pause, next_ask = _FIRST_PAUSE, 0.0
        todo: deque[_Lane] | None = None
        while True:
            deliveries, excess = self._pick(limit)
            if excess:
                self._hand_back(excess)
            now = time.monotonic()
            left = end - now
            if deliveries:
                self._appetite -= len(deliveries)
                if ahead and len(deliveries) >= limit:
                    self._ask(self._lanes, ahead, 0)
                return Fetched(deliveries)
            if self._woken:
                self._woken = False
                self._quieten()
                return Fetched()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._quick:
                self._listen(1.0)  # they answer at once, or time out
                continue
            if left <= 0 and asked:
                return Fetched()
            if now < next_ask:
                self._listen(min(left, next_ask - now))
                continue
            started = False
            seconds = max(1, min(self._transport.options.poll_wait, 20, math.ceil(left))) if long else 0
            if self._side_by_side():
                started = self._ask(self._turned(), max(limit + ahead, len(self._lanes)), seconds)
                asked = True
                if started and not seconds:
                    next_ask = time.monotonic() + pause
                    pause = min(pause * 2, _LONGEST_PAUSE)
                elif not started and left > 0:
                    self._listen(min(left, 1.0))
                continue
            if todo is None:
                todo = deque(self._turned())
            while todo and not started:
                started = self._ask([todo.popleft()], limit, 0)
            if started:
                continue  # its answer decides whether the next one is asked
            asked, todo = True, None
            if long and self._ask(self._turned(), limit, 1):
                next_ask = time.monotonic() + 1.0
            else:
                next_ask = time.monotonic() + pause
                pause = min(pause * 2, _LONGEST_PAUSE)

    def _side_by_side(self) -> bool:
        """Whether each queue may have a poll of its own, rather than one after the other by rank or turn."""
        count = len(self._lanes)
        if count <= 1:
            return True
        if self._order == "strict" or count > _MOST_LONG_POLLS:
            return False
        return self._credit - len(self._held) >= count

    def _turned(self) -> list[_Lane]:
        """Return the lanes in the order to ask them."""
        lanes = self._lanes
        if self._order == "strict" or len(lanes) <= 1:
            return lanes
        if self._order == "weighted":
            # a draw by weight for each place: in the long run each queue is first in proportion to its weight
            return sorted(lanes, key=lambda lane: random.random() ** (1 / lane.weight), reverse=True)  # noqa: S311
        self._turn = (self._turn + 1) % len(lanes)
        return lanes[self._turn :] + lanes[: self._turn]

    def _pick(self, limit: int) -> tuple[list[Delivery], list[Change]]:
        """Take what waits here and may be delivered; return also what must go back, as the credit was lowered."""
        deliveries: list[Delivery] = []
        excess: list[Change] = []
        now = time.monotonic()
        with self._state:
            for lane in self._turned():
                buffer = lane.buffer
                while buffer and len(deliveries) < limit and self._out < self._credit:
                    delivery = buffer[0]
                    held = self._held.get(delivery.receipt)
                    if held is None or held.deadline <= now:
                        buffer.popleft()
                        excess += self._drop(delivery.receipt)
                        continue
                    if self._out and self._out_bytes + held.size > self._max_bytes:
                        break
                    buffer.popleft()
                    held.delivered = True
                    self._out += 1
                    self._out_bytes += held.size
                    deliveries.append(delivery)
            over = len(self._held) - max(self._credit, self._out)
            if over > 0:
                for lane in self._lanes:
                    while over > 0 and lane.buffer:
                        before = len(self._held)
                        excess += self._forget(lane.buffer.pop().receipt)
                        over -= before - len(self._held)
        return deliveries, excess

    # ---------------------------------------------------------------------------------------------------- polls

    def _ask(self, lanes: Sequence[_Lane], want: int, seconds: int) -> bool:
        """Start polls for up to so many messages, within the credit; whether there was one to start."""
        started = False
        now = time.monotonic()
        jobs = []
        with self._state:
            room = self._room(want)
            share = max(1, min(_BATCH, room // max(1, len(lanes))))
            for lane in lanes:
                if lane.paused > now:
                    continue
                while room > 0 and lane.polls < lane.level:
                    n = min(share, room)
                    room -= n
                    self._reserved += n
                    self._polling += 1
                    self._quick += not seconds
                    lane.polls += 1
                    jobs.append((lane, n, seconds))
        for job in jobs:
            started = True
            self._hands.submit(lambda job=job: self._poll(*job))  # type: ignore[misc]
        return started

    def _poll(self, lane: _Lane, n: int, seconds: int) -> None:
        """Receive messages, on a thread of its own; again while the queue gives and the last fetch wanted more."""
        more: int | None = n
        while more:
            n = more
            messages: Sequence[Any] = ()
            problem: TransportError | None = None
            try:
                messages = self._receive(lane, n, seconds)
            except TransportError as error:
                problem = error
            except BaseException as error:  # a thread has nobody else to tell
                logger.exception("a poll of queue %s met an unexpected error", lane.queue.name)
                problem = TransportError(f"a poll of queue {lane.queue.name!r} failed: {error!r}")
            more, unwanted = self._received(lane, n, seconds, messages, problem)
            seconds = 0
            try:
                if unwanted:
                    self._hand_back(unwanted)
            finally:
                if not more:
                    with self._state:
                        self._polling -= 1
                self._ring()

    def _received(
        self, lane: _Lane, n: int, seconds: int, messages: Sequence[Any], problem: TransportError | None
    ) -> tuple[int, list[Change]]:
        """Take note of what a poll brought; return how many to ask for next (0: end), and what must go back."""
        now = time.monotonic()
        with self._state:
            self._reserved -= n
            self._quick -= not seconds
            more = 0
            unwanted: list[Change] = []
            if problem is not None:
                lane.paused = now + _AFTER_ERROR
                lane.level = 1
                if not self._closed:
                    self._error = problem
            elif self._closed or not lane.active:
                unwanted = [Change(lane.queue, m["ReceiptHandle"], 0) for m in reversed(messages)]
            else:
                for message in messages:
                    self._take_in(lane, message, now)
                if not messages:
                    lane.level = 1
                elif len(messages) >= n:
                    lane.level = min(lane.level + 1, self._transport.options.connections)
                    if len(self._lanes) == 1:
                        more = max(0, min(_BATCH, self._room(self._appetite - len(lane.buffer))))
            if more:
                self._reserved += more
                self._quick += 1
            else:
                lane.polls -= 1
        return more, unwanted

    def _room(self, want: int) -> int:
        """Return how many more may be asked for, within credit, bytes and what is wanted."""
        room = min(want, self._credit - len(self._held)) - self._reserved
        if self._held and self._bytes >= self._max_bytes:
            return 0
        if self._typical and self._max_bytes < _UNLIMITED:
            fits = int((self._max_bytes - self._bytes) / self._typical)
            room = min(room, max(fits, 0 if self._held else 1))
        return room

    def _receive(self, lane: _Lane, n: int, seconds: int) -> Sequence[Any]:
        queue = lane.queue
        more = {}
        if queue.fifo:
            # the same id again after a lost answer brings the same messages, which would be hidden for a lease
            attempt = lane.attempts.pop() if lane.attempts else uuid.uuid4().hex
            more["ReceiveRequestAttemptId"] = attempt
        try:
            answer = self._client.poll(
                QueueUrl=queue.url,
                MaxNumberOfMessages=n,
                WaitTimeSeconds=seconds,
                VisibilityTimeout=self._lease,
                MessageSystemAttributeNames=["ApproximateReceiveCount", "MessageGroupId", "MessageDeduplicationId"],
                **more,
            )
        except QueueMissing:
            if self._closed:
                return ()
            queues = self._transport.queues
            queues.forget(queue)
            lane.queue = queues.find(queue.name, ordered=queue.fifo)
            logger.warning("queue %s was deleted on %s; it is there again, empty", queue.name, self._client.target.name)
            return ()
        except TransportError:
            if queue.fifo:
                lane.attempts.append(attempt)
            raise
        found: Sequence[Any] = answer.get("Messages") or ()
        return found

    def _take_in(self, lane: _Lane, message: dict[str, Any], now: float) -> None:
        attributes = message.get("Attributes") or {}
        handle = message["ReceiptHandle"]
        payload = names.to_payload(message["Body"])
        encoded = attributes.get("MessageGroupId")
        group = encoded if lane.queue.fifo else None
        size = len(payload)
        if handle in self._held:
            return
        self._held[handle] = _Held(lane, size, now, now + self._lease, group)
        self._bytes += size
        self._typical = size if not self._typical else self._typical * 0.8 + size * 0.2
        count = int(attributes.get("ApproximateReceiveCount") or 1)
        alone = encoded is not None and encoded == attributes.get("MessageDeduplicationId")
        delivery = Delivery(payload, handle, lane.queue.name, count, None if alone else names.group_name(encoded))
        if group is not None:
            successors = lane.groups.get(group)
            if successors is not None:
                successors.append(delivery)
                self._held[handle].waiting = True
                return
            lane.groups[group] = deque()
        lane.buffer.append(delivery)

    # ------------------------------------------------------------------------------------- what is held; locked

    def _drop(self, handle: str, *, onward: bool = False) -> list[Change]:
        """Forget a message; ``onward`` delivers its successor in the group, else the successors go back."""
        held = self._held.pop(handle, None)
        if held is None:
            return []
        self._bytes -= held.size
        if held.delivered:
            self._out -= 1
            self._out_bytes -= held.size
        lane, group = held.lane, held.group
        if group is None or held.waiting:
            return []
        successors = lane.groups.pop(group, None) or deque()
        if onward and lane.active and not self._closed:
            while successors:
                delivery = successors.popleft()
                following = self._held.get(delivery.receipt)
                if following is not None:
                    following.waiting = False
                    following.since = time.monotonic()
                    lane.buffer.append(delivery)
                    lane.groups[group] = successors
                    return []
        changes = [Change(lane.queue, d.receipt, 0) for d in reversed(successors)]
        for successor in successors:
            self._drop(successor.receipt)
        return changes

    def _forget(self, handle: str) -> list[Change]:
        """Forget a message that is to go back, with what follows in its group; the last first."""
        held = self._held.get(handle)
        if held is None:
            return []
        return [*self._drop(handle), Change(held.lane.queue, handle, 0)]

    def _empty_lane(self, lane: _Lane) -> list[Change]:
        changes: list[Change] = []
        while lane.buffer:
            changes += self._forget(lane.buffer.pop().receipt)
        return changes

    # ------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        lost: list[Lost] = []
        acks: list[Change] = []
        releases: list[Change] = []
        chosen: set[Receipt] = set()
        now = time.monotonic()
        returned: list[Change] = []
        with self._state:
            for settlement in settlements:
                receipt: Any = settlement.receipt
                held = self._held.get(receipt)
                if held is None or not held.delivered or receipt in chosen:
                    if receipt in self._done_before:
                        self._done_before.discard(receipt)
                    else:
                        lost.append(Lost(receipt, _NOT_HELD))
                    continue
                if held.deadline <= now:
                    returned += self._drop(receipt)
                    lost.append(Lost(receipt, _GONE))
                    continue
                chosen.add(receipt)
                if settlement.kind == RELEASE:
                    # successors first: the group is locked until all of it is back, then it goes on in order
                    if held.group is not None:
                        successors = held.lane.groups.get(held.group) or ()
                        releases += [Change(held.lane.queue, d.receipt, 0) for d in reversed(successors)]
                        chosen.update(d.receipt for d in successors)
                    delay = min(MAX_HOLD_S, max(0.0, settlement.delay))
                    releases.append(Change(held.lane.queue, receipt, math.ceil(delay), doubtful=held.doubtful))
                else:
                    acks.append(Change(held.lane.queue, receipt, None, doubtful=held.doubtful))
        self._hand_back(returned)
        if not chosen:
            self._done_before.clear()
            return lost
        outcome = self._settler.run(acks, releases)
        released = {change.handle for change in releases}
        returned = []
        with self._state:
            for handle in outcome.done | outcome.lost.keys():
                changes = self._drop(handle, onward=handle in outcome.done and handle not in released)
                if handle not in released:
                    returned += changes
        self._hand_back(returned)
        self._ring()
        asked = {s.receipt for s in settlements}
        lost += [Lost(handle, reason) for handle, reason in outcome.lost.items() if handle in asked]
        if outcome.error is not None:
            for change in (*acks, *releases):
                doubted = self._held.get(change.handle)
                if doubted is not None:
                    doubted.doubtful = change.doubtful
            self._done_before |= outcome.done
            raise outcome.error
        self._done_before.clear()
        return lost

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        return ()  # the server has answered every settlement

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        now = time.monotonic()
        lost: list[Lost] = []
        renew: list[Change] = []
        stale: list[Change] = []
        with self._state:
            wanted = [h for h, held in self._held.items() if held.delivered] if receipts is None else receipts
            chosen: list[Any] = list(dict.fromkeys(wanted))
            for handle in chosen:
                held = self._held.get(handle)
                if held is None or not held.delivered:
                    continue
                if held.deadline <= now:
                    stale += self._drop(handle)
                    lost.append(Lost(handle, _GONE))
                    continue
                renew.append(Change(held.lane.queue, handle, self._lease))
                if held.group is not None:
                    successors = held.lane.groups.get(held.group) or ()
                    renew += [Change(held.lane.queue, d.receipt, self._lease) for d in successors]
            for lane in self._lanes:
                # nobody has fetched these for a while: the worker is busy, and others may be free
                while lane.buffer and (oldest := self._held.get(lane.buffer[-1].receipt)) is not None:
                    if now - oldest.since < min(_STALE, self._lease / 3):
                        break
                    stale += self._forget(lane.buffer.pop().receipt)
        self._hand_back(stale)
        if not renew:
            return lost
        outcome = self._settler.run((), renew)
        with self._state:
            for handle in outcome.done:
                held = self._held.get(handle)
                if held is not None:
                    held.deadline = now + self._lease
            returned: list[Change] = []
            for handle, reason in outcome.lost.items():
                held = self._held.get(handle)
                if held is not None:
                    if held.delivered:
                        lost.append(Lost(handle, reason))
                    returned += self._drop(handle)
        self._hand_back(returned)
        if outcome.error is not None and not lost:  # else what is lost would not be told
            raise outcome.error
        return lost

    def _hand_back(self, changes: Iterable[Change]) -> None:
        """Give messages back; what fails returns when its lease ends."""
        todo = list(changes)
        if todo:
            outcome = self._settler.run((), todo)
            if outcome.error is not None:
                logger.debug("messages not handed back return with their lease: %s", outcome.error)

    # -------------------------------------------------------------------------------------------- waiting, ending

    def wake(self) -> None:
        self._woken = True
        self._ring()

    def _ring(self) -> None:
        try:
            self._bell.send(b"\0")
        except OSError:
            pass  # it rings already, or the consumer is closed

    def _listen(self, seconds: float) -> None:
        if seconds > 0:
            select.select((self._ear,), (), (), seconds)
        self._quieten()

    def _quieten(self) -> None:
        try:
            while self._ear.recv(4096):
                pass
        except OSError:
            pass

    def close(self) -> None:
        if self._pid != os.getpid() or self._closed:
            self._closed = True
            return
        self._closed = True
        end = time.monotonic() + _LAST_POLLS
        while self._polling and (left := end - time.monotonic()) > 0:
            self._listen(left)
        with self._state:
            back: list[Change] = []
            # in FIFO groups the last first, so that the group goes on in order
            for handle, held in reversed(self._held.items()):
                back.append(Change(held.lane.queue, handle, 0))
            self._held.clear()
            self._bytes = self._out = self._out_bytes = 0
        self._hand_back(back)
        self._hands.close(0.2)
        self._ear.close()
        self._bell.close()
        self._transport.forget(self)

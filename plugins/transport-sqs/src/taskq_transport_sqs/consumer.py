"""A consumer of the SQS transport: polls on other threads fill it, ``fetch`` waits for them, ``settle`` empties it.

``wake`` frees the fetch alone; what its polls bring afterwards stays held for the next one.
"""

from __future__ import annotations

import logging
import math
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportClosed
from taskq.message import RELEASE, Fetched, Lost, Receipt, Settlement, Subscription
from taskq_transport_sqs.held import Holdings, Lane
from taskq_transport_sqs.options import MAX_HOLD_S
from taskq_transport_sqs.polls import Polls
from taskq_transport_sqs.settling import Change, Settler

if TYPE_CHECKING:
    from taskq.spi import SubscribeOrder
    from taskq_transport_sqs.transport import SqsTransport

logger = logging.getLogger("taskq.transport.sqs")
_MOST_LONG_POLLS = 64
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.1
_STALE = 1.0
"""Seconds after which what waits here unfetched is handed back for others."""
_LAST_POLLS = 1.0
"""Longest time in seconds that closing waits for polls under way."""
_GONE = "the lease ended, so the server gives the message out again"
_NOT_HELD = "not held: it was settled before, or its lease ended"


class SqsConsumer:
    """Holds messages, each under a lease of its own."""

    def __init__(self, transport: SqsTransport) -> None:
        self._transport = transport
        self._settler = Settler(transport)
        self._lease = transport.lease_s
        self._pid = os.getpid()
        self._holdings = Holdings()
        self._polls = Polls(transport, self._holdings, self._hand_back, self._ring)
        self._done_before: set[Receipt] = set()
        """Settled by a call that failed for others, and is going to be repeated."""
        self._lanes: list[Lane] = []
        self._order: SubscribeOrder = "fair"
        self._turn = 0
        self._woken = False
        self._closed = False
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
        with self._holdings.lock:
            known = {lane.queue.name: lane for lane in self._lanes}
            lanes = []
            for queue, weight in found:
                lane = known.pop(queue.name, None) or Lane(queue, weight)
                lane.weight = weight
                lanes.append(lane)
            for lane in known.values():
                lane.active = False
                unwanted += self._holdings.empty(lane)
            self._lanes = lanes
            self._order = order
        self._polls.allow(len(lanes), _MOST_LONG_POLLS)
        self._hand_back(unwanted)

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._holdings.credit, self._holdings.max_bytes = n, max_bytes
        self._ring()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        self._polls.appetite = limit + ahead
        long = wait >= 1.0  # a long poll is a whole number of seconds
        asked = False
        pause, next_ask = _FIRST_PAUSE, 0.0
        todo: deque[Lane] | None = None
        while True:
            with self._holdings.lock:
                deliveries, excess = self._holdings.deliver(self._turned(), limit)
            self._hand_back(excess)
            now = time.monotonic()
            left = end - now
            if deliveries:
                self._polls.appetite -= len(deliveries)
                if ahead and len(deliveries) >= limit:
                    self._polls.ask(self._lanes, ahead, 0)
                return Fetched(deliveries)
            if self._woken:
                self._woken = False
                self._quieten()
                return Fetched()
            if self._polls.error is not None:
                error, self._polls.error = self._polls.error, None
                raise error
            if self._polls.quick:
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
                started = self._polls.ask(self._turned(), max(limit + ahead, len(self._lanes)), seconds)
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
                started = self._polls.ask([todo.popleft()], limit, 0)
            if started:
                continue  # its answer decides whether the next one is asked
            asked, todo = True, None
            if long and self._polls.ask(self._turned(), limit, 1):
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
        return self._holdings.credit - len(self._holdings) >= count

    def _turned(self) -> list[Lane]:
        """Return the lanes in the order to ask them."""
        lanes = self._lanes
        if self._order == "strict" or len(lanes) <= 1:
            return lanes
        if self._order == "weighted":
            # a draw by weight for each place: in the long run each queue is first in proportion to its weight
            return sorted(lanes, key=lambda lane: random.random() ** (1 / lane.weight), reverse=True)  # noqa: S311
        self._turn = (self._turn + 1) % len(lanes)
        return lanes[self._turn :] + lanes[: self._turn]

    # ------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        lost: list[Lost] = []
        acks: list[Change] = []
        releases: list[Change] = []
        chosen: set[Receipt] = set()
        now = time.monotonic()
        returned: list[Change] = []
        with self._holdings.lock:
            for settlement in settlements:
                receipt: Any = settlement.receipt
                held = self._holdings.get(receipt)
                if held is None or not held.delivered or receipt in chosen:
                    if receipt in self._done_before:
                        self._done_before.discard(receipt)
                    else:
                        lost.append(Lost(receipt, _NOT_HELD))
                    continue
                if held.deadline <= now:
                    returned += self._holdings.drop(receipt)
                    lost.append(Lost(receipt, _GONE))
                    continue
                chosen.add(receipt)
                if settlement.kind == RELEASE:
                    # successors first: the group is locked until all of it is back, then it goes on in order
                    releases += [Change(held.lane.queue, d.receipt, 0) for d in reversed(held.successors)]
                    chosen.update(d.receipt for d in held.successors)
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
        with self._holdings.lock:
            for handle in outcome.done | outcome.lost.keys():
                changes = self._holdings.drop(handle, onward=handle in outcome.done and handle not in released)
                if handle not in released:
                    returned += changes
        self._hand_back(returned)
        self._ring()
        asked = {s.receipt for s in settlements}
        lost += [Lost(handle, reason) for handle, reason in outcome.lost.items() if handle in asked]
        if outcome.error is not None:
            for change in (*acks, *releases):
                doubted = self._holdings.get(change.handle)
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
        with self._holdings.lock:
            wanted = self._holdings.delivered() if receipts is None else receipts
            chosen: list[Any] = list(dict.fromkeys(wanted))
            for handle in chosen:
                held = self._holdings.get(handle)
                if held is None or not held.delivered:
                    continue
                if held.deadline <= now:
                    stale += self._holdings.drop(handle)
                    lost.append(Lost(handle, _GONE))
                    continue
                renew.append(Change(held.lane.queue, handle, self._lease))
                renew += [Change(held.lane.queue, d.receipt, self._lease) for d in held.successors]
            for lane in self._lanes:
                # nobody has fetched these for a while: the worker is busy, and others may be free
                stale += self._holdings.empty(lane, since=now - min(_STALE, self._lease / 3))
        self._hand_back(stale)
        if not renew:
            return lost
        outcome = self._settler.run((), renew)
        with self._holdings.lock:
            for handle in outcome.done:
                held = self._holdings.get(handle)
                if held is not None:
                    held.deadline = now + self._lease
            returned: list[Change] = []
            for handle, reason in outcome.lost.items():
                held = self._holdings.get(handle)
                if held is not None:
                    if held.delivered:
                        lost.append(Lost(handle, reason))
                    returned += self._holdings.drop(handle)
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
        with self._holdings.lock:
            for lane in self._lanes:
                lane.active = False
        while self._polls.running and (left := end - time.monotonic()) > 0:
            self._listen(left)
        with self._holdings.lock:
            back = self._holdings.clear()
        self._hand_back(back)
        self._polls.close()
        self._ear.close()
        self._bell.close()
        self._transport.forget(self)

"""What a consumer holds: messages that wait here or are delivered, by queue, and in FIFO queues by group.

Of a FIFO queue's group the server hands out several messages at once. One is delivered, its successors are kept here,
renewed and released along with it, and the next is delivered when it is settled.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from taskq.message import Delivery
from taskq_transport_sqs import names
from taskq_transport_sqs.queues import DEAD
from taskq_transport_sqs.settling import Change

if TYPE_CHECKING:
    from taskq_transport_sqs.queues import Queue

UNLIMITED = 1 << 50


class Lane:
    """A subscribed queue: what was received of it and waits here, and the polls under way."""

    __slots__ = ("active", "attempts", "buffer", "groups", "level", "paused", "polls", "queue", "weight")

    def __init__(self, queue: Queue, weight: int) -> None:
        self.queue = queue
        self.weight = weight
        self.active = True
        """Whether it is subscribed still, by a consumer that is open."""
        self.buffer: deque[Delivery] = deque()
        self.groups: dict[str, deque[Delivery]] = {}
        """Of each group that one message is out of: its successors."""
        self.attempts: list[str] = []
        """Ids of FIFO receives whose answers were lost."""
        self.polls = 0
        self.level = 1
        """Polls to have under way at once; grows while they come back full."""
        self.paused = 0.0


class Held:
    """What is known of one message that the server has handed to us."""

    __slots__ = ("deadline", "delivered", "doubtful", "group", "lane", "since", "size", "waiting")

    def __init__(self, lane: Lane, size: int, now: float, deadline: float, group: str | None) -> None:
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

    @property
    def successors(self) -> Sequence[Delivery]:
        """What is held of its group behind it."""
        return () if self.group is None else self.lane.groups.get(self.group) or ()


class Holdings:
    """All that is held, within the credit. ``lock`` guards it and the lanes, and is held by whoever calls.

    What has to go back to the server is returned as changes, which are made without the lock.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.credit = self.max_bytes = UNLIMITED
        self.bytes = 0
        self.typical = 0.0
        """A message's size in bytes, as of late."""
        self._held: dict[str, Held] = {}
        self._out = 0
        """How many are delivered, of those held."""
        self._out_bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def get(self, handle: Any) -> Held | None:
        return self._held.get(handle)

    def delivered(self) -> Iterator[str]:
        """Go through the receipts of what is delivered."""
        return (handle for handle, held in self._held.items() if held.delivered)

    def take_in(self, lane: Lane, message: dict[str, Any], lease: float, now: float) -> None:
        """Keep a message that was received, for delivery at once or after those before it in its group."""
        handle = message["ReceiptHandle"]
        if handle in self._held:
            return
        attributes = message.get("Attributes") or {}
        payload = names.to_payload(message["Body"])
        size = len(payload)
        encoded = attributes.get("MessageGroupId")
        queue = lane.queue
        # Dead letters wait for none: those that SQS itself moved there keep their groups, and a listing is of them all.
        group = encoded if queue.fifo and not queue.name.endswith(DEAD) else None
        held = self._held[handle] = Held(lane, size, now, now + lease, group)
        self.bytes += size
        self.typical = size if not self.typical else self.typical * 0.8 + size * 0.2
        count = int(attributes.get("ApproximateReceiveCount") or 1)
        alone = encoded is not None and encoded == attributes.get("MessageDeduplicationId")
        delivery = Delivery(payload, handle, queue.name, count, None if alone else names.group_name(encoded))
        if group is not None:
            successors = lane.groups.get(group)
            if successors is not None:
                successors.append(delivery)
                held.waiting = True
                return
            lane.groups[group] = deque()
        lane.buffer.append(delivery)

    def deliver(self, lanes: Sequence[Lane], limit: int) -> tuple[list[Delivery], list[Change]]:
        """Take what may be delivered; return also what must go back, as its lease ended or the credit was lowered."""
        deliveries: list[Delivery] = []
        excess: list[Change] = []
        now = time.monotonic()
        for lane in lanes:
            buffer = lane.buffer
            while buffer and len(deliveries) < limit and self._out < self.credit:
                delivery = buffer[0]
                held = self._held.get(delivery.receipt)
                if held is None or held.deadline <= now:
                    buffer.popleft()
                    excess += self.drop(delivery.receipt)
                    continue
                if self._out and self._out_bytes + held.size > self.max_bytes:
                    break
                buffer.popleft()
                held.delivered = True
                self._out += 1
                self._out_bytes += held.size
                deliveries.append(delivery)
        over = len(self._held) - max(self.credit, self._out)
        for lane in lanes:
            while over > 0 and lane.buffer:
                before = len(self._held)
                excess += self.forget(lane.buffer.pop().receipt)
                over -= before - len(self._held)
        return deliveries, excess

    def drop(self, handle: str, *, onward: bool = False) -> list[Change]:
        """Forget a message; ``onward`` delivers its successor in the group, else the successors go back."""
        held = self._held.pop(handle, None)
        if held is None:
            return []
        self.bytes -= held.size
        if held.delivered:
            self._out -= 1
            self._out_bytes -= held.size
        lane, group = held.lane, held.group
        if group is None:
            return []
        if held.waiting:
            return self._cut(lane, lane.groups.get(group), handle)
        successors = lane.groups.pop(group, None) or deque()
        if onward and lane.active:
            while successors:
                delivery = successors.popleft()
                following = self._held.get(delivery.receipt)
                if following is not None:
                    following.waiting = False
                    following.since = time.monotonic()
                    lane.buffer.append(delivery)
                    lane.groups[group] = successors
                    return []
        return self._give_up(lane, successors)

    def _cut(self, lane: Lane, successors: deque[Delivery] | None, handle: str) -> list[Change]:
        """Let go of what is behind a successor that is not held any more: nothing of its group may overtake it."""
        receipts = [delivery.receipt for delivery in successors or ()]
        if successors is None or handle not in receipts:
            return []
        later = deque(successors.pop() for _ in receipts[receipts.index(handle) + 1 :])
        later.reverse()
        successors.pop()
        return self._give_up(lane, later)

    def _give_up(self, lane: Lane, successors: deque[Delivery]) -> list[Change]:
        changes = [Change(lane.queue, d.receipt, 0) for d in reversed(successors)]
        while successors:
            self.drop(successors.pop().receipt)
        return changes

    def forget(self, handle: str) -> list[Change]:
        """Forget a message that is to go back, with what follows in its group; the last first."""
        held = self._held.get(handle)
        if held is None:
            return []
        return [*self.drop(handle), Change(held.lane.queue, handle, 0)]

    def empty(self, lane: Lane, *, since: float | None = None) -> list[Change]:
        """Forget what waits in a lane, or the part of it that has waited since then."""
        changes: list[Change] = []
        while lane.buffer:
            handle = lane.buffer[-1].receipt
            held = self._held.get(handle)
            if since is not None and held is not None and held.since > since:
                break
            lane.buffer.pop()
            changes += self.forget(handle)
        return changes

    def clear(self) -> list[Change]:
        """Forget everything; in FIFO groups the last goes back first, so that the group goes on in order."""
        changes = [Change(held.lane.queue, handle, 0) for handle, held in reversed(self._held.items())]
        self._held.clear()
        self.bytes = self._out = self._out_bytes = 0
        return changes

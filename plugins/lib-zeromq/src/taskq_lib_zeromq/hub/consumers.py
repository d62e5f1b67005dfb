"""A consumer as the hub sees it."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Sequence

from taskq_lib_zeromq.hub.queues import Queue
from taskq_lib_zeromq.protocol import Message

UNLIMITED = 1 << 50


class Consumer:
    """Who holds messages, until when, and how many more it may have."""

    __slots__ = (
        "bytes", "credit", "deadline", "held", "id", "intake", "last_settle", "lease_s", "max_bytes", "order", "queues",
        "ready", "settling", "want", "want_n",
    )  # fmt: skip

    def __init__(self, name: str, lease_s: float, now: float) -> None:
        self.id = name
        self.lease_s = lease_s
        self.deadline = now + lease_s
        self.intake: bytes | None = None
        """Connection that deliveries go to."""
        self.settling: bytes | None = None
        self.held: dict[int, Message] = {}
        """By receipt, in the order of delivery."""
        self.bytes = 0
        self.credit = UNLIMITED
        self.max_bytes = UNLIMITED
        self.want = 0
        """How many messages it waits for."""
        self.want_n = 0
        self.last_settle = 0
        self.order = "fair"
        self.queues: dict[Queue, tuple[int, int]] = {}
        """With place and weight."""
        self.ready: OrderedDict[Queue, None] = OrderedDict()
        """Those of its queues that may have messages, the one to look at first in front."""

    def may_take(self) -> int:
        """Return how many messages the credit allows now."""
        if self.held and self.bytes >= self.max_bytes:
            return 0
        return self.credit - len(self.held)

    def in_turn(self) -> Sequence[Queue]:
        """Return the queues to look at, in order."""
        ready = self.ready
        if len(ready) <= 1 or self.order == "fair":
            return list(ready) if len(ready) < 64 else [queue for queue, _ in zip(ready, range(64), strict=False)]
        if self.order == "strict":
            return sorted(ready, key=lambda q: self.queues[q][0])
        # a draw by weight for each place: in the long run each queue is first in proportion to its weight
        return sorted(ready, key=lambda q: random.random() ** (1 / self.queues[q][1]), reverse=True)  # noqa: S311

    def looked_at(self, queue: Queue) -> None:
        """Note that a queue had its turn."""
        if not queue.count:
            self.ready.pop(queue, None)
        elif self.order == "fair":
            self.ready.move_to_end(queue)

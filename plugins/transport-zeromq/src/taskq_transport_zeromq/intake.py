"""A consumer's taking: the hub gives what was asked for and no more, so that nothing waits that others could start."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from taskq.message import Delivery
from taskq_lib_client.bell import Bell
from taskq_lib_zeromq.link import Link
from taskq_lib_zeromq.protocol import Credit, Deliver, Gone, Reset, encode
from taskq_lib_zeromq.wire import Broken

if TYPE_CHECKING:
    from taskq_lib_zeromq.target import Target
    from taskq_transport_zeromq.holdings import Holdings
    from taskq_transport_zeromq.membership import Membership

_DEMAND = 6


class Intake:
    """The connection that deliveries come on. One thread uses it; any may ``wake`` it."""

    def __init__(
        self, target: Target, member: Membership, holdings: Holdings, release: Callable[[Sequence[Delivery]], None]
    ) -> None:
        """``release`` hands back what is held."""
        self._bell = Bell()
        self._link = Link(target, self._bell)
        self._member = member
        self._holdings = holdings
        self._release = release
        self._attached = False
        self._buffer: deque[Delivery] = deque()
        self._asked = 0
        """Number of the demand that is to be answered still, 0 for none."""
        self._parked = False
        self._woken = False
        try:
            self._attach()
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        """Make the hub know this consumer on this connection. Raises: TransportError."""
        link, buffer = self._link, self._buffer
        for again in (False, True):
            try:
                if not link.connected:
                    self._attached = False
                    link.connect()
                self._asked, self._parked = 0, False
                welcome = link.welcome
                assert welcome is not None
                if welcome.epoch == self._member.epoch:
                    buffer.clear()  # unannounced, so it goes back
                lost = set(self._member.announce(link, intake=True, waiting=buffer))
                if lost:
                    self._buffer = deque(d for d in buffer if d.receipt not in lost)
                self._member.epoch = welcome.epoch
                self._attached = True
                return
            except Broken as error:
                link.close()
                if again:
                    raise link.lost(error) from error

    def changed(self) -> None:
        """Have the next fetch tell the hub what this consumer wants now."""
        self._attached = False

    def limit(self) -> None:
        """Tell the hub the credit."""
        if self._attached:
            try:
                self._link.send(encode(Credit(self._member.credit, self._member.max_bytes)))
            except Broken:
                self._attached = False

    def fetch(self, limit: int, wait: float, ahead: int) -> Sequence[Delivery]:
        """Return up to ``limit`` deliveries, none after ``wait`` seconds, a wake or a loss. Raises: TransportError."""
        end = time.monotonic() + wait
        try:
            while True:
                if not self._attached:
                    self._attach()
                if self._buffer and (deliveries := self._from_buffer(limit)):
                    if ahead and not self._asked and not self._buffer:
                        self._ask_for(ahead, park=False)
                    return deliveries
                left = end - time.monotonic()
                if self._woken or self._holdings.losses:
                    return self._nothing()
                if not self._asked:
                    if left <= 0 and wait > 0:
                        return self._nothing()
                    self._ask_for(limit, park=wait > 0)
                elif left <= 0 and self._parked:
                    return self._nothing()
                if self._receive(max(0.0, left)) and wait <= 0 and not self._asked and not self._buffer:
                    return self._nothing()
        except Broken as error:
            self._link.close()
            self._attached = False
            self._asked = 0
            if self._woken:
                return self._nothing()
            raise self._link.lost(error) from error

    def _nothing(self) -> Sequence[Delivery]:
        """End a fetch without deliveries; what was asked for is not wanted any more."""
        self._woken = False
        self._bell.hush()
        if self._asked and self._parked:
            with contextlib.suppress(Broken):
                self._ask_for(0, park=False)
        return ()

    def _ask_for(self, limit: int, *, park: bool) -> None:
        n = self._link.number()
        self._link.send(encode((_DEMAND, n, limit, park)))
        self._asked, self._parked = n, park

    def _receive(self, left: float) -> bool:
        """Wait for a frame and take it in; whether there was one.

        Where a demand is not parked, an answer is on its way, which is waited for longer than ``left``, and without
        which the hub is gone.
        """
        link, patient = self._link, not self._parked
        if not link.poll(max(left, self._member.timeout) if patient else left):
            if patient and not self._woken and not self._holdings.losses:
                raise Broken("the hub does not answer")
            return False
        frame = link.receive()
        if type(frame) is Deliver:
            if frame.n == self._asked:
                self._asked = 0
            self._holdings.confirmed_up_to(frame.settled)
            if frame.payloads:
                self._take_in(frame)
        elif type(frame) is Gone or type(frame) is Reset:
            self._attached = False
        return True

    def _take_in(self, frame: Deliver) -> None:
        first, payloads = frame.first, frame.payloads
        receipts = range(first, first + len(payloads))
        queues = (
            repeat(frame.runs[0][0])
            if len(frame.runs) == 1
            else [queue for queue, count in frame.runs for _ in range(count)]
        )
        if frame.ended:
            counts = [ended + 1 for ended in frame.ended]
            self._buffer.extend(map(Delivery, payloads, receipts, queues, counts, frame.groups))
            self._holdings.mark(first, frame.priorities)
        else:
            self._buffer.extend(map(Delivery, payloads, receipts, queues))

    def _from_buffer(self, limit: int) -> Sequence[Delivery]:
        buffer = self._buffer
        excess = len(self._holdings) + len(buffer) - self._member.credit
        if excess > 0:
            # the credit was lowered after these had been asked for
            back = [buffer.pop() for _ in range(min(excess, len(buffer)))][::-1]
            self._holdings.hold(back)
            self._release(back)
        if len(buffer) <= limit:
            deliveries = list(buffer)
            buffer.clear()
        else:
            deliveries = [buffer.popleft() for _ in range(limit)]
        self._holdings.hold(deliveries)
        return deliveries

    def wake(self) -> None:
        """End the fetch that waits, or the next."""
        self._woken = True
        self._bell.ring()

    def nudge(self) -> None:
        """Have the fetch that waits look at the losses."""
        self._bell.ring()

    def close(self, *, owned: bool = True) -> None:
        """Forget what is buffered; close the connection if it is this process's."""
        if owned:
            self._link.close()
        self._bell.close()
        self._buffer.clear()

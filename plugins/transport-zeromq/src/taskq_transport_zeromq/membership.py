"""How the hub knows a consumer, and how it is told on a connection."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from taskq_lib_zeromq.protocol import Adopt, Adopted, Answer, Attach, Confirm, Failed, Reset, Welcome, encode
from taskq_lib_zeromq.wire import Broken

if TYPE_CHECKING:
    from taskq.message import Delivery
    from taskq.spi import SubscribeOrder
    from taskq_lib_zeromq.link import Link
    from taskq_transport_zeromq.holdings import Holdings

_UNLIMITED = 1 << 50
_receipts = msgspec.msgpack.Decoder(list[int]).decode


class Membership:
    """A consumer's name and limits. Its two connections announce the same."""

    def __init__(self, holdings: Holdings, lease_s: float, timeout: float) -> None:
        self.id = os.urandom(8).hex()
        self.timeout = timeout
        self.queues: list[tuple[str, int]] = []
        self.order: SubscribeOrder = "fair"
        self.credit = self.max_bytes = _UNLIMITED
        self.epoch = 0
        """Of the hub that the intake is announced to."""
        self._holdings = holdings
        self._lease_ms = max(1, round(lease_s * 1000))

    def announce(self, link: Link, *, intake: bool, waiting: Iterable[Delivery] = ()) -> Sequence[int]:
        """Make the hub know this consumer and what it holds; return what of that is lost. Raises: Broken."""
        assert link.welcome is not None
        anew = link.welcome.epoch != self.epoch
        mine = self._holdings.all(waiting)
        n = link.number()
        lost = self._ask(link, n, Attach(
            n, self.id, intake, self._lease_ms, self.order, self.queues, self.credit, self.max_bytes, [*mine],
        ))  # fmt: skip
        if lost and anew and not link.welcome.durable:
            n = link.number()
            held = [Adopted(r, self._holdings.message(mine[r])) for r in lost]
            lost = self._ask(link, n, Adopt(n, self.id, held))
        self._holdings.lose(lost)
        return lost

    def _ask(self, link: Link, n: int, request: Any) -> list[int]:
        """Send a request and wait for its answer; deliveries that come before it are void."""
        end = time.monotonic() + self.timeout
        data = encode(request)
        link.send(data)
        while (left := end - time.monotonic()) > 0:
            if not link.poll(left, wakes=False):
                continue
            frame = link.receive()
            if isinstance(frame, Answer) and frame.n == n:
                return _receipts(frame.value)
            if isinstance(frame, Failed) and frame.n == n:
                raise link.failure(frame)
            if isinstance(frame, Reset):
                link.say_hello()
            elif isinstance(frame, Welcome):
                link.welcome = frame
                link.send(data)
            elif isinstance(frame, Confirm) and frame.known:
                self._holdings.confirmed(frame)
        raise Broken("the hub does not answer")

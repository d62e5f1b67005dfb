"""How much the server may push, and what becomes of each delivery tag: the consuming channel.

What the server may push is the sum of the *windows*: each is a ``basic.consume`` with a prefetch count of its own.
Asking for more adds a window, asking for much less cancels them; what they brought stays held. So the limit holds
without the deprecated global prefetch, and growing never takes anything back.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import pika.spec as spec

from taskq.errors import TransportError
from taskq_lib_amqp import wire
from taskq_lib_amqp.channel import Channel
from taskq_lib_amqp.link import Link

_SHIFT = 48
_MOST = 65535
_connections = itertools.count(1)


class Source:
    """A queue that is subscribed."""

    __slots__ = ("classic", "full", "least", "open", "queue", "rank", "room", "seen", "weight")

    def __init__(self, queue: str, rank: int, weight: int, *, classic: bool) -> None:
        self.queue = queue
        self.classic = classic
        self.rank = rank
        self.weight = max(1, weight)
        self.least = 1
        """How much it may push even while it is quiet."""
        self.open = 0
        """What its active windows let through."""
        self.room = 0
        """How much of that could still be pushed now."""
        self.full = False
        """Whether there was no room left of late: the queue may have more than it is let."""
        self.seen = 0.0
        """When something came last, on the monotonic clock."""


class Window:
    """One ``basic.consume``: the server pushes until ``size`` are unsettled."""

    __slots__ = ("active", "ending", "outstanding", "over", "size", "source", "tag")

    def __init__(self, source: Source, size: int, tag: bytes) -> None:
        self.source = source
        self.size = size
        self.tag = tag
        self.active = True
        self.ending = False
        """Cancelled, and what it could bring counts until it is over."""
        self.over = False
        """The server has said that nothing more comes."""
        self.outstanding = 0

    def settled(self) -> None:
        """Take note that one of what it brought is settled; the caller holds the state's lock."""
        self.outstanding -= 1
        if self.active:
            self.source.room += 1


Entry = tuple[wire.Incoming, Window]


class ConsumeChannel(Channel):
    """The channel that messages arrive on; everything on it belongs to one connection.

    A receipt is ``base``, which no other connection has, plus the delivery tag.
    """

    def __init__(self, link: Link, number: int, state: threading.Lock) -> None:
        super().__init__(link, number)
        self.base = next(_connections) << _SHIFT
        self.windows: dict[bytes, Window] = {}
        self.buffer: deque[Entry] = deque()
        """What was pushed and not fetched."""
        self.cancelled: list[Window] = []
        """Windows that the server has ended."""
        self.returned = 0
        """How many windows have ended that counted until then."""
        self._low = 1
        """The lowest tag that is not settled; above it those in ``_gaps`` are."""
        self._gaps: set[int] = set()
        self._state = state
        self._tags = itertools.count(1)

    # -- wire.Listener ------------------------------------------------------------------------------------------

    def on_deliveries(self, deliveries: list[wire.Incoming]) -> None:
        windows, buffer = self.windows, self.buffer
        now = time.monotonic()
        with self._state:
            for incoming in deliveries:
                window = windows[incoming.consumer]
                window.outstanding += 1
                if window.active:
                    source = window.source
                    source.room -= 1
                    if source.room <= 0:
                        source.full = True
                    source.seen = now
                buffer.append((incoming, window))

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Basic.Cancel):  # the queue was deleted, or its leader has gone
            window = self.windows.get(method.consumer_tag.encode())
            if window is not None:
                self.cancelled.append(window)
        elif isinstance(method, spec.Basic.CancelOk):
            window = self.windows.get(method.consumer_tag.encode())
            if window is not None:
                window.over = True
                self.returned += window.ending
                window.ending = False
        elif not isinstance(method, spec.Basic.QosOk):
            super().on_method(method, properties, body)

    # -- windows ------------------------------------------------------------------------------------------------

    def capacity(self) -> int:
        """Return how many messages may be held by what is open now; forget windows that are done with."""
        total = 0
        done = []
        for tag, window in self.windows.items():
            if window.active or window.ending:
                total += max(window.size, window.outstanding)
            elif window.outstanding:
                total += window.outstanding
            elif window.over:
                done.append(tag)
        for tag in done:
            del self.windows[tag]
        return total

    def outstanding(self) -> int:
        """Return how many messages were pushed and not settled."""
        return sum(window.outstanding for window in self.windows.values())

    def widen(self, sizes: Sequence[tuple[Source, int]]) -> None:
        """Let the server push so many more from these queues."""
        frames: list[bytes] = []
        for source, wanted in sizes:
            size = min(wanted, _MOST)
            tag = str(next(self._tags))
            window = Window(source, size, tag.encode())
            self.windows[window.tag] = window
            with self._state:
                source.open += size
                source.room += size
                source.full = False
            frames += (
                wire.method_frame(self.number, spec.Basic.Qos(0, size, False)),
                wire.method_frame(self.number, spec.Basic.Consume(queue=source.queue, consumer_tag=tag, nowait=True)),
            )
        if frames:
            self.link.write(b"".join(frames))

    def cancel(self, sources: Iterable[Source], *, answered: bool = False) -> None:
        """Have nothing more pushed from these queues.

        ``answered``: what their windows could still bring counts until the server has said that nothing more comes.
        """
        frames, chosen = [], set(sources)
        with self._state:
            for window in self.windows.values():
                if window.active and window.source in chosen:
                    window.active, window.ending = False, answered
                    frames.append(wire.method_frame(self.number, spec.Basic.Cancel(window.tag.decode())))
            for source in chosen:
                source.open = source.room = 0
        if frames:
            self.link.write(b"".join(frames))

    def ended(self, windows: Sequence[Window]) -> None:
        """Take note of windows that the server has ended by itself."""
        with self._state:
            for window in windows:
                if window.active:
                    window.active = False
                    window.source.open -= window.size
                    window.source.room -= window.size - window.outstanding
                window.over, window.ending = True, False

    def pull(self, source: Source) -> bool:
        """Ask for one message of a queue and buffer it; whether there was one. Raises: ChannelClosed."""
        try:
            method, properties, body = self.ask_for_content(spec.Basic.Get(queue=source.queue))
        except TransportError as error:
            # an answer that still comes may be a message, which would be held for nobody
            raise self.link.failed(str(error)) from error
        if not isinstance(method, spec.Basic.GetOk):
            return False
        returns, priority = wire.facts(properties)
        window = Window(source, 0, f"get-{method.delivery_tag}".encode())
        window.active, window.over = False, True
        self.windows[window.tag] = window
        incoming = wire.Incoming(window.tag, method.delivery_tag, bool(method.redelivered), returns, priority, body)
        self.on_deliveries([incoming])
        return True

    # -- settling -----------------------------------------------------------------------------------------------

    def give_back(self, entries: Sequence[Entry]) -> None:
        """Return messages that were never fetched to their queues, in order."""
        if not entries:
            return
        with self._state:
            for _, window in entries:
                window.settled()
            frames = self.settling((), [incoming.tag for incoming, _ in entries])
        self.link.write(b"".join(frames))

    def settling(self, acks: Sequence[int], nacks: Sequence[int], rejects: Sequence[int] = ()) -> list[bytes]:
        """Return the frames that settle these tags; the caller holds the state's lock.

        ``nacks`` go back uncounted and ``rejects`` counted, on a server that tells the two apart.

        One acknowledgement serves all tags that no unsettled one precedes, each of the others has its own: waiting for
        the slowest would hold back all that ended before it.
        """
        number, gaps = self.number, self._gaps
        frames = [wire.nack_frame(number, tag) for tag in nacks]
        frames += [wire.method_frame(number, spec.Basic.Reject(tag, True)) for tag in rejects]
        before = self._low
        gaps.update(nacks)
        gaps.update(rejects)
        gaps.update(acks)
        low = before
        while low in gaps:
            gaps.discard(low)
            low += 1
        self._low = low
        if low == before:
            return frames + [wire.ack_frame(number, tag) for tag in acks]
        covered = [tag for tag in acks if tag < low]
        frames += [wire.ack_frame(number, tag) for tag in acks if tag >= low]
        if covered:
            frames.append(wire.ack_frame(number, max(covered), multiple=len(covered) > 1))
        return frames

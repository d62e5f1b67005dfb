"""The AMQP consumer: lets the server push as much as was asked for, and settles by tag.

What the server may push is the sum of the *windows*: each is a ``basic.consume`` with a prefetch count of its own.
Asking for more adds a window, asking for much less cancels them; what they brought stays held. So the limit holds
without the deprecated global prefetch, and growing never takes anything back.

A receipt is the delivery tag plus a number of the connection, so that those of a lost connection are known as lost.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pika.spec as spec

from taskq.errors import ConnectionLost, QueueMissing, TransportClosed, TransportError
from taskq.message import ACK, Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq.spi import SubscribeOrder
from taskq_lib_amqp import wire
from taskq_lib_amqp.link import Bell, Channel, ChannelClosed, Link

if TYPE_CHECKING:
    from taskq_transport_amqp.transport import AmqpTransport

logger = logging.getLogger("taskq.transport.amqp")
_SHIFT = 48
_IDLE_S = 0.3
"""How long what was pushed may wait for a fetch before it is given back."""
_LOOK_S = 3.0
"""How often an idle consumer makes sure that nothing waits for it."""
_TURN_S = 0.05
"""How long a queue is listened to while there are more queues than credit."""
_connections = itertools.count(1)


class Source:
    """A queue that is subscribed."""

    __slots__ = ("deaf", "open", "outstanding", "queue", "rank", "received", "seen", "weight")

    def __init__(self, queue: str, rank: int, weight: int) -> None:
        self.queue = queue
        self.rank = rank
        self.weight = max(1, weight)
        self.open = 0
        """What its windows let through."""
        self.outstanding = 0
        self.received = 0
        self.seen = -1
        """What was received when the server was last asked whether messages wait."""
        self.deaf = 0
        """How often in a row messages waited then although there was room for them here."""


class Window:
    """One ``basic.consume``: the server pushes until ``size`` are unsettled."""

    __slots__ = ("active", "outstanding", "size", "source", "tag")

    def __init__(self, source: Source, size: int, tag: bytes) -> None:
        self.source = source
        self.size = size
        self.tag = tag
        self.active = True
        self.outstanding = 0


class ConsumeChannel(Channel):
    """The channel that messages arrive on; everything on it belongs to one connection."""

    def __init__(self, link: Link, number: int, *, classic: bool, state: threading.Lock) -> None:
        super().__init__(link, number)
        self.base = next(_connections) << _SHIFT
        self.windows: dict[bytes, Window] = {}
        self.buffer: deque[tuple[wire.Incoming, Window]] = deque()
        self.low = 1
        """The lowest tag that is not settled, apart from those in ``gaps``."""
        self.gaps: set[int] = set()
        self.cancelled: list[Window] = []
        self.classic = classic
        self._state = state

    def on_deliveries(self, deliveries: list[wire.Incoming]) -> None:
        windows, buffer = self.windows, self.buffer
        with self._state:
            for incoming in deliveries:
                window = windows[incoming.consumer]
                window.outstanding += 1
                window.source.outstanding += 1
                window.source.received += 1
                buffer.append((incoming, window))

    def on_method(self, method: Any, properties: Any, body: bytes) -> None:
        if isinstance(method, spec.Basic.Cancel):  # the queue was deleted, or its leader has gone
            window = self.windows.get(method.consumer_tag.encode())
            if window is not None:
                self.cancelled.append(window)
        elif not isinstance(method, spec.Basic.QosOk):
            super().on_method(method, properties, body)

    def qos(self, count: int) -> bytes:
        """Return the frame that sets the prefetch count of the next consume."""
        return wire.method_frame(self.number, spec.Basic.Qos(0, count, False))


class AmqpConsumer:
    """A connection that takes messages."""

    def __init__(self, transport: AmqpTransport) -> None:
        self._transport = transport
        self._bell = Bell()
        self._pid = os.getpid()
        self._channel: ConsumeChannel | None = None
        self._sources: dict[str, Source] = {}
        self._order: SubscribeOrder = "fair"
        self._credit, self._max_bytes = 0, 0
        self._held: dict[int, tuple[Window, int]] = {}
        self._bytes = 0
        self._lost: dict[Any, str] = {}
        self._closed = False
        self._state = threading.Lock()
        """Guards what fetching and settling threads share: held, tags, losses. Never held over a wait."""
        self._tags = itertools.count(1)
        self._intake = threading.Lock()
        """Held by whoever moves windows and buffer: the intake thread, or the keeper while nobody fetches."""
        self._fetched = time.monotonic()
        self._woken = False
        self._turn = 0
        self._shrunk = 0
        self._next_look = 0.0
        self._looked = 0
        self._prioritized = transport.classic
        try:
            self._connect()
        except BaseException:
            self._bell.close()
            raise

    # -------------------------------------------------------------------------------------------- the connection

    def _connect(self) -> ConsumeChannel:
        transport = self._transport
        link = transport.connect("consumer")
        try:
            channel = ConsumeChannel(link, 1, classic=transport.classic, state=self._state)
            channel.open()
        except ChannelClosed as closed:
            link.close()
            raise TransportError(f"{link.name} refuses a channel: {closed}") from closed
        except BaseException:
            link.close()
            raise
        for source in self._sources.values():
            source.open = source.outstanding = 0
        transport.keeper.add(link, self._tick)
        self._channel = channel
        return channel

    def _drop(self, channel: ConsumeChannel, reason: str) -> None:
        """Give up a connection: what it held is lost."""
        with self._state:
            if self._channel is not channel:
                return
            self._channel = None
            self._lost.update((receipt, reason) for receipt in self._held)
            self._held.clear()
            self._bytes = 0
        self._transport.keeper.remove(channel.link)
        channel.link.close(0.2)

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("the consumer is closed; make a new one with Transport.consumer()")

    def _sound(self) -> ConsumeChannel | None:
        """Return the channel if it still works; one that broke is given up."""
        channel = self._channel
        if channel is None:
            return None
        trouble = channel.link.error or channel.closed
        if trouble is None:
            return channel
        self._drop(channel, str(trouble))
        return None

    # ------------------------------------------------------------------------------------------------ subscribing

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        for queue in queues:
            self._transport.ensure(queue.queue)
        channel = self._sound()
        wanted = {q.queue: Source(q.queue, i, q.weight) for i, q in enumerate(queues)}
        with self._state:
            for name, source in list(wanted.items()):
                known = self._sources.get(name)
                if known is not None:
                    known.rank, known.weight = source.rank, source.weight
                    wanted[name] = known
            gone = [s for name, s in self._sources.items() if name not in wanted]
            self._sources, self._order = wanted, order
        if channel is not None and gone:
            self._withdraw(channel, gone)

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        lower = n < self._credit
        self._credit, self._max_bytes = n, max_bytes
        channel = self._sound() if lower else None
        if channel is not None and self._open(channel) > n:
            self._withdraw(channel, list(self._sources.values()))

    def _withdraw(self, channel: ConsumeChannel, sources: Sequence[Source]) -> None:
        """Have nothing more pushed from these queues, and give back what is too much now."""
        with self._intake:
            try:
                self._cancel(channel, sources)
                self._trim(channel)
            except (TransportError, ChannelClosed):
                pass  # the next fetch finds out

    # --------------------------------------------------------------------------------------------------- windows

    def _open(self, channel: ConsumeChannel) -> int:
        """Return how many messages may be held by what is open now; forget windows that are done with."""
        total = 0
        done = []
        for tag, window in channel.windows.items():
            if window.active:
                total += max(window.size, window.outstanding)
            elif window.outstanding:
                total += window.outstanding
            else:
                done.append(tag)
        if len(done) > 64:  # the last words of a cancelled one may still be under way: keep some
            for tag in done[:-32]:
                del channel.windows[tag]
        return total

    def _grow(self, channel: ConsumeChannel, more: int) -> None:
        """Let the server push more: to the queues that use up what they have, by weight."""
        sources = list(self._sources.values())
        frames: list[bytes] = []
        if len(sources) > 1:
            for source in sources:
                if source.open == 0 and more > 0:
                    frames += self._window(channel, source, 1)
                    more -= 1
            sources = [s for s in sources if s.outstanding >= s.open]
            total = sum(s.weight for s in sources)
            for source in sources:
                if (share := more * source.weight // total) > 0:
                    frames += self._window(channel, source, share)
        elif sources and more > 0:
            frames += self._window(channel, sources[0], more)
        if frames:
            channel.link.write(b"".join(frames))

    def _window(self, channel: ConsumeChannel, source: Source, size: int) -> list[bytes]:
        size = min(size, 65535)
        tag = str(next(self._tags))
        window = Window(source, size, tag.encode())
        channel.windows[window.tag] = window
        source.open += size
        consume = spec.Basic.Consume(queue=source.queue, consumer_tag=tag, nowait=True)
        return [channel.qos(size), wire.method_frame(channel.number, consume)]

    def _cancel(self, channel: ConsumeChannel, sources: Sequence[Source]) -> None:
        """Have nothing more pushed from these queues."""
        frames = []
        for window in list(channel.windows.values()):
            if window.active and window.source in sources:
                window.active = False
                cancel = spec.Basic.Cancel(window.tag.decode(), nowait=True)
                frames.append(wire.method_frame(channel.number, cancel))
        for source in sources:
            source.open = 0
        if frames:
            channel.link.write(b"".join(frames))

    def _trim(self, channel: ConsumeChannel) -> None:
        """Give back what was pushed beyond the credit, or from queues that are not subscribed any more."""
        buffer = channel.buffer
        if not buffer:
            return
        allowed = max(0, self._credit - len(self._held))
        kept: deque[tuple[wire.Incoming, Window]] = deque()
        back: list[tuple[wire.Incoming, Window]] = []
        for _ in range(len(buffer)):  # more may be added at its end meanwhile
            entry = buffer.popleft()
            wanted = self._sources.get(entry[1].source.queue) is entry[1].source
            if wanted and len(kept) < allowed:
                kept.append(entry)
            else:
                back.append(entry)
        buffer.extendleft(reversed(kept))
        self._return(channel, back)

    def _return(self, channel: ConsumeChannel, entries: Sequence[tuple[wire.Incoming, Window]]) -> None:
        if not entries:
            return
        frames = []
        with self._state:
            for incoming, window in entries:
                window.outstanding -= 1
                window.source.outstanding -= 1
                frames.append(wire.nack_frame(channel.number, incoming.tag))
                channel.gaps.add(incoming.tag)
            self._advance(channel)
        channel.link.write(b"".join(frames))

    @staticmethod
    def _advance(channel: ConsumeChannel) -> int:
        """Move ``low`` over the tags that are settled; return the last of them."""
        low, gaps = channel.low, channel.gaps
        while low in gaps:
            gaps.discard(low)
            low += 1
        channel.low = low
        return low - 1

    def _tick(self) -> bool:
        """Give back what nobody fetches: its worker is busy, another one may be free. Called by the keeper."""
        channel = self._channel
        if channel is None or channel.link.error is not None or channel.closed is not None:
            return False
        if not channel.buffer:
            self._look(channel)
            return bool(self._held)
        if time.monotonic() - self._fetched >= _IDLE_S and self._intake.acquire(blocking=False):
            try:
                self._cancel(channel, list(self._sources.values()))
                entries = [channel.buffer.popleft() for _ in range(len(channel.buffer))]
                self._return(channel, entries)
            finally:
                self._intake.release()
        return True

    def _look(self, channel: ConsumeChannel) -> None:
        """Find out whether the server still knows that it is to push here; called by the keeper.

        After a quorum queue was deleted and made again at once, RabbitMQ 3 neither ends the old subscription nor serves
        a new one on the same channel. Only another connection helps.
        """
        sources = list(self._sources.values())
        now = time.monotonic()
        if not sources or now < self._next_look:
            return
        self._next_look = now + max(0.2, _LOOK_S / len(sources))
        self._looked += 1
        source = sources[self._looked % len(sources)]
        received = source.received
        if source.open <= source.outstanding:
            source.deaf = 0
            return
        found = self._transport.look(source.queue)
        if found and source.received == received == source.seen:
            source.deaf += 1
        else:
            source.deaf = 0
        source.seen = received
        if source.deaf >= 2:
            self._transport.forget_queue(source.queue)
            error = channel.link.failed(
                f"{found} message(s) wait in queue {source.queue!r} and are not pushed here; it may have been made anew"
            )
            logger.warning("%s; connecting again", error)

    # --------------------------------------------------------------------------------------------------- fetching

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        with self._intake:
            try:
                return self._fetch(limit, wait, ahead)
            except ChannelClosed as closed:
                raise self._refused(closed) from closed
            finally:
                self._fetched = time.monotonic()

    def _fetch(self, limit: int, wait: float, ahead: int) -> Fetched:
        deadline = time.monotonic() + wait
        channel = self._sound()
        if channel is None:
            if self._lost:
                return Fetched((), self._losses())
            channel = self._connect()
            for queue in self._sources:
                self._transport.ensure(queue)
        deliveries: list[Delivery] = []
        pull = len(self._sources) > 1 and (self._order == "strict" or self._credit < len(self._sources))
        while True:
            rung = self._heard()
            if channel.cancelled:
                self._deleted(channel)
            if pull:
                if not channel.buffer:
                    self._pull(channel, limit)
            else:
                self._ask(channel, limit + ahead)
            if not channel.buffer:
                channel.link.read_now()
            self._take(channel, limit, deliveries)
            left = deadline - time.monotonic()
            if deliveries or self._lost or rung or left <= 0:
                break
            if pull:
                left = min(left, self._listen(channel))
            seen = len(channel.buffer), len(self._held)
            try:
                channel.link.wait(
                    lambda seen=seen: (  # type: ignore[misc]
                        (len(channel.buffer), len(self._held)) != seen
                        or bool(channel.cancelled)
                        or channel.closed is not None
                    ),
                    left,
                    self._bell,
                )
            except TransportError:
                pass  # looked at below
            if self._sound() is None:
                if not self._lost:
                    raise ConnectionLost(f"the connection of a consumer broke: {channel.link.error or channel.closed}")
                break
        if pull and self._channel is channel:
            self._cancel(channel, list(self._sources.values()))
        return Fetched(deliveries, self._losses() if self._lost else ())

    def _heard(self) -> bool:
        """Whether somebody called ``wake`` since the last look."""
        self._bell.hush()
        woken, self._woken = self._woken, False
        return woken

    def _ask(self, channel: ConsumeChannel, more: int) -> None:
        """Open windows for what is held and this much more, or close those that are far too wide."""
        held = len(self._held)
        want = min(self._credit, held + more)
        if self._bytes and held and more > 1:
            mean = max(1, self._bytes // held)
            want = min(want, max(held, self._max_bytes // mean))
        have = self._open(channel)
        least = len(self._sources)
        if want * 4 < have and have > least * 2:
            self._shrunk += 1
            if self._shrunk > 3:  # not for a single small fetch between large ones
                self._shrunk = 0
                self._cancel(channel, list(self._sources.values()))
                self._grow(channel, max(0, min(self._credit, max(want, least)) - self._outstanding(channel)))
            return
        self._shrunk = 0
        want = max(want, min(least, self._credit))
        if want > have:
            if want > 16:  # in few steps
                want = min(self._credit, max(want, have * 2))
            self._grow(channel, want - have)

    @staticmethod
    def _outstanding(channel: ConsumeChannel) -> int:
        return sum(w.outstanding for w in channel.windows.values())

    def _pull(self, channel: ConsumeChannel, limit: int) -> None:
        """Take messages one by one, from the queues in their order: for what pushing cannot do."""
        sources = list(self._sources.values())
        if self._order == "weighted":
            sources = [s for s in sources for _ in range(s.weight)]
        if self._order != "strict":
            start = self._turn % len(sources)
            sources = sources[start:] + sources[:start]
        taken = 0
        room = min(limit, self._credit - self._outstanding(channel))
        empty: set[str] = set()
        for source in sources:
            while taken < room and source.queue not in empty:
                method, properties, body = channel.ask_for_content(spec.Basic.Get(queue=source.queue))
                self._turn += 1
                if not isinstance(method, spec.Basic.GetOk):
                    empty.add(source.queue)
                    break
                count, priority = wire.facts(properties)
                window = Window(source, 0, f"get-{method.delivery_tag}".encode())
                window.active = False
                channel.windows[window.tag] = window
                incoming = wire.Incoming(
                    window.tag, method.delivery_tag, bool(method.redelivered), count, priority, body
                )
                channel.on_deliveries([incoming])
                taken += 1
                if self._order != "strict":
                    break  # the next one's turn
        if taken == 0:
            self._turn += 1

    def _listen(self, channel: ConsumeChannel) -> float:
        """While nothing is there: have one message pushed from as many queues as the credit allows."""
        room = self._credit - self._open(channel)
        closed = [s for s in self._sources.values() if s.open == 0]
        if room <= 0 and closed and self._outstanding(channel) < self._credit:
            self._cancel(channel, list(self._sources.values()))
            closed = list(self._sources.values())
            room = self._credit - self._outstanding(channel)
        if self._order != "strict" and closed:
            start = self._turn % len(closed)
            closed = closed[start:] + closed[:start]
        frames: list[bytes] = []
        for source in closed[: max(0, room)]:
            frames += self._window(channel, source, 1)
        if frames:
            channel.link.write(b"".join(frames))
        return _TURN_S if room < len(closed) else 3600.0

    def _take(self, channel: ConsumeChannel, limit: int, deliveries: list[Delivery]) -> None:
        buffer = channel.buffer
        if not buffer:
            return
        held = self._held
        room = min(limit, self._credit - len(held))
        if room <= 0:
            return
        if len(self._sources) > 1 or self._prioritized:
            self._sort(channel)
        base, classic = channel.base, channel.classic
        total, most = self._bytes, self._max_bytes
        sources = self._sources
        with self._state:
            while room > 0 and buffer:
                incoming, window = buffer[0]
                size = len(incoming.body)
                if total + size > most and held:
                    break
                buffer.popleft()
                source = window.source
                if sources.get(source.queue) is not source:
                    buffer.appendleft((incoming, window))
                    break
                receipt = base + incoming.tag
                held[receipt] = (window, size)
                total += size
                if incoming.redelivered:
                    count = 2 if classic or incoming.returns is None else incoming.returns + 1
                else:
                    count = 1 if incoming.returns is None else incoming.returns + 1
                deliveries.append(Delivery(incoming.body, receipt, source.queue, count))
                room -= 1
            self._bytes = total
        if buffer and sources.get(buffer[0][1].source.queue) is not buffer[0][1].source:
            self._trim(channel)
            self._take(channel, limit - len(deliveries), deliveries)

    def _sort(self, channel: ConsumeChannel) -> None:
        """Put what waits here into the order to start it in."""
        buffer = channel.buffer
        entries = [buffer.popleft() for _ in range(len(buffer))]
        if self._order == "strict":
            entries.sort(key=lambda e: (e[1].source.rank, -e[0].priority))
        elif self._prioritized:
            entries.sort(key=lambda e: -e[0].priority)
        buffer.extendleft(reversed(entries))

    def _deleted(self, channel: ConsumeChannel) -> None:
        """The server ended subscriptions, mostly because their queue was deleted, with all that was in it."""
        windows, channel.cancelled = channel.cancelled, []
        with self._state:
            for window in windows:
                if window.active:
                    window.active = False
                    window.source.open -= window.size
        for queue in {w.source.queue for w in windows}:
            logger.warning("%s ended the subscription to queue %r: it was deleted or moved", channel.link.name, queue)
            self._transport.forget_queue(queue)
            if queue in self._sources:
                self._transport.ensure(queue)

    def _losses(self) -> list[Lost]:
        with self._state:
            lost = [Lost(receipt, reason) for receipt, reason in self._lost.items()]
            self._lost.clear()
        return lost

    def _refused(self, closed: ChannelClosed) -> TransportError:
        channel = self._channel
        if channel is not None:
            self._drop(channel, str(closed))
        if closed.code == 404:  # it was deleted; the next fetch makes it again, or says that it may not
            for queue in self._sources:
                self._transport.forget_queue(queue)
        if closed.code == 403:
            return QueueMissing(f"a queue may not be consumed from: {closed}; give the user the right to read")
        return TransportError(f"the server closed the consumer's channel: {closed}")

    # --------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        self._sound()
        lost: list[Lost] = []
        frames: list[bytes] = []
        closing = False
        with self._state:
            channel = self._channel
            number = 0 if channel is None else channel.number
            base = 0 if channel is None else channel.base
            held = self._held
            acks: list[int] = []
            for settlement in settlements:
                receipt = settlement.receipt
                entry = held.pop(receipt, None)
                if entry is None:
                    lost.append(Lost(receipt, self._lost.pop(receipt, "not held by this consumer")))
                    continue
                window, size = entry
                closing = closing or not window.active
                window.outstanding -= 1
                window.source.outstanding -= 1
                self._bytes -= size
                tag = receipt - base
                if settlement.kind == ACK:
                    acks.append(tag)
                else:
                    frames.append(wire.nack_frame(number, tag))
                    assert channel is not None
                    channel.gaps.add(tag)
            if channel is not None and (acks or frames):
                frames += self._acks(channel, acks)
        if frames:
            assert channel is not None
            try:
                channel.link.write(b"".join(frames))
                if closing:  # no window of theirs lets more through: a fetch that waits has to open another
                    self._bell.ring()
            except TransportError as error:
                # what was written in part may count or not; the messages come again if not
                self._drop(channel, str(error))
        return lost

    def _acks(self, channel: ConsumeChannel, tags: list[int]) -> list[bytes]:
        """Return the frames that acknowledge these: one for all that no unsettled one precedes, one for each other."""
        number = channel.number
        before = channel.low
        gaps = channel.gaps
        gaps.update(tags)
        top = self._advance(channel)
        if not tags:
            return []
        if top < before:
            return [wire.ack_frame(number, tag) for tag in tags]
        covered = [tag for tag in tags if tag <= top]
        frames = [wire.ack_frame(number, tag) for tag in tags if tag > top]
        if covered:
            frames.append(wire.ack_frame(number, max(covered), multiple=len(covered) > 1))
        return frames

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        channel = self._sound()
        if channel is None:
            return self._losses()
        # Acknowledgements have no answer; the answer to a later method on their channel proves that they were taken.
        try:
            channel.ask(spec.Channel.Flow(True), timeout=timeout)
        except ChannelClosed as closed:
            self._drop(channel, str(closed))
            raise ConnectionLost(
                f"the server closed the channel before it had taken all settlements: {closed}"
            ) from closed
        except TransportError:
            self._sound()
            raise
        return self._losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        """Do nothing: the lease is the connection, and the keeper sends its heartbeats."""
        self._check()
        return ()

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def close(self, timeout: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        if not self._transport.owned or self._pid != os.getpid():
            return
        self._transport.forget(self)
        channel, self._channel = self._channel, None
        if channel is not None:
            self._transport.keeper.remove(channel.link)
            if channel.link.error is None and channel.closed is None:
                self._hand_back(channel, timeout)
            channel.link.close(timeout)
        self._held.clear()
        self._bell.close()

    def _hand_back(self, channel: ConsumeChannel, timeout: float) -> None:
        try:
            self._cancel(channel, [w.source for w in channel.windows.values()])
            channel.link.write(wire.nack_frame(channel.number, 0, multiple=True), timeout)
            channel.close(timeout)
        except (TransportError, ChannelClosed):
            pass  # the server gives out again what this connection held

"""The AMQP consumer: has as much pushed as the kernel asks for, and hands it out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pika.spec as spec

from taskq.errors import ConnectionLost, QueueMissing, TransportClosed, TransportError
from taskq.message import ACK, Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq.spi import SubscribeOrder
from taskq_lib_amqp import wire
from taskq_lib_amqp.channel import ChannelClosed
from taskq_lib_amqp.waiting import Bell
from taskq_transport_amqp.intake import Intake
from taskq_transport_amqp.windows import ConsumeChannel, Entry, Source

if TYPE_CHECKING:
    from taskq_transport_amqp.transport import AmqpTransport

logger = logging.getLogger("taskq.transport.amqp")
_IDLE_S = 0.3
"""How long what was pushed may wait for a fetch before it is given back."""


class AmqpConsumer:
    """A connection that takes messages."""

    def __init__(self, transport: AmqpTransport) -> None:
        self._transport = transport
        self._bell = Bell()
        self._pid = os.getpid()
        self._channel: ConsumeChannel | None = None
        self._held: dict[int, Entry] = {}
        self._intake = Intake(self._held)
        self._bytes, self._max_bytes = 0, 0
        self._lost: dict[Any, str] = {}
        self._closed = False
        self._state = threading.Lock()
        """Guards what fetching and settling threads share: held, tags, losses. Never held over a wait."""
        self._moving = threading.Lock()
        """Held by whoever moves windows and buffer: the intake thread, or the keeper while nobody fetches."""
        self._fetched = time.monotonic()
        self._woken = False
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
            channel = ConsumeChannel(link, 1, self._state)
            channel.open()
        except ChannelClosed as closed:
            link.close()
            raise TransportError(f"{link.name} refuses a channel: {closed}") from closed
        except BaseException:
            link.close()
            raise
        self._intake.restart()
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
        self._intake.unseen(list(channel.buffer))

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
        wanted = {
            q.queue: Source(q.queue, i, q.weight, classic=self._transport.is_classic(q.queue))
            for i, q in enumerate(queues)
        }
        with self._state:
            gone = self._intake.subscribe(wanted, order)
        if channel is not None and gone:
            self._withdraw(channel, gone)

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        lower = n < self._intake.credit
        self._intake.credit, self._max_bytes = n, max_bytes
        channel = self._sound() if lower else None
        if channel is not None and channel.capacity() > n:
            self._withdraw(channel, list(self._intake.sources.values()))

    def _withdraw(self, channel: ConsumeChannel, sources: Sequence[Source]) -> None:
        """Have nothing more pushed from these queues, and give back what is too much now."""
        with self._moving:
            try:
                channel.cancel(sources)
                self._intake.trim(channel)
            except (TransportError, ChannelClosed):
                pass  # the next fetch finds out

    def _tick(self) -> bool:
        """Give back what nobody fetches: its worker is busy, another one may be free. Called by the keeper."""
        channel = self._channel
        if channel is None or channel.link.error is not None or channel.closed is not None:
            return False
        if not channel.buffer:
            return bool(self._held)
        if time.monotonic() - self._fetched >= _IDLE_S and self._moving.acquire(blocking=False):
            try:
                channel.cancel(list(self._intake.sources.values()))
                entries = [channel.buffer.popleft() for _ in range(len(channel.buffer))]
                self._intake.give_back(channel, entries)
            finally:
                self._moving.release()
        return True

    # --------------------------------------------------------------------------------------------------- fetching

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        with self._moving:
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
            for queue in self._intake.sources:
                self._transport.ensure(queue)
        intake = self._intake
        deliveries: list[Delivery] = []
        pull = intake.pulls()
        while True:
            rung = self._heard()
            if channel.cancelled:
                self._deleted(channel)
            look = 0.0 if pull else intake.ask(channel, self._wanted(limit + ahead))
            if pull and not channel.buffer:
                intake.pull(channel, limit)
            if not channel.buffer:
                channel.link.read_now()
            self._take(channel, limit, deliveries)
            left = deadline - time.monotonic()
            if deliveries or self._lost or rung or left <= 0:
                break
            if pull:
                look = intake.listen(channel)
            seen = len(channel.buffer), len(self._held), channel.returned
            try:
                channel.link.wait(
                    lambda seen=seen: (  # type: ignore[misc]
                        (len(channel.buffer), len(self._held), channel.returned) != seen
                        or bool(channel.cancelled)
                        or channel.closed is not None
                    ),
                    min(left, look),
                    self._bell,
                )
            except TransportError:
                pass  # looked at below
            if self._sound() is None:
                if not self._lost:
                    raise ConnectionLost(f"the connection of a consumer broke: {channel.link.error or channel.closed}")
                break
        if pull and self._channel is channel:
            channel.cancel(list(intake.sources.values()))
        return Fetched(deliveries, self._losses() if self._lost else ())

    def _heard(self) -> bool:
        """Whether somebody called ``wake`` since the last look."""
        self._bell.hush()
        woken, self._woken = self._woken, False
        return woken

    def _wanted(self, more: int) -> int:
        """Return how many messages are to be here: what is held and this much more, within credit and bytes."""
        held = len(self._held)
        want = min(self._intake.credit, held + more)
        if self._bytes and held and more > 1:
            mean = max(1, self._bytes // held)
            want = min(want, max(held, self._max_bytes // mean))
        return want

    def _take(self, channel: ConsumeChannel, limit: int, deliveries: list[Delivery]) -> None:
        buffer = channel.buffer
        if not buffer:
            return
        held = self._held
        intake = self._intake
        room = min(limit, intake.credit - len(held))
        if room <= 0:
            return
        intake.sort(channel)
        base, most, sources = channel.base, self._max_bytes, intake.sources
        with self._state:
            if self._channel is not channel:
                return  # it broke, as the settling thread has just seen: what it brought cannot be settled any more
            total = self._bytes
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
                held[receipt] = incoming, window
                total += size
                count = intake.deliveries(incoming, source.queue) if incoming.redelivered or incoming.returns else 1
                deliveries.append(Delivery(incoming.body, receipt, source.queue, count))
                room -= 1
            self._bytes = total
        if buffer and not intake.wants(buffer[0][1].source):
            intake.trim(channel)
            self._take(channel, limit - len(deliveries), deliveries)

    def _deleted(self, channel: ConsumeChannel) -> None:
        """The server ended subscriptions, mostly because their queue was deleted, with all that was in it."""
        windows, channel.cancelled = channel.cancelled, []
        channel.ended(windows)
        for queue in {w.source.queue for w in windows}:
            logger.warning("%s ended the subscription to queue %r: it was deleted or moved", channel.link.name, queue)
            self._transport.forget_queue(queue)
            if queue in self._intake.sources:
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
            for queue in self._intake.sources:
                self._transport.forget_queue(queue)
        if closed.code == 403:
            return QueueMissing(f"a queue may not be consumed from: {closed}; give the user the right to read")
        return TransportError(f"the server closed the consumer's channel: {closed}")

    # --------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        self._sound()
        lost: list[Lost] = []
        acks: list[int] = []
        nacks: list[int] = []
        rejects: list[int] = []
        copied: list[Entry] = []
        closing = False
        with self._state:
            channel = self._channel
            base = 0 if channel is None else channel.base
            held = self._held
            for settlement in settlements:
                receipt = settlement.receipt
                entry = held.pop(receipt, None)
                if entry is None:
                    lost.append(Lost(receipt, self._lost.pop(receipt, "not held by this consumer")))
                    continue
                incoming, window = entry
                closing = closing or not window.active
                window.settled()
                self._bytes -= len(incoming.body)
                if settlement.kind == ACK:
                    acks.append(receipt - base)
                elif settlement.counted:
                    rejects.append(receipt - base)
                elif window.source.classic or incoming.returns:
                    nacks.append(receipt - base)
                else:
                    copied.append(entry)
        if copied:
            # A quorum queue would count a return, so a message that never started would look like one that crashed.
            # A copy in its place has no past; it goes to the tail.
            kept = self._transport.copy([(window.source.queue, incoming.body) for incoming, window in copied])
            for n, (incoming, _) in enumerate(copied):
                (acks if n in kept else nacks).append(incoming.tag)
        if channel is not None and (acks or nacks or rejects):
            with self._state:
                frames = channel.settling(acks, nacks, rejects)
            try:
                channel.link.write(b"".join(frames))
                if closing:  # no window of theirs lets more through: a fetch that waits has to open another
                    self._bell.ring()
            except TransportError as error:
                # what was written in part may count or not; the messages come again if not
                self._drop(channel, str(error))
        return lost

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
            channel.cancel([w.source for w in channel.windows.values()])
            channel.link.write(wire.nack_frame(channel.number, 0, multiple=True), timeout)
            channel.close(timeout)
        except (TransportError, ChannelClosed):
            pass  # the server gives out again what this connection held

"""Dead letters: looking at them, sending them back, throwing them away. Needs a broker, not the application's code."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b

from msgspec import Struct

from taskq import envelope
from taskq.envelope import ANEW, EPOCH, EXPIRES, HISTORY, NOT_BEFORE, DeadInfo
from taskq.errors import DecodeError, TransportError
from taskq.message import ACK, RELEASE, Delivery, Outbound, QueueSpec, Settlement, Subscription
from taskq.routing import DEAD_SUFFIX
from taskq.spi.capabilities import LeaseScope
from taskq.spi.transport import Consumer, SupportsPeek, Transport

_BATCH = 500
_EMPTY_WAIT = 0.5
_HISTORY_KEPT = 10


class DeadLetter(Struct, frozen=True):
    """One dead message: what is known of its death, and the message itself, unchanged."""

    queue: str
    info: DeadInfo
    payload: bytes


class DeadLetters:
    """The dead-letter queues of one broker. ``broker_of``: finds the broker of a queue, where there are several."""

    def __init__(self, transport: Transport, broker_of: Callable[[str], Transport] | None = None) -> None:
        self._transport = transport
        self._broker_of = broker_of or (lambda queue: transport)

    def list(self, queue: str, *, limit: int = 100) -> list[DeadLetter]:
        """Return up to ``limit`` dead letters of a queue, oldest first; nothing is taken.

        Raises:
            TransportError: the broker cannot be asked.
        """
        if isinstance(self._transport, SupportsPeek) and self._transport.capabilities.peek:
            found: list[DeadLetter] = []
            after: str | None = None
            while len(found) < limit:
                page = self._transport.peek(queue + DEAD_SUFFIX, limit=min(_BATCH, limit - len(found)), after=after)
                found.extend(_read(queue, p.payload) for p in page)
                if not page:
                    break
                after = page[-1].cursor
            return found
        return [_read(queue, d.payload) for d in self._walk(queue, lambda _: False, limit)]

    def find(self, queue: str, task_id: str) -> DeadLetter | None:
        """Return the dead letter of a task id (or its unambiguous beginning), None without one."""
        found = [letter for letter in self.list(queue, limit=1_000_000) if letter.info.id.startswith(task_id)]
        exact = [letter for letter in found if letter.info.id == task_id]
        return (exact or found)[0] if exact or len(found) == 1 else None

    def replay(
        self, queue: str, wanted: Callable[[DeadLetter], bool], *, to: str | None = None, limit: int | None = None
    ) -> int:
        """Send dead letters back to the queue they came from (or to ``to``), as new runs; return how many.

        A message that dies again meanwhile is left alone. Each is accepted by the broker before its dead letter is
        removed. Its epoch is raised, so that the new run's result replaces the old one; attempts start at 0; an
        expiry or delay of old is dropped.

        Raises:
            TransportError: the broker failed; what was replayed until then is replayed.
        """

        began = time.time()

        def send(delivery: Delivery) -> bool:
            letter = _read(queue, delivery.payload)
            if letter.info.died_at >= began or letter.info.id in replayed or not wanted(letter):
                return False
            replayed.add(letter.info.id)
            again = _revive(letter, to)
            failures = self._broker_of(again.queue).send([again])
            if failures:
                raise TransportError(
                    f"dead letter [{letter.info.id}] was not accepted for replay: {failures[0].reason}"
                )
            return True

        replayed: set[str] = set()
        target = to or queue
        self._broker_of(target).declare([QueueSpec(name=target)], mode="create")
        return sum(1 for _ in self._walk(queue, send, None, most=limit))

    def purge(self, queue: str, wanted: Callable[[DeadLetter], bool]) -> int:
        """Throw dead letters away; return how many.

        Raises:
            TransportError: the broker failed; what was purged until then is gone.
        """
        return sum(1 for _ in self._walk(queue, lambda d: wanted(_read(queue, d.payload)), None, most=None))

    def _walk(
        self, queue: str, take: Callable[[Delivery], bool], limit: int | None, most: int | None = None
    ) -> Iterator[Delivery]:
        """Go through a dead-letter queue once, removing what ``take`` takes and putting back the rest, uncounted.

        Yields what was taken; with a ``limit`` (looking only), up to that many of all.
        """
        name = queue + DEAD_SUFFIX
        self._transport.declare([QueueSpec(name=name)], mode="create")
        consumer = self._transport.consumer()
        kept: list[Delivery] = []
        taken = 0
        try:
            consumer.credit(10_000_000, 1 << 40)
            consumer.subscribe([Subscription(name)], order="strict")
            beat = time.monotonic()
            while limit is None or len(kept) < limit:
                deliveries = consumer.fetch(_BATCH, _EMPTY_WAIT).deliveries
                if not deliveries:
                    break
                for i, delivery in enumerate(deliveries):
                    if most is not None and taken >= most:
                        kept.extend(deliveries[i:])
                        return
                    if take(delivery):
                        consumer.settle([Settlement(delivery.receipt, ACK)])
                        taken += 1
                        yield delivery
                    else:
                        kept.append(delivery)
                if time.monotonic() - beat > self._transport.capabilities.lease_default_s / 4:
                    _extend(consumer, self._transport, kept)
                    beat = time.monotonic()
            if limit is not None:
                yield from kept[:limit]
        finally:
            consumer.settle([Settlement(d.receipt, RELEASE) for d in kept])
            consumer.flush(10.0)
            consumer.close()


def _extend(consumer: Consumer, transport: Transport, held: Sequence[Delivery]) -> None:
    by_message = transport.capabilities.lease_scope is LeaseScope.MESSAGE
    consumer.extend([d.receipt for d in held] if by_message else None)


def _read(queue: str, payload: bytes) -> DeadLetter:
    """Return a dead letter; one that the server made by itself holds the message only."""
    try:
        info, original = envelope.decode_dead(payload)
    except DecodeError:
        try:
            header, _ = envelope.decode(payload)
            known, task = header.id, header.task
        except DecodeError:
            known, task = f"unreadable-{blake2b(payload, digest_size=8).hexdigest()}", ""
        return DeadLetter(queue, DeadInfo(known, queue, "moved here by the broker itself", 0.0, task), payload)
    return DeadLetter(queue, info, original)


def _revive(letter: DeadLetter, to: str | None) -> Outbound:
    queue = to or letter.info.queue or letter.queue
    try:
        header, body = envelope.decode(letter.payload)
    except DecodeError:
        return Outbound(f"{letter.info.id}.replayed", queue, letter.payload)
    epoch = int(header.get(EPOCH, 0)) + 1
    history = [*(header.get(HISTORY) or []), [epoch - 1, letter.info.died_at, letter.info.reason[:200]]][
        -_HISTORY_KEPT:
    ]
    changes = {**ANEW, EPOCH: epoch, HISTORY: history, NOT_BEFORE: None, EXPIRES: None}
    payload = envelope.with_changes(header, letter.payload[body:], changes=changes, attempt=0)
    return envelope.outbound(header, envelope.message_id(header, 0, epoch), queue, payload)

"""A consumer of the Redis transport.

It has two connections: one to claim and to wait for the bell, one to settle and to renew its lease, so that a waiting
fetch never holds up an acknowledgement. A claim for the next batch may be under way while the kernel runs this one.
"""

from __future__ import annotations

import os
import random
import socket
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from taskq.errors import ConnectionLost, PayloadTooLarge, TransportClosed, TransportError
from taskq.message import RELEASE, Commit, Delivery, Fetched, Lost, Outbound, Receipt, Settlement, Subscription
from taskq_lib_redis import RedisLink, RedisResults, ServerError, record_arguments
from taskq_transport_redis import scripts
from taskq_transport_redis.options import MAX_PAYLOAD_BYTES

if TYPE_CHECKING:
    from taskq.spi import Committer, ResultStore, SubscribeOrder
    from taskq_transport_redis.transport import RedisTransport

_QUEUES_AT_ONCE = 32
_UNLIMITED = 1 << 50
_pack = msgspec.msgpack.Encoder().encode
_GONE = "the lease ended and the message was given back"


class _Held(NamedTuple):
    queue: int
    number: int
    size: int


class _LeaseLost(Exception):
    """The server does not know this consumer any more."""


class RedisConsumer:
    """Holds messages under one lease, which ``extend`` keeps."""

    def __init__(self, transport: RedisTransport) -> None:
        self._transport = transport
        self._prefix = transport.prefix
        self._claims = RedisLink(transport.target)
        self._settles = RedisLink(transport.target)
        self._settling = threading.Lock()
        self._state = threading.Lock()
        self._names: list[str] = []
        self._subscribed: list[int] = []
        self._weights: dict[int, int] = {}
        self._order: SubscribeOrder = "fair"
        self._turn = 0
        self._held: dict[int, _Held] = {}
        self._bytes = 0
        self._credit = self._max_bytes = _UNLIMITED
        self._next = 1
        self._losses: list[Lost] = []
        self._ahead: tuple[list[int], list[int], int] | None = None
        self._closed = False
        self._woken = False
        self._pipe, self._bell = socket.socketpair()
        self._pipe.setblocking(False)
        self._bell.setblocking(False)
        self.id = ""
        self._register(self._settles)

    # ---------------------------------------------------------------------------------------------------- lease

    def _register(self, link: RedisLink) -> None:
        """Enter under a new name; what was held under the old one is lost."""
        p = self._prefix
        name = os.urandom(6).hex()
        queues = [value for n, queue in enumerate(self._names) for value in (n, queue)]
        keys = (f"{p}c", f"{p}m:{name}")
        self._run(link, scripts.REGISTER, keys, (name, self._lease_ms, *queues))
        with self._state:
            self._losses += [Lost(receipt, _GONE) for receipt in self._held]
            self._held.clear()
            self._bytes = 0
            self.id = name

    @property
    def _lease_ms(self) -> int:
        return max(1, round(self._transport.lease_s * 1000))

    def _run(self, link: RedisLink, script: Any, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        try:
            return link.script(script, keys, args)
        except ServerError as error:
            raise self._problem(error) from error

    def _problem(self, error: ServerError) -> Exception:
        if error.code == "LOST":
            return _LeaseLost()
        return TransportError(f"{self._transport.target.name} refused a script: {error}")

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        for subscription in queues:
            if subscription.queue not in self._names:
                self._names.append(subscription.queue)
        self._subscribed = [self._names.index(s.queue) for s in queues]
        self._weights = {self._names.index(s.queue): max(1, s.weight) for s in queues}
        self._order = order
        pairs = [value for n, queue in enumerate(self._names) for value in (n, queue)]
        if pairs:
            key = f"{self._prefix}m:{self.id}"
            with self._settling:
                try:
                    self._settles.call(b"HSET", key, *pairs)
                except ServerError as error:
                    raise TransportError(f"{self._transport.target.name} refused HSET: {error}") from error

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._credit, self._max_bytes = n, max_bytes
        self._poke()

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        while True:
            try:
                deliveries, due = self._claimed(limit)
            except _LeaseLost:
                self._register(self._claims)
                continue
            if deliveries:
                if ahead and len(deliveries) >= limit:
                    self._claim_ahead(ahead)
                return Fetched(deliveries, self._take_losses())
            left = end - time.monotonic()
            if self._woken or self._losses or left <= 0:
                self._quiet()
                return Fetched((), self._take_losses())
            pause = min(left, self._transport.options.poll_interval)
            if due is not None:
                pause = min(pause, due)
            self._wait(pause)

    def _claimed(self, limit: int) -> tuple[list[Delivery], float | None]:
        """Return what is there now, and seconds until a delayed message is due."""
        if self._ahead is not None:
            order, bases, _ = self._ahead
            self._ahead = None
            try:
                answer = self._claims.receive()
            except ServerError as error:
                raise self._problem(error) from error
            deliveries, due = self._take(answer, order, bases)
            if deliveries:
                return deliveries, due
        due = None
        for order in self._windows():
            room = self._room(limit)
            if room <= 0 or not order:
                return [], None
            command, bases = self._claim_command(order, room)
            try:
                answer = self._claims.script(scripts.CLAIM, command[0], command[1])
            except ServerError as error:
                raise self._problem(error) from error
            deliveries, next_due = self._take(answer, order, bases)
            if deliveries:
                return deliveries, next_due
            if next_due is not None:
                due = next_due if due is None else min(due, next_due)
        return [], due

    def _room(self, limit: int) -> int:
        room = min(limit, self._credit - len(self._held), 1000)
        return 0 if self._held and self._bytes >= self._max_bytes else room

    def _windows(self) -> list[list[int]]:
        """Return the subscribed queues in the order to look at, in portions of one script call."""
        queues = self._subscribed
        if len(queues) > 1 and self._order == "fair":
            self._turn = (self._turn + 1) % len(queues)
            queues = queues[self._turn :] + queues[: self._turn]
        elif len(queues) > 1 and self._order == "weighted":
            # a draw by weight for each place: in the long run each queue is first in proportion to its weight
            queues = sorted(queues, key=lambda q: random.random() ** (1 / self._weights[q]), reverse=True)  # noqa: S311
        return [queues[i : i + _QUEUES_AT_ONCE] for i in range(0, len(queues), _QUEUES_AT_ONCE)]

    def _claim_command(self, order: Sequence[int], room: int) -> tuple[tuple[list[Any], list[Any]], list[int]]:
        p = self._prefix
        keys: list[Any] = [f"{p}c"]
        bases: list[int] = []
        for n in order:
            queue = self._names[n]
            keys += (f"{p}i:{self.id}:{n}", f"{p}d:{queue}", f"{p}b:{queue}", *self._transport.lists(queue))
            bases.append(self._next)
            self._next += room
        free = max(0, self._max_bytes - self._bytes)
        return (keys, [self.id, room, free, 0 if self._held else 1, *bases]), bases

    def _take(
        self, answer: Sequence[Any], order: Sequence[int], bases: Sequence[int]
    ) -> tuple[list[Delivery], float | None]:
        deliveries: list[Delivery] = []
        size = 0
        for n, base, frames in zip(order, bases, answer[1:], strict=True):
            queue = self._names[n]
            held = self._held
            for number, frame in enumerate(frames, base):
                payload = frame[2:]
                held[number] = _Held(n, number, len(payload))
                size += len(payload)
                deliveries.append(Delivery(payload, number, queue, frame[0] + 1))
        if size:
            with self._state:
                self._bytes += size
        due = int(answer[0])
        return deliveries, None if due < 0 else due / 1000

    def _claim_ahead(self, limit: int) -> None:
        """Send the claim for the next batch; its answer is read by the next fetch."""
        windows = self._windows()
        room = self._room(limit)
        if len(windows) != 1 or room <= 0:
            return
        (keys, args), bases = self._claim_command(windows[0], room)
        self._claims.send(b"EVALSHA", scripts.CLAIM.sha, len(keys), *keys, *args)
        self._ahead = (list(windows[0]), bases, room)

    def _wait(self, pause: float) -> None:
        """Wait for a bell, a wake, or the pause to pass."""
        p = self._prefix
        bells = [f"{p}b:{self._names[n]}" for n in self._subscribed]
        wake_key = f"{p}w:{self.id}"
        self._claims.send(b"BLPOP", *bells, wake_key, f"{max(0.001, pause):.3f}")
        # the server answers when the pause is over; a wake from here makes it answer at once
        if not self._claims.readable(pause + self._transport.options.timeout, [self._pipe]):
            self._drain()
            with self._settling:
                try:
                    self._settles.pipeline([(b"RPUSH", wake_key, b"1"), (b"PEXPIRE", wake_key, 60_000)])
                except TransportError:
                    self._claims.close()
                    raise
        try:
            self._claims.receive()
        except ServerError as error:
            raise TransportError(f"{self._transport.target.name} refused BLPOP: {error}") from error

    # -------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        return self._end(settlements, ()) if settlements else self._take_losses()

    def _end(self, settlements: Sequence[Settlement], commits: Sequence[Commit]) -> list[Lost]:
        lost: list[Lost] = []
        acks: dict[int, list[int]] = {}
        back: list[Any] = []
        ended: dict[int, _Held] = {}
        held = self._held
        for s in settlements:
            entry = held.get(s.receipt)
            if entry is None or s.receipt in ended:
                lost.append(Lost(s.receipt, "not held: it was settled before, or the lease ended"))
                continue
            ended[s.receipt] = entry
            if s.kind == RELEASE:
                delay = max(0, round(s.delay * 1000))
                uid = os.urandom(8) if delay else b""
                back += (entry.queue, self._names[entry.queue], entry.number, int(s.counted), delay, uid)
            else:
                acks.setdefault(entry.queue, []).append(entry.number)
        if not ended:
            return lost + self._take_losses()
        gone = {loss.receipt for loss in lost}
        kept = [c for c in commits if c.settlement.receipt not in gone] if gone else commits
        records = [c.record for c in kept if c.record is not None]
        stored, published = record_arguments(records, self._prefix) if records else ([], [])
        follow: list[Any] = []
        for outbound in (o for c in kept for o in c.follow_ups):
            follow += _follow_up(outbound)
        flat = [value for queue, numbers in acks.items() for value in (queue, numbers)]
        batch = _pack((stored, published, follow, flat, back))
        try:
            with self._settling:
                keys, args = (f"{self._prefix}c",), (self.id, self._prefix, batch)
                self._run(self._settles, scripts.SETTLE, keys, args)
        except _LeaseLost:
            # the intake registers anew and reports what else is lost
            lost += [Lost(receipt, _GONE) for receipt in ended]
            self._poke()
        self._forget(ended)
        return lost + self._take_losses() if self._losses else lost

    def _forget(self, ended: dict[int, _Held]) -> None:
        with self._state:
            for receipt in ended:
                entry = self._held.pop(receipt, None)
                if entry is not None:
                    self._bytes -= entry.size

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        return self._take_losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        with self._settling:
            alive = self._run(self._settles, scripts.BEAT, (f"{self._prefix}c",), (self.id, self._lease_ms))
            if not alive:
                self._register(self._settles)
        return self._take_losses()

    def _take_losses(self) -> list[Lost]:
        with self._state:
            losses, self._losses = self._losses, []
        return losses

    def fuse(self, store: ResultStore) -> Committer | None:
        if isinstance(store, RedisResults) and store.results_place == self._transport.place:
            return RedisCommitter(self, store)
        return None

    # -------------------------------------------------------------------------------------------------- anywhere

    def wake(self) -> None:
        self._woken = True
        self._poke()

    def _poke(self) -> None:
        try:
            self._bell.send(b"1")
        except OSError:
            return  # full, so it is woken already; or closed

    def _drain(self) -> None:
        try:
            while self._pipe.recv(4096):
                continue
        except OSError:
            return

    def _quiet(self) -> None:
        """A wake has been answered."""
        self._woken = False
        self._drain()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        if self._transport._pid == os.getpid():
            try:
                if self._ahead is not None:
                    self._claims.receive()  # what it claimed is handed back with the rest
                self._run(self._settles, scripts.CLOSE, (), (self.id, self._prefix))
            except (TransportError, ServerError, _LeaseLost, ConnectionLost):
                pass  # its lease gives back what it held
            self._claims.close()
            self._settles.close()
        self._pipe.close()
        self._bell.close()
        self._held.clear()

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("this consumer is closed; make a new one with Transport.consumer()")


def _follow_up(outbound: Outbound) -> tuple[str, int, int, bytes]:
    if len(outbound.payload) > MAX_PAYLOAD_BYTES:
        raise PayloadTooLarge(f"follow-up [{outbound.id}] takes {len(outbound.payload)} bytes, at most {MAX_PAYLOAD_BYTES} fit")
    delay = max(0, round(outbound.delay * 1000))
    frame = b"\0%c%b" % (outbound.priority, outbound.payload)
    return outbound.queue, outbound.priority, delay, os.urandom(8) + frame if delay else frame


class RedisCommitter:
    """Stores outcomes, sends follow-ups and settles in one script."""

    def __init__(self, consumer: RedisConsumer, store: RedisResults) -> None:
        self._consumer = consumer
        self._store = store

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        self._consumer._check()
        records = [c.record for c in commits if c.record is not None]
        if records:
            self._store.check_records(records)
        return self._consumer._end([c.settlement for c in commits], commits)

"""A consumer of the Redis transport.

It has two connections: one to claim and to wait for the bell, one to settle and to renew its lease, so that a waiting
fetch never holds up an acknowledgement. A claim for the next batch may be under way while the kernel runs this one. A
wait and the claim that follows it are sent together, so that what rings the bell is here one round trip later.

The intake thread alone enters the consumer on the server, again where the lease was lost. A claim whose answer never
came has spoilt its receipts: before the next one the server hands back what it took, and refuses it if it comes late.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import AuthenticationFailed, ConnectionLost, TransportError
from taskq.message import RELEASE, Delivery, Fetched, Settlement, Subscription
from taskq_lib_client.bell import ready
from taskq_lib_redis.connection import RedisLink, ServerError
from taskq_lib_redis.records import RedisResults
from taskq_transport_redis import scripts
from taskq_transport_redis.settling import Holder, LeaseLost, Place, RedisCommitter

if TYPE_CHECKING:
    from taskq.spi import Committer, ResultStore, SubscribeOrder
    from taskq_transport_redis.transport import RedisTransport

logger = logging.getLogger("taskq.transport.redis")
_UNLIMITED = 1 << 50
_MOST_AT_ONCE = 1000
_WAKE_TTL_MS = 60_000
_SHORT = 0.3
_PATIENCE = 0.05
"""Seconds that a wake waits for the settling connection before it breaks the waiting one instead."""


class RedisConsumer(Holder):
    """Takes messages and holds them under one lease, which ``extend`` keeps."""

    def __init__(self, transport: RedisTransport, place: Place | None = None) -> None:
        target = transport.target
        place = place or Place(transport.prefix, RedisLink(target), RedisLink(target))
        super().__init__(transport, place)
        self._claims = place.claims
        self._claim_keys = self._keys if place.guard else ()
        # the rest is the intake thread's, as are the names
        self._numbers: dict[str, int] = {}
        self._subscribed: list[int] = []
        self._weights: dict[int, int] = {}
        self._order: SubscribeOrder = "fair"
        self._turn = 0
        self._credit = self._max_bytes = _UNLIMITED
        self._next = 1
        self._spoilt = 0
        self._spoilt_from = 0
        self._current = False
        """Whether the server knows our queues and name."""
        self._ahead: tuple[str, int, int] | None = None
        """Name, first receipt and size of the claim whose answer is still to be read."""
        self._buffer: deque[Delivery] = deque()
        self._dry = False
        """Whether the last claim left nothing, so that whatever comes rings."""
        self._due: float | None = None
        self._blocked = False
        self._woken = False
        self._complained: set[bytes] = set()
        self.alone = True
        """Whether nothing is held by others that share our credit."""
        self._shares_bell = place.bell is not None
        try:
            self._enter()
        except BaseException:
            self._close_bell()
            self._claims.close()
            raise

    @property
    def due(self) -> float | None:
        """When the next delayed message is due (monotonic), as of the last claim."""
        return self._due

    @property
    def blocked(self) -> bool:
        """Whether the next message is larger than the bytes that are left."""
        return self._blocked

    def _close_bell(self) -> None:
        if not self._shares_bell:
            self._bell.close()

    # ------------------------------------------------------------------------------------- standing on the server

    def _enter(self) -> None:
        """Make the server know name and queues: at first, after a subscription, a lost lease, a broken claim."""
        fresh = not self.id
        name = self.id or os.urandom(6).hex()
        self._announce(name, self._lease_ms if fresh else 0)
        with self._state:
            self.id = name
        self._spoilt_from = 0
        self._current, self._dry = True, False

    def _announce(self, name: str, lease_ms: int) -> None:
        many = len(self._subscribed) > scripts.MANY
        place = {number: position for position, number in enumerate(self._subscribed, 1)}
        scores = self._weights if self._order == "weighted" else place
        args: list[Any] = [self._prefix, name, self._spoilt, self._spoilt_from, lease_ms, int(many)]
        for number, queue in enumerate(self._names):
            args += (number, queue, scores[number] if many and number in place else "")
        self._run(self._claims, scripts.SUBSCRIBE, args)

    def _prepare(self) -> None:
        """Bring the server's view of this consumer up to date, before a claim."""
        while not self.id or not self._current:
            if not self.id:
                self._buffer.clear()  # reported as lost
            if self._ahead is not None:
                self._collect_ahead()
                continue
            try:
                self._enter()
            except LeaseLost:
                self.expired(self.id)
                continue
            wanted = {self._names[n] for n in self._subscribed}
            self._return([d for d in self._buffer if d.queue not in wanted])

    def _return(self, deliveries: Sequence[Delivery]) -> None:
        """Hand back what was read ahead: its queue is no longer subscribed, or the credit has been lowered."""
        if deliveries:
            self._end([([Settlement(d.receipt, RELEASE) for d in deliveries], ())])
            returned = {d.receipt for d in deliveries}
            self._buffer = deque(d for d in self._buffer if d.receipt not in returned)

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        for subscription in queues:
            if subscription.queue not in self._numbers:
                self._numbers[subscription.queue] = len(self._names)
                self._names.append(subscription.queue)
        self._subscribed = [self._numbers[s.queue] for s in queues]
        self._weights = {self._numbers[s.queue]: max(1, s.weight) for s in queues}
        self._order = order
        self._current = self._dry = False  # the next fetch tells the server

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._credit, self._max_bytes = n, max_bytes

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        look = wait <= 0 or self._woken
        while True:
            deliveries = self._take_now(limit, look)
            if deliveries:
                if ahead and len(deliveries) >= limit and not self._buffer:
                    self._claim_ahead(ahead)
                return Fetched(deliveries, self.losses() if self._losses else ())
            left = end - time.monotonic()
            if self._woken or self._losses or left <= 0:
                self._woken = False
                self._bell.hush()
                return Fetched((), self.losses())
            self._wait(left, limit)
            look = False

    def _take_now(self, limit: int, look: bool) -> list[Delivery]:
        """Return what is here or there now; without ``look`` the server is asked only where a wait would miss it."""
        self._blocked = False
        while True:
            if not self._current or not self.id:
                self._prepare()
            if self._ahead is not None:
                self._collect_ahead()
                continue
            if self._buffer:
                buffer = self._buffer
                excess = len(self._held) - self._credit
                if excess > 0:
                    self._return(list(buffer)[-excess:])
                    continue
                return [buffer.popleft() for _ in range(min(limit, len(buffer)))]
            if self._dry and not look and (self._due is None or self._due > time.monotonic()):
                return []
            room = self._room(limit)
            if room <= 0 or not self._subscribed:
                return []
            name, first = self.id, self._next
            if not name:
                continue
            args = self._claim_arguments(name, room)
            try:
                answer = self._claims.script(scripts.CLAIM, self._claim_keys, args)
            except ServerError as error:
                if error.code != "LOST":
                    self._spoil(first)
                    raise self._problem(error) from error
                self.expired(name)
                continue
            except ConnectionLost:
                self._spoil(first)
                raise
            deliveries = self._take(answer, name, room)
            if deliveries is not None:
                return deliveries

    def _spoil(self, first: int) -> None:
        """Note that a claim's answer is lost: what it took, from this receipt on, must be handed back."""
        self._spoilt += 1
        self._spoilt_from = first if not self._spoilt_from else min(first, self._spoilt_from)
        self._current = False

    def _room(self, limit: int, *, ahead: bool = False) -> int:
        """Return how many to claim; ahead of time what is being settled counts as settled."""
        with self._state:
            leaving = 0 if ahead else self._leaving
            if self._bytes >= self._max_bytes and (self._held or leaving):
                return 0
            return min(limit, self._credit - len(self._held) - leaving, _MOST_AT_ONCE)

    def _claim_arguments(self, name: str, room: int) -> list[Any]:
        """Return the arguments of a claim; its receipts are used up."""
        queues = self._subscribed
        busy = self._held or self._leaving
        args: list[Any] = [
            self._prefix, name, self._spoilt, room, max(0, self._max_bytes - self._bytes),
            int(not busy and self.alone), self._next,
        ]  # fmt: skip
        self._next += room
        count = len(queues)
        self._turn = self._turn + 1 if self._turn < count else 1
        if count > scripts.MANY:
            args += (self._order, self._turn, random.getrandbits(31))
            return args
        if count > 1 and self._order == "fair":
            queues = queues[self._turn - 1 :] + queues[: self._turn - 1]
        elif count > 1 and self._order == "weighted":
            # a draw by weight for each place: in the long run each queue is first in proportion to its weight
            queues = sorted(queues, key=lambda q: random.random() ** (1 / self._weights[q]), reverse=True)  # noqa: S311
        args.append("few")
        for number in queues:
            args += (number, self._names[number])
        return args

    def _take(self, answer: Sequence[Any], name: str, room: int) -> list[Delivery] | None:
        """Return the deliveries of a claim's answer; None where the lease was lost meanwhile."""
        due = answer[0]
        self._due = None if due < 0 else time.monotonic() + due / 1000
        self._blocked = bool(answer[2])
        self._dry = not self._blocked
        if answer[1]:
            self._complain(answer[1])
        if len(answer) == 3:
            return []
        deliveries: list[Delivery] = []
        held: dict[int, tuple[int, int]] = {}
        size = 0
        for i in range(3, len(answer), 3):
            number = answer[i]
            queue = self._names[number]
            for receipt, raw in enumerate(answer[i + 2], answer[i + 1]):
                payload = raw[2:]
                length = len(payload)
                size += length
                held[receipt] = (number, length)
                deliveries.append(Delivery(payload, receipt, queue, raw[0] + 1))
        self._dry = self._dry and len(deliveries) < room
        with self._state:
            if self.id != name:
                return None  # given back by whoever found the lease ended
            self._held.update(held)
            self._bytes += size
        return deliveries

    def _complain(self, key: bytes) -> None:
        if key not in self._complained:
            self._complained.add(key)
            logger.warning(
                "the key %r on %s is of another type than the queue's, which is passed over; delete or rename it",
                key.decode(errors="replace"), self._transport.target.name,
            )  # fmt: skip

    def _claim_ahead(self, limit: int) -> None:
        """Send the claim for the next batch; its answer is read by the next fetch."""
        room = self._room(limit, ahead=True)
        name, first = self.id, self._next
        if room <= 0 or not name or not self._current:
            return
        args = self._claim_arguments(name, room)
        try:
            self._claims.send(b"EVALSHA", scripts.CLAIM.sha, 0, *args)
        except TransportError:
            self._spoil(first)  # the next fetch reports what is wrong
            return
        self._ahead = (name, first, room)

    def _collect_ahead(self) -> None:
        """Read the answer of the claim that was sent ahead into the buffer."""
        assert self._ahead is not None
        name, first, room = self._ahead
        self._ahead, self._dry = None, False
        try:
            answer = self._claims.receive()
        except ServerError as error:
            if error.code == "LOST":
                self.expired(name)
            elif error.code != "NOSCRIPT":  # with which nothing was done
                self._spoil(first)
                raise self._problem(error) from error
            return
        except ConnectionLost:
            self._spoil(first)
            raise
        self._buffer.extend(self._take(answer, name, room) or ())

    # -------------------------------------------------------------------------------------------------- waiting

    def _wait(self, left: float, limit: int) -> None:
        """Wait at most ``left`` seconds for a bell, a wake, or something that may change what a claim brings; claim."""
        poll = self._transport.options.poll_interval
        name, first, room = self.id, self._next, self._room(limit)
        if not name:
            return
        if self._blocked or not self._subscribed or room <= 0:
            # nothing may be taken: listening for bells would take them from those who can
            self._starved = True
            if not self._subscribed or self._room(limit) <= 0 or self._blocked:
                ready((self._bell,), min(left, poll))
            self._starved = False
            self._bell.hush()
            return
        pause = min(left, poll)
        exact = pause < _SHORT
        if self._due is not None and (due := self._due - time.monotonic()) < pause:
            pause, exact = max(0.0, due), True
        p = self._prefix
        bells = [f"{p}b:{self._names[n]}" for n in self._subscribed]
        # Servers end a wait up to a tenth of a second late: where that matters, it is ended from here.
        served = pause + 1.0 if exact else pause
        foreign = False
        claim = (b"EVALSHA", scripts.CLAIM.sha, 0, *self._claim_arguments(name, room))
        try:
            self._claims.begin(((b"BLPOP", *bells, f"{p}w:{name}", f"{max(0.001, served):.3f}"), claim))
            patience = pause if exact else pause + self._transport.options.timeout
            if not self._claims.readable(patience, self._bell):
                if not exact and not ready((self._bell,), 0):
                    raise ConnectionLost(f"{self._transport.target.name} does not answer any more")
                self._bell.hush()
                self._end_waiting(name)
            try:
                self._claims.receive()
            except ServerError as error:
                foreign = error.code == "WRONGTYPE"
                if not foreign and error.code != "UNBLOCKED":
                    raise TransportError(f"{self._transport.target.name} refused BLPOP: {error}") from error
        except TransportError:
            self._claims.close()  # the claim may be carried out all the same, later
            self._spoil(first)
            raise
        self._ahead = (name, first, room)
        self._collect_ahead()
        if foreign:
            self._complain(b"b:")
            if not self._buffer:
                ready((self._bell,), pause)

    def _end_waiting(self, name: str) -> None:
        """Make the server answer the BLPOP that is under way. Raises: ConnectionLost, where that is not possible."""
        key = f"{self._prefix}w:{name}"
        if self._settling.acquire(timeout=_PATIENCE):
            try:
                answers = self._settles.pipeline([(b"RPUSH", key, b"1"), (b"PEXPIRE", key, _WAKE_TTL_MS)])
                if not isinstance(answers[0], Exception):
                    return
            except TransportError:
                pass
            finally:
                self._settling.release()
        raise ConnectionLost(f"the wait on {self._transport.target.name} could not be ended in an orderly way")

    def fuse(self, store: ResultStore) -> Committer | None:
        if isinstance(store, RedisResults) and store.results_place == self._transport.place:
            return RedisCommitter(self, store)
        return None

    # -------------------------------------------------------------------------------------------------- anywhere

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def close(self, timeout: float | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        if self._transport.owned:
            # the answer of a claim sent ahead need not be read: what it took goes back with the rest
            self._claims.close()
            if timeout is not None:
                self._settles.hurry(timeout)
            if self.id:
                self._leave()
            self._settles.close()
        self._close_bell()
        self._held.clear()
        self._buffer.clear()

    def _leave(self) -> None:
        for _ in range(2):  # the connection may have broken while it was idle
            try:
                self._run(self._settles, scripts.CLOSE, (self.id, self._prefix))
                return
            except ConnectionLost:
                continue
            except (TransportError, AuthenticationFailed, LeaseLost):
                return  # its lease gives back what it held

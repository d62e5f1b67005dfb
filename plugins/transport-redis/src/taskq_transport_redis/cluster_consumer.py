"""A consumer on a cluster: one consumer per queue, all on one connection to each node for each of the two roles.

A queue that rang is claimed from, in turn, until a claim finds it empty; a silent one costs nothing. Bells are heard on
one more connection to each node. Every ``poll_interval`` one write to each node looks whether a bell was missed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportClosed, TransportError
from taskq.message import Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq_lib_client.bell import Bell, ready
from taskq_lib_redis.cluster import Address, Lines, Nodes, slot_of
from taskq_lib_redis.connection import Redirected, RedisLink, Script, ServerError
from taskq_transport_redis import scripts
from taskq_transport_redis.consumer import RedisConsumer
from taskq_transport_redis.settling import NOT_HELD, Place, Run

if TYPE_CHECKING:
    from taskq.spi import SubscribeOrder
    from taskq_transport_redis.cluster import ClusterTransport

logger = logging.getLogger("taskq.transport.redis")
_UNLIMITED = 1 << 50
_MOST_AT_ONCE = 1000
_QUEUES_AT_ONCE = 16
"""Most queues that one fetch claims from once it has something."""
_PATIENCE = 1.0
"""Seconds to repeat what a node cannot do just now while others wait."""
_BARRED = 0.2
"""Seconds to leave a node alone that failed, at least; longer where finding out took long."""
_BARRED_FOR = 4.0
"""How many times as long as that took."""


class _Member:
    """The lines as a member sees them: with the scripts of a cluster, and left open when it closes."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def script(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        return self._lines.script(scripts.on_cluster(script), keys, args)

    def scripts(self, runs: Iterable[Run]) -> list[Any]:
        return self._lines.scripts([(scripts.on_cluster(script), keys, args) for script, keys, args in runs])

    def close(self) -> None:
        return

    def hurry(self, seconds: float) -> None:
        self._lines.hurry(seconds)


class Bells:
    """Hears the bells of queues, on a connection to each node that has some; for the intake thread."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._links: dict[Address, RedisLink] = {}
        self._asked: dict[Address, deque[str]] = {}
        self._where: dict[str, Address] = {}
        """Channel to the node where we listen to it."""
        self._silent: dict[Address, float] = {}
        """Nodes that failed, and when to try again (monotonic)."""

    def listen(self, channels: Iterable[str], timeout: float) -> list[str]:
        """Listen to these channels; return those that are heard from now on and were not before."""
        missing = [c for c in channels if c not in self._where]
        if not missing:
            return []
        now = time.monotonic()
        asked: dict[Address, list[str]] = {}
        for channel in missing:
            try:
                asked.setdefault(self._nodes.owner(slot_of(channel)), []).append(channel)
            except TransportError:
                return []  # no node has this slot; later
        begun: list[Address] = []
        for address, names in asked.items():
            if self._silent.get(address, 0.0) > now:
                continue
            link = self._links.get(address)
            if link is None:
                link = self._links[address] = RedisLink(self._nodes.node(address))
            tried = time.monotonic()
            try:
                link.begin([(b"SSUBSCRIBE", name) for name in names])
            except TransportError:
                self._broken(address, time.monotonic() - tried)
                continue
            link.streaming = True
            self._asked.setdefault(address, deque()).extend(names)
            begun.append(address)
        fresh: list[str] = []
        for address in begun:
            end = time.monotonic() + timeout
            while self._asked.get(address):
                if time.monotonic() > end:
                    self._broken(address)
                    break
                fresh += self._read(address, max(0.0, end - time.monotonic()))
        return fresh

    def heard(self) -> list[str]:
        """Return the channels of the bells that rang; does not wait."""
        rung: list[str] = []
        for address in list(self._links):
            rung += self._read(address, 0.0)
        return rung

    def sockets(self) -> list[Any]:
        """Return what to wait on."""
        return [s for link in self._links.values() if (s := link.socket) is not None]

    def close(self) -> None:
        """Hear nothing any more."""
        for link in self._links.values():
            link.close()
        self._links.clear()
        self._where.clear()
        self._asked.clear()

    def _read(self, address: Address, wait: float) -> list[str]:
        """Read what a node sends; return channels that rang, or that are heard only now."""
        link = self._links[address]
        found: list[str] = []
        asked = self._asked.get(address)
        try:
            while link.connected and link.readable(0.0 if found else wait):
                try:
                    kind, channel, _ = link.receive()
                except ServerError as error:
                    if asked:
                        asked.popleft()
                    if isinstance(error, Redirected):
                        self._nodes.moved(error.slot, error.address)
                    continue
                name = channel.decode()
                if kind == b"ssubscribe":
                    if asked:
                        asked.popleft()
                    self._where[name] = address
                    found.append(name)
                elif kind == b"smessage":
                    found.append(name)
                elif kind == b"sunsubscribe":  # the slot has moved
                    self._where.pop(name, None)
                    self._nodes.refresh(self._nodes.version)
                if not asked:
                    wait = 0.0
        except TransportError:
            self._broken(address)
        return found

    def _broken(self, address: Address, took: float = 0.0) -> None:
        """Forget what was heard there; the next ``listen`` asks again, of whoever has the slots then."""
        link = self._links.pop(address, None)
        if link is not None:
            link.close()
        self._asked.pop(address, None)
        self._silent[address] = time.monotonic() + max(_BARRED, _BARRED_FOR * took)
        self._where = {c: a for c, a in self._where.items() if a != address}
        try:
            self._nodes.refresh(self._nodes.version)
        except TransportError:
            return  # whoever claims says what is wrong


class ClusterConsumer:
    """Takes messages from queues on all nodes, and holds them under one lease per queue."""

    def __init__(self, transport: ClusterTransport) -> None:
        self._transport = transport
        self._claims = Lines(transport.nodes, 0.0)
        self._settles = Lines(transport.nodes, _PATIENCE)
        self._settling = threading.Lock()
        self._bells = Bells(transport.nodes)
        self._members: list[RedisConsumer] = []
        self._numbers: dict[str, int] = {}
        """Queue to its member's number."""
        self._closed = False
        self._starved = False
        # the rest is the intake thread's
        self._queues: dict[str, int] = {}
        """Subscribed queues and their positions."""
        self._bell_of: dict[str, str] = {}
        """Channel to subscribed queue."""
        self._weights: dict[str, int] = {}
        self._order: SubscribeOrder = "fair"
        self._hot: dict[str, None] = {}
        """Queues that may hold something, in turn."""
        self._due: dict[str, float] = {}
        """When the next delayed message of a queue is due (monotonic)."""
        self._slots: dict[str, int] = {}
        self._barred: dict[Address, tuple[float, TransportError]] = {}
        """Nodes that failed, until when (monotonic) they are left alone, and why."""
        self._credit = self._max_bytes = _UNLIMITED
        self._next_look = 0.0
        self._blocked = False
        self._woken = False
        self._bell = Bell()

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        self._queues = {s.queue: place for place, s in enumerate(queues)}
        self._bell_of = {f"{self._transport.space(q)}b:{q}": q for q in self._queues}
        self._slots = {q: slot_of(self._transport.space(q)) for q in self._queues}
        self._weights = {s.queue: max(1, s.weight) for s in queues}
        self._order = order
        self._hot = dict.fromkeys(self._queues)
        self._due = {q: at for q, at in self._due.items() if q in self._queues}
        self._transport.know(list(self._queues))

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._credit, self._max_bytes = n, max_bytes

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        while True:
            lost: list[Lost] = []
            deliveries = self._take(limit, lost)
            if deliveries or lost:
                return Fetched(deliveries, lost)
            left = end - time.monotonic()
            if self._woken or left <= 0:
                self._woken = False
                self._bell.hush()
                return Fetched((), ())
            self._wait(left)

    def _take(self, limit: int, lost: list[Lost]) -> list[Delivery]:
        self._blocked = False
        found: list[Delivery] = []
        lost += self._losses()
        if not self._queues or self._room(limit) <= 0:
            return found
        for channel in (*self._bells.listen(self._bell_of, _PATIENCE), *self._bells.heard()):
            if channel in self._bell_of:
                self._hot[self._bell_of[channel]] = None
        now = time.monotonic()
        if now >= self._next_look:
            self._look()
            self._next_look = now + self._transport.options.poll_interval
        for queue, at in list(self._due.items()):
            if at <= now:
                del self._due[queue]
                self._hot[queue] = None
        looked = 0
        held, size = self._holding()  # what is settled meanwhile makes room for the next fetch
        for queue in self._in_order():
            want = min(limit - len(found), self._credit - held, _MOST_AT_ONCE)
            if want <= 0 or (size >= self._max_bytes and held) or self._blocked:
                break
            if found and looked >= _QUEUES_AT_ONCE:
                break
            if self._is_barred(queue, now):
                continue
            looked += 1
            taken = self._claim(queue, want, held, size, lost)
            held += len(taken)
            size += sum(len(d.payload) for d in taken)
            found += taken
        if not found and self._barred and all(self._is_barred(queue, now) for queue in self._queues):
            raise next(iter(self._barred.values()))[1]  # no queue can be reached
        return found

    def _is_barred(self, queue: str, now: float) -> bool:
        owner = self._transport.nodes.known(self._slots[queue]) if self._barred else None
        return owner in self._barred and self._barred[owner][0] > now

    def _bar(self, queue: str, began: float, error: TransportError) -> None:
        """Leave the queue's node alone for a while; say so once."""
        owner = self._transport.nodes.known(self._slots[queue])
        if owner is None:
            raise error
        now = time.monotonic()
        if owner not in self._barred:
            logger.warning("the node of queue %r cannot be reached now, others go on: %s", queue, error)
        self._barred[owner] = now + max(_BARRED, _BARRED_FOR * (now - began)), error

    def _claim(self, queue: str, want: int, all_held: int, all_bytes: int, lost: list[Lost]) -> list[Delivery]:
        """Take messages of one queue; so much is held of all."""
        now = time.monotonic()
        try:
            number = self._member(queue)
            member = self._members[number]
            held, size = member.holding
            member.alone = all_held <= held
            member.credit(held + want, size + max(0, self._max_bytes - all_bytes))
            fetched = member.fetch(want, 0.0)
        except TransportError as error:
            if not error.retryable:
                raise
            self._bar(queue, now, error)
            return []
        if self._barred:
            self._barred.pop(self._transport.nodes.owner(self._slots[queue]), None)
        lost += self._lost(number, fetched.lost)
        due = member.due
        if due is not None:
            self._due[queue] = due
        else:
            self._due.pop(queue, None)
        self._blocked = member.blocked
        if len(fetched.deliveries) < want and not member.blocked:
            self._hot.pop(queue, None)
        elif self._order == "fair":
            self._hot.pop(queue, None)
            self._hot[queue] = None  # the others first
        for delivery in fetched.deliveries:
            delivery.receipt = (number, delivery.receipt)
        return list(fetched.deliveries)

    def _member(self, queue: str) -> int:
        number = self._numbers.get(queue)
        if number is None:
            space = self._transport.space(queue)
            claims, settles = _Member(self._claims), _Member(self._settles)
            place = Place(space, claims, settles, (f"{space}-",), self._settling, self._bell)
            member = RedisConsumer(self._transport, place)
            member.subscribe([Subscription(queue)])
            number = self._numbers[queue] = len(self._members)
            self._members.append(member)
        return number

    def _in_order(self) -> list[str]:
        hot = [queue for queue in self._hot if queue in self._queues]
        if self._order == "strict":
            hot.sort(key=self._queues.__getitem__)
        elif self._order == "weighted":
            hot.sort(key=lambda q: random.random() ** (1 / self._weights[q]), reverse=True)  # noqa: S311
        return hot

    def _look(self) -> None:
        """Look, in one write to each node, which silent queues hold something all the same."""
        now = time.monotonic()
        silent = [q for q in self._queues if q not in self._hot and not self._is_barred(q, now)]
        if not silent:
            return
        commands = []
        for queue in silent:
            space = self._transport.space(queue)
            keys = [f"{space}q:{queue}:{priority}" for priority in range(10)]
            if queue not in self._due:
                keys.append(f"{space}d:{queue}")
            commands.append((b"EXISTS", *keys))
        for queue, answer in zip(silent, self._claims.pipeline(commands), strict=True):
            if answer:  # an error, too: the claim says which
                self._hot[queue] = None

    def _wait(self, left: float) -> None:
        """Wait for a bell, a wake, or a time at which something may be there."""
        if not self._queues or self._room(1) <= 0 or self._blocked:
            self._starved = True
            if not self._queues or self._room(1) <= 0 or self._blocked:
                ready((self._bell,), min(left, self._transport.options.poll_interval))
            self._starved = False
            self._bell.hush()
            return
        now = time.monotonic()
        times = [now + left, self._next_look, *self._due.values()]
        if self._barred:  # who had its queues may have been replaced
            times.append(now + _BARRED)
        ready((self._bell, *self._bells.sockets()), max(0.0, min(times) - now))
        self._bell.hush()

    def _holding(self) -> tuple[int, int]:
        count = size = 0
        for member in self._members:
            n, bytes_ = member.holding
            count += n
            size += bytes_
        return count, size

    def _room(self, limit: int) -> int:
        count, size = self._holding()
        if size >= self._max_bytes and count:
            return 0
        return min(limit, self._credit - count, _MOST_AT_ONCE)

    # -------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        parts: dict[int, list[Settlement]] = {}
        lost: list[Lost] = []
        for s in settlements:
            number, receipt = s.receipt
            if number >= len(self._members):
                lost.append(Lost(s.receipt, NOT_HELD))
                continue
            parts.setdefault(number, []).append(Settlement(receipt, s.kind, s.delay, s.counted))
        problem: TransportError | None = None
        for number, part in parts.items():
            try:
                lost += self._lost(number, self._members[number].settle(part))
            except TransportError as error:
                problem = error  # the others are settled all the same
        if self._starved:
            self._bell.ring()
        if problem is not None:
            raise problem
        return lost

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        return self._losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        beating = [(member, member.id, beat) for member in list(self._members) if (beat := member.beat()) is not None]
        problem: Exception | None = None
        if beating:
            with self._settling:
                answers = self._settles.scripts([beat for _, _, beat in beating])
            for (member, name, _), answer in zip(beating, answers, strict=True):
                if isinstance(answer, Exception):
                    problem = answer
                elif not answer:
                    member.expired(name)
        if isinstance(problem, ServerError):
            raise TransportError(f"{self._transport.target.name} refused to renew a lease: {problem}") from problem
        if problem is not None:
            raise problem
        return self.flush(0.0)

    def _losses(self) -> list[Lost]:
        return [
            loss for n, member in enumerate(self._members) if member.lossy for loss in self._lost(n, member.losses())
        ]

    def _lost(self, number: int, losses: Sequence[Lost]) -> list[Lost]:
        return [Lost((number, loss.receipt), loss.reason) for loss in losses]

    # -------------------------------------------------------------------------------------------------- anywhere

    def wake(self) -> None:
        self._woken = True
        self._bell.ring()

    def close(self, timeout: float | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        for member in self._members:
            member.close(timeout)
        if self._transport.owned:
            self._claims.close()
            self._settles.close()
            self._bells.close()
        self._bell.close()

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("this consumer is closed; make a new one with Transport.consumer()")

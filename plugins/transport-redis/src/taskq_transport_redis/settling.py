"""Settling: the half of a consumer that ends deliveries and keeps the lease, on a connection of its own."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from taskq.errors import TransportClosed, TransportError
from taskq.message import RELEASE, Commit, Lost, Receipt, Settlement
from taskq_lib_client.bell import Bell
from taskq_lib_redis.connection import Script, ServerError
from taskq_lib_redis.records import RedisResults, push_arguments, record_arguments
from taskq_transport_redis import scripts
from taskq_transport_redis.frames import check_size, delayed_member, frame

if TYPE_CHECKING:
    from taskq_transport_redis.transport import RedisTransport

_COMMIT_CHUNK = 256
_SETTLE_CHUNK = 4000
_SETTLE_BYTES = 8 << 20
_GONE = "the lease ended and the message was given back"
NOT_HELD = "not held: it was settled before, or the lease ended"
Run = tuple[Script, Sequence[Any], Sequence[Any]]
Part = tuple[Sequence[Settlement], Sequence[Commit]]
_pack = msgspec.msgpack.Encoder().encode


class LeaseLost(Exception):
    """The server does not know this consumer any more."""


class Link(Protocol):
    """What a consumer needs of a connection; on a cluster it follows the slot."""

    def script(self, script: Script, keys: Sequence[Any], args: Sequence[Any]) -> Any: ...
    def scripts(self, runs: Iterable[Run]) -> list[Any]: ...
    def close(self) -> None: ...
    def hurry(self, seconds: float) -> None: ...


@dataclass
class Place:
    """Where a consumer stands on the server: the beginning of its keys, and its two connections."""

    prefix: str
    claims: Any
    settles: Any
    guard: tuple[str, ...] = ()
    """A key that never exists: named beside another, it makes a cluster refuse a script while the slot is moved."""
    settling: threading.Lock = field(default_factory=threading.Lock)
    """Held for a round trip of the settling connection."""
    bell: Bell | None = None
    """What wakes the intake thread, where several consumers share it."""


class _Ending(NamedTuple):
    """Deliveries that one script ends."""

    name: str
    """Of the consumer that held them."""
    held: dict[int, tuple[int, int]]
    settlements: Sequence[Settlement]
    commits: Sequence[Commit]


class Holder:
    """Holds messages under one lease and ends them."""

    def __init__(self, transport: RedisTransport, place: Place) -> None:
        self._transport = transport
        self._prefix = place.prefix
        self._keys = (f"{place.prefix}c", *place.guard)
        self._settles = place.settles
        self._settling = place.settling
        self._bell = place.bell or Bell()
        """Ends the intake thread's wait."""
        self._state = threading.Lock()
        """Guards what is held, the bytes, the losses and the name; never held over a call of the server."""
        self.id = ""
        self._held: dict[int, tuple[int, int]] = {}
        """Receipt to queue number and size."""
        self._leaving = 0
        """How many are being settled: still held by the server, no longer here."""
        self._bytes = 0
        self._losses: list[Lost] = []
        self._names: list[str] = []
        self._starved = False
        """Whether the intake thread waits for room."""
        self._closed = False

    @property
    def holding(self) -> tuple[int, int]:
        """How many messages are held, those being settled included, and their bytes."""
        return len(self._held) + self._leaving, self._bytes

    @property
    def lossy(self) -> bool:
        """Whether there are losses to report."""
        return bool(self._losses)

    @property
    def _lease_ms(self) -> int:
        return max(1, round(self._transport.lease_s * 1000))

    def _run(self, link: Link, script: Script, args: Sequence[Any]) -> Any:
        try:
            return link.script(script, self._keys, args)
        except ServerError as error:
            raise self._problem(error) from error

    def _problem(self, error: ServerError) -> Exception:
        if error.code == "LOST":
            return LeaseLost()
        problem = TransportError(f"{self._transport.target.name} refused a script: {error}")
        problem.__cause__ = error
        return problem

    def expired(self, name: str) -> None:
        """Note that the lease of this name is lost, and with it all that is held."""
        with self._state:
            if self.id != name:
                return
            self.id = ""
            self._losses += [Lost(receipt, _GONE) for receipt in self._held]
            self._held.clear()
            self._bytes = 0
        self._bell.ring()

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        chunks = range(0, len(settlements), _SETTLE_CHUNK)
        return self._end([(settlements[start : start + _SETTLE_CHUNK], ()) for start in chunks])

    def commit(self, commits: Sequence[Commit]) -> list[Lost]:
        """Settle with records and follow-ups."""
        self._check()
        for c in commits:
            for outbound in c.follow_ups:
                check_size(outbound)
        return self._end([([c.settlement for c in part], part) for part in _portions(commits)])

    def _end(self, parts: Sequence[Part]) -> list[Lost]:
        """End deliveries; the server is at work on one part while the next is put together. Raises: TransportError."""
        lost: list[Lost] = []
        endings = [ending for part in parts if (ending := self._ending(*part, lost)).held]
        runs = ((scripts.SETTLE, self._keys, (e.name, self._prefix, *self._settle_arguments(e))) for e in endings)
        with self._settling:
            try:
                answers = self._settles.scripts(runs) if endings else []
            except BaseException as error:
                self._settles.close()  # answers may be under way that nobody will read
                answers = [error]
        answers += answers[-1:] * (len(endings) - len(answers))  # an error, after which nothing was sent
        problem: BaseException | None = None
        for ending, answer in zip(endings, answers, strict=True):
            answer = self._problem(answer) if isinstance(answer, ServerError) else answer
            if isinstance(answer, LeaseLost):
                self._left(ending)
                self.expired(ending.name)
                lost += [Lost(receipt, _GONE) for receipt in ending.held]
            elif isinstance(answer, BaseException):
                self._kept(ending)
                problem = problem or answer
            else:
                self._left(ending)
        if problem is not None:
            raise problem
        return lost + self.losses() if self._losses else lost

    def _ending(self, settlements: Sequence[Settlement], commits: Sequence[Commit], lost: list[Lost]) -> _Ending:
        """Take deliveries out of what is held; note those that were not."""
        held: dict[int, tuple[int, int]] = {}
        known = len(lost)
        with self._state:
            name = self.id
            pop = self._held.pop
            for s in settlements:
                entry = pop(s.receipt, None)
                if entry is None:
                    lost.append(Lost(s.receipt, NOT_HELD))
                else:
                    held[s.receipt] = entry
            self._leaving += len(held)
        if len(lost) > known:
            settlements, commits = _without(settlements, commits, held)
        return _Ending(name, held, settlements, commits)

    def _kept(self, ending: _Ending) -> None:
        """Note that nothing is known of it, so that all of it is held still, unless the lease was lost meanwhile."""
        with self._state:
            self._leaving -= len(ending.held)
            if self.id == ending.name:
                self._held.update(ending.held)
            else:
                self._losses += [Lost(receipt, _GONE) for receipt in ending.held]

    def _left(self, ending: _Ending) -> None:
        with self._state:
            self._leaving -= len(ending.held)
            if self.id == ending.name:
                self._bytes -= sum(size for _, size in ending.held.values())
        if self._starved:
            self._bell.ring()

    def _settle_arguments(self, ending: _Ending) -> list[Any]:
        settlements, commits, held = ending.settlements, ending.commits, ending.held
        acks: dict[int, list[int]] = {}
        back: list[Any] = []
        for s in settlements:
            receipt = s.receipt
            queue = held[receipt][0]
            if s.kind != RELEASE:
                if queue in acks:
                    acks[queue].append(receipt)
                else:
                    acks[queue] = [receipt]
            else:
                delay = max(0, round(s.delay * 1000))
                uid = base64.b64encode(os.urandom(6)).decode() if delay else ""
                back += (queue, self._names[queue], receipt, int(s.counted), delay, uid)
        flat = [value for pair in acks.items() for value in pair]
        if not commits:
            return [_pack(((), (), (), (), flat, back))]
        follow: list[Any] = []
        frames: list[bytes] = []
        for c in commits:
            for outbound in c.follow_ups:
                delay = max(0, round(outbound.delay * 1000))
                receipt = c.settlement.receipt
                follow += (outbound.queue, outbound.priority, delay, held[receipt][0], receipt)
                frames.append(delayed_member(outbound) if delay else frame(outbound))
        records = [c.record for c in commits if c.record is not None]
        keys, values, ttls = record_arguments(records, self._prefix)
        pushes, heads = push_arguments(records, values)
        return [_pack((keys, ttls, pushes, follow, flat, back)), *values, *heads, *frames]

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        return self.losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        name = self.id
        if name:
            with self._settling:
                alive = self._run(self._settles, scripts.BEAT, (name, self._lease_ms))
            if not alive:
                self.expired(name)
        return self.losses()

    def beat(self) -> tuple[Script, Sequence[Any], Sequence[Any]] | None:
        """Return the script that renews the lease; None where there is none."""
        name = self.id
        return (scripts.BEAT, self._keys[:1], (name, self._lease_ms)) if name else None

    def losses(self) -> list[Lost]:
        """Return the losses that were not reported yet."""
        with self._state:
            losses, self._losses = self._losses, []
        return losses

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("this consumer is closed; make a new one with Transport.consumer()")


def _without(
    settlements: Sequence[Settlement], commits: Sequence[Commit], ended: dict[int, tuple[int, int]]
) -> tuple[list[Settlement], list[Commit]]:
    """Return only the first settlement, with its commit, of each receipt that was held."""
    left = set(ended)
    kept: list[int] = []
    for i, s in enumerate(settlements):
        if s.receipt in left:
            left.discard(s.receipt)
            kept.append(i)
    return [settlements[i] for i in kept], [commits[i] for i in kept] if commits else []


def _portions(commits: Sequence[Commit]) -> list[Sequence[Commit]]:
    """Split a batch so that no command to the server is out of all proportion."""
    count = len(commits)
    sizes = [0 if c.record is None else len(c.record.payload) for c in commits]
    for i, c in enumerate(commits):
        if c.follow_ups:
            sizes[i] += sum(len(o.payload) for o in c.follow_ups)
    if count <= 1 or (count <= _COMMIT_CHUNK and sum(sizes) <= _SETTLE_BYTES):
        return [commits] if count else []
    half = count // 2
    return _portions(commits[:half]) + _portions(commits[half:])


class RedisCommitter:
    """Stores outcomes, sends follow-ups and settles in one script."""

    def __init__(self, consumer: Holder, store: RedisResults) -> None:
        self._consumer = consumer
        self._store = store

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        records = [c.record for c in commits if c.record is not None]
        if records:
            self._store.check_records(records)
        return self._consumer.commit(commits)

"""A consumer of the ZeroMQ transport.

It has two connections: one that deliveries come on and that the intake thread alone uses, one to settle and to renew
the lease. The hub gives what was asked for and no more, so that nothing waits here that others could start.

Settlements are numbered and not waited for. What the hub has not confirmed is sent again, with its number, when the
connection or the hub has to be found again; ``flush`` waits for all of it.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from taskq.errors import AuthenticationFailed, ConnectionLost, StorageFull, TransportClosed, TransportError
from taskq.message import ACK, RELEASE, Commit, Delivery, Fetched, Lost, Receipt, Settlement, Subscription
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.link import Broken, Link
from taskq_lib_zeromq.protocol import Adopted, Answer, Confirm, Deliver, Failed, Gone, Message, Reset, Welcome, encode

if TYPE_CHECKING:
    from taskq.spi import Committer, ResultStore, SubscribeOrder
    from taskq_transport_zeromq.transport import ZeroMQTransport

_UNLIMITED = 1 << 50
_MOST_AT_ONCE = 4000
_SETTLE_BYTES = 8 << 20
_UNCONFIRMED = 32
"""Batches of settlements that may be under way."""
_ASK_EVERY = 8
"""How many batches may be open before the hub is asked to confirm one; mostly a delivery has told by then."""
_REFUSED_PAUSE = 0.1
_SETTLE, _DEMAND = 7, 6
_NOT_HELD = "not held: it was settled before, or the lease ended"
_GONE = "the lease ended, or the hub was started anew, and the message was given back"
_receipts = msgspec.msgpack.Decoder(list[int]).decode


class _Batch(Struct):
    """Settlements that the hub has not confirmed."""

    acks: list[int]
    back: list[Settlement]
    commits: list[Commit]
    entries: dict[int, Delivery]
    data: bytes = b""
    explicit: bool = False
    """The hub may refuse its records, so only an answer of its own confirms it."""
    refused: str = ""


class ZeroMQConsumer:
    """Holds messages under one lease, which ``extend`` keeps."""

    def __init__(self, transport: ZeroMQTransport) -> None:
        self._transport = transport
        self.id = os.urandom(8).hex()
        self._pipe, self._bell = socket.socketpair()
        self._pipe.setblocking(False)
        self._bell.setblocking(False)
        self._intake = Link(transport.target, self._pipe.fileno(), sliced=True)
        self._settling = Link(transport.target)
        self._settle_lock = threading.RLock()
        """Held by who uses the settling connection."""
        self._state = threading.Lock()
        """Guards what is held, unconfirmed and lost; never held over a call of the hub."""
        self._held: dict[int, Delivery] = {}
        """What ``fetch`` has returned and nobody has settled."""
        self._marks: dict[int, int] = {}
        """Receipt to priority, where that is not 5, of what is held."""
        self._unconfirmed: dict[int, _Batch] = {}
        self._losses: list[Lost] = []
        self._settle_n = 0
        self._epoch = 0
        self._closed = False
        self._settling_attached = False
        self._unflushed = False
        """Whether something was settled since ``flush``."""
        self._queues: list[tuple[str, int]] = []
        self._order: SubscribeOrder = "fair"
        self._credit = self._max_bytes = _UNLIMITED
        # the rest is the intake thread's
        self._intake_attached = False
        self._buffer: deque[Delivery] = deque()
        self._asked = 0
        """Number of the demand that is to be answered still, 0 for none."""
        self._parked = False
        self._woken = False
        try:
            self._attach_intake()
        except BaseException:
            self._pipe.close()
            self._bell.close()
            self._intake.close()
            raise

    # --------------------------------------------------------------------------------------------- being known

    def _lost_error(self, why: object) -> ConnectionLost:
        return ConnectionLost(f"the connection to the hub {self._transport.target.name} broke: {why}")

    def _attach_intake(self) -> None:
        """Make the hub know this consumer on the intake connection. Raises: TransportError."""
        for again in (False, True):
            try:
                if not self._intake.connected:
                    self._intake_attached = False
                    self._intake.connect()
                self._asked, self._parked = 0, False
                self._attach(self._intake, intake=True)
                self._intake_attached = True
                return
            except Broken as error:
                self._intake.close()
                if again:
                    raise self._lost_error(error) from error

    def _attach(self, link: Link, *, intake: bool) -> None:
        """Announce what is held, and learn what of it is lost."""
        welcome = link.welcome
        assert welcome is not None
        anew = welcome.epoch != self._epoch
        with self._state:
            if intake and not anew:
                self._buffer.clear()  # unannounced, so it goes back
            mine = dict(self._held)
            if intake:
                mine.update((d.receipt, d) for d in self._buffer)
            holds = [*mine]
            for batch in self._unconfirmed.values():
                holds += batch.entries
                mine.update(batch.entries)
        n = link.number()
        lease_ms = max(1, round(self._transport.lease_s * 1000))
        lost = self._ask(link, n, protocol.Attach(
            n, self.id, intake, lease_ms, self._order, self._queues, self._credit, self._max_bytes, holds,
        ))  # fmt: skip
        if lost and anew and not link.welcome.durable:  # type: ignore[union-attr]
            n = link.number()
            held = [Adopted(r, self._remembered(mine[r])) for r in lost]
            lost = self._ask(link, n, protocol.Adopt(n, self.id, held))
        self._forget(lost)
        if intake:
            self._epoch = welcome.epoch

    def _remembered(self, delivery: Delivery) -> Message:
        priority = self._marks.get(delivery.receipt, 5)
        return Message("", delivery.queue, delivery.payload, priority, 0.0, delivery.group, delivery.deliveries - 1)

    def _forget(self, receipts: Sequence[int]) -> None:
        """Note losses."""
        if not receipts:
            return
        with self._state:
            for receipt in receipts:
                if self._held.pop(receipt, None) is not None:
                    self._losses.append(Lost(receipt, _GONE))
            gone = set(receipts)
            if any(d.receipt in gone for d in self._buffer):
                self._buffer = deque(d for d in self._buffer if d.receipt not in gone)

    def _ask(self, link: Link, n: int, request: Any) -> list[int]:
        """Send a request and wait for its answer; deliveries that come before it are void."""
        end = time.monotonic() + self._transport.options.timeout
        data = encode(request)
        link.send(data)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Broken("the hub does not answer")
            if not link.poll(left, wakes=False):
                continue
            frame = link.receive()
            if isinstance(frame, Answer) and frame.n == n:
                return _receipts(frame.value)
            if isinstance(frame, Failed) and frame.n == n:
                raise link.failure(frame)
            if isinstance(frame, Reset):
                link.send(encode(protocol.Hello(protocol.VERSION, link.session)))
            elif isinstance(frame, Welcome):
                link.welcome = frame
                link.send(data)
            elif isinstance(frame, Confirm):
                self._confirmed(frame)

    # --------------------------------------------------------------------------------------------------- intake

    def subscribe(self, queues: Sequence[Subscription], *, order: SubscribeOrder = "fair") -> None:
        self._check()
        self._queues = [(s.queue, s.weight) for s in queues]
        self._order = order
        self._intake_attached = False  # the next fetch tells the hub

    def credit(self, n: int, max_bytes: int) -> None:
        self._check()
        self._credit, self._max_bytes = n, max_bytes
        if self._intake_attached:
            try:
                self._intake.send(encode(protocol.Credit(n, max_bytes)))
            except Broken:
                self._intake_attached = False

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        self._check()
        end = time.monotonic() + wait
        try:
            while True:
                if not self._intake_attached:
                    self._attach_intake()
                if self._buffer:
                    deliveries = self._from_buffer(limit)
                    if deliveries:
                        if ahead and not self._asked and not self._buffer:
                            self._ask_for(ahead, park=False)
                        return Fetched(deliveries, self._take_losses() if self._losses else ())
                left = end - time.monotonic()
                if self._woken or self._losses:
                    return self._nothing()
                if not self._asked:
                    if left <= 0 and wait > 0:
                        return self._nothing()
                    self._ask_for(limit, park=wait > 0)
                elif left <= 0 and self._parked:
                    return self._nothing()
                if not self._receive(max(0.0, left), patient=not self._parked):
                    continue
                if wait <= 0 and not self._asked and not self._buffer:
                    return self._nothing()
        except Broken as error:
            self._intake.close()
            self._intake_attached = False
            self._asked = 0
            if self._woken:
                return self._nothing()
            raise self._lost_error(error) from error

    def _nothing(self) -> Fetched:
        """End a fetch without deliveries; what was asked for is not wanted any more."""
        self._woken = False
        self._drain()
        if self._asked and self._parked:
            with contextlib.suppress(Broken):
                self._ask_for(0, park=False)
        return Fetched((), self._take_losses())

    def _ask_for(self, limit: int, *, park: bool) -> None:
        n = self._intake.number()
        self._intake.send(encode((_DEMAND, n, limit, park)))
        self._asked, self._parked = n, park

    def _receive(self, left: float, *, patient: bool) -> bool:
        """Wait for a frame and take it in; whether there was one.

        Patient: an answer is on its way, which is waited for longer than ``left``, and without which the hub is gone.
        """
        link = self._intake
        if not link.poll(max(left, self._transport.options.timeout) if patient else left):
            if patient and not self._woken and not self._losses:
                raise Broken("the hub does not answer")
            return False
        frame = link.receive()
        if type(frame) is Deliver:
            if frame.n == self._asked:
                self._asked = 0
            if self._unconfirmed:
                with self._state:
                    self._settled_up_to(frame.settled)
            if frame.payloads:
                self._take_in(frame)
        elif type(frame) is Gone or type(frame) is Reset:
            self._intake_attached = False
        return True

    def _take_in(self, frame: Deliver) -> None:
        first, payloads = frame.first, frame.payloads
        if frame.ended:
            queues = [queue for queue, count in frame.runs for _ in range(count)]
            self._buffer.extend(
                Delivery(payload, first + i, queues[i], frame.ended[i] + 1, frame.groups[i])
                for i, payload in enumerate(payloads)
            )
            with self._state:
                self._marks.update((first + i, p) for i, p in enumerate(frame.priorities) if p != 5)
            return
        if len(frame.runs) == 1:
            self._buffer.extend(map(Delivery, payloads, range(first, first + len(payloads)), repeat(frame.runs[0][0])))
            return
        queues = [queue for queue, count in frame.runs for _ in range(count)]
        self._buffer.extend(map(Delivery, payloads, range(first, first + len(payloads)), queues))

    def _from_buffer(self, limit: int) -> list[Delivery]:
        buffer = self._buffer
        excess = len(self._held) + len(buffer) - self._credit
        if excess > 0:
            # the credit was lowered after these had been asked for
            self._hand_back([buffer.pop() for _ in range(min(excess, len(buffer)))][::-1])
        if len(buffer) <= limit:
            deliveries = list(buffer)
            buffer.clear()
        else:
            deliveries = [buffer.popleft() for _ in range(limit)]
        with self._state:
            self._held.update((d.receipt, d) for d in deliveries)
        return deliveries

    def _hand_back(self, deliveries: Sequence[Delivery]) -> None:
        with self._state:
            self._held.update((d.receipt, d) for d in deliveries)
        self.settle([Settlement(d.receipt, RELEASE) for d in deliveries])

    # -------------------------------------------------------------------------------------------------- settling

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        self._check()
        with self._settle_lock:
            for start in range(0, len(settlements), _MOST_AT_ONCE):
                part = settlements[start : start + _MOST_AT_ONCE]
                batch = _Batch([], [], [], {})
                with self._state:
                    pop, entries = self._held.pop, batch.entries
                    for s in part:
                        receipt = s.receipt
                        delivery = pop(receipt, None)
                        if delivery is None:
                            self._losses.append(Lost(receipt, _NOT_HELD))
                            continue
                        entries[receipt] = delivery
                        if s.kind == ACK:
                            batch.acks.append(receipt)
                        else:
                            batch.back.append(s)
                self._submit(batch)
        return self._take_losses() if self._losses else ()

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        """Settle with records and follow-ups."""
        self._check()
        with self._settle_lock:
            batch, size = _Batch([], [], [], {}), 0
            for commit in commits:
                s = commit.settlement
                with self._state:
                    delivery = self._held.pop(s.receipt, None)
                    if delivery is None:
                        self._losses.append(Lost(s.receipt, _NOT_HELD))
                        continue
                    batch.entries[s.receipt] = delivery
                if commit.record is not None:
                    size += len(commit.record.payload)
                if commit.record is None and not commit.follow_ups:
                    (batch.acks if s.kind == ACK else batch.back).append(s.receipt if s.kind == ACK else s)  # type: ignore[arg-type]
                else:
                    size += sum(len(o.payload) for o in commit.follow_ups)
                    batch.commits.append(commit)
                if size > _SETTLE_BYTES or len(batch.entries) >= _MOST_AT_ONCE:
                    self._submit(batch)
                    batch, size = _Batch([], [], [], {}), 0
            self._submit(batch)
        return self._take_losses() if self._losses else ()

    def _submit(self, batch: _Batch) -> None:
        """Send a batch to the hub. Raises: TransportError: all of it is held still."""
        if not batch.entries:
            return
        self._unflushed = True
        n = self._number_batch(batch)
        try:
            if self._settling_attached and self._settling.connected:
                try:
                    self._settling.send(batch.data)
                    self._read_confirmations(0.0, _UNCONFIRMED)
                except Broken as error:
                    self._reattach(error)
            else:
                self._reattach()
            welcome = self._settling.welcome
            if batch.commits and welcome is not None and not welcome.evicts:
                self._await_confirmation(n)
        except BaseException:
            with self._state:
                if self._unconfirmed.pop(n, None) is not None:
                    self._held.update(batch.entries)
            raise

    def _number_batch(self, batch: _Batch) -> int:
        with self._state:
            self._settle_n += 1
            n = self._settle_n
            welcome = self._settling.welcome
            batch.explicit = bool(batch.commits) and (welcome is None or welcome.durable or not welcome.evicts)
            answer = batch.explicit or len(self._unconfirmed) % _ASK_EVERY == _ASK_EVERY - 1
            batch.data = encode((_SETTLE, n, batch.acks, batch.back, batch.commits, answer))
            self._unconfirmed[n] = batch
        return n

    def _reattach(self, why: Broken | None = None) -> None:
        """Find the hub again on the settling connection, and send it what it has not confirmed."""
        self._settling_attached = False
        for again in (False, True):
            try:
                if why is not None or not self._settling.connected:
                    self._settling.connect()
                self._attach(self._settling, intake=False)
                self._settling_attached = True
                with self._state:
                    batches = list(self._unconfirmed.values())
                for batch in batches:
                    self._settling.send(batch.data)
                self._read_confirmations(0.0, _UNCONFIRMED)
                return
            except Broken as error:
                self._settling.close()
                self._settling_attached = False
                if again:
                    raise self._lost_error(error) from error

    def _read_confirmations(self, wait: float, most: int) -> None:
        """Take in what the hub has confirmed, waiting up to ``wait`` seconds until no more than ``most`` is open.

        With 0, the hub is waited for only where more is open. Raises: Broken.
        """
        end = time.monotonic() + (wait or self._transport.options.timeout)
        link = self._settling
        asked = False
        while self._unconfirmed:
            if not asked and len(self._unconfirmed) > most:
                asked = True
                link.send(encode(protocol.Beat(-link.number())))
            enough = len(self._unconfirmed) <= most
            left = 0.0 if enough else end - time.monotonic()
            if not link.poll(max(0.0, left), wakes=False):
                if enough or wait:
                    return
                if left <= 0:
                    raise Broken("the hub does not confirm")
                continue
            frame = link.receive()
            if isinstance(frame, Confirm):
                self._confirmed(frame)
                if not frame.known:
                    raise Broken("the hub does not know this consumer any more")
            elif isinstance(frame, Reset):
                raise Broken("the hub does not know this connection any more")

    def _confirmed(self, frame: Confirm) -> None:
        if not frame.known:
            self._settling_attached = False
            return
        with self._state:
            self._losses += [Lost(receipt, _GONE) for receipt in frame.lost]
            batch = self._unconfirmed.get(frame.n)
            if batch is not None and frame.full:
                batch.refused = frame.full
            elif batch is not None:
                batch.explicit = False
            self._settled_up_to(frame.settled)

    def _settled_up_to(self, number: int) -> None:
        """Forget batches that the hub has seen; the state is locked."""
        for n in list(self._unconfirmed):
            if n > number:
                break
            if not self._unconfirmed[n].explicit:
                batch = self._unconfirmed.pop(n)
                if self._marks:
                    for receipt in batch.entries:
                        self._marks.pop(receipt, None)

    def _await_confirmation(self, n: int) -> None:
        """Wait until one batch is confirmed. Raises: TransportError."""
        end = time.monotonic() + self._transport.options.timeout
        while (batch := self._unconfirmed.get(n)) is not None:
            if batch.refused:
                raise StorageFull(f"the hub {self._transport.target.name} has no room for a result: {batch.refused}")
            left = end - time.monotonic()
            if left <= 0:
                raise self._lost_error("a settlement was not confirmed")
            try:
                self._read_confirmations(left, len(self._unconfirmed) - 1)
            except Broken as error:
                self._reattach(error)

    def _repeat_refused(self) -> None:
        """Offer again what the hub had no room for, under a new number."""
        with self._state:
            refused = [n for n, batch in self._unconfirmed.items() if batch.refused]
            batches = [self._unconfirmed.pop(n) for n in refused]
        for batch in batches:
            batch.refused = ""
            self._number_batch(batch)
            self._settling.send(batch.data)

    def flush(self, timeout: float) -> Sequence[Lost]:
        self._check()
        end = time.monotonic() + timeout
        with self._settle_lock:
            while self._unflushed:
                left = end - time.monotonic()
                if left <= 0:
                    raise self._lost_error(f"{len(self._unconfirmed)} batches of settlements are not confirmed")
                try:
                    if not self._settling_attached or not self._settling.connected:
                        self._reattach()
                    self._repeat_refused()
                    self._beat(left)
                    self._unflushed = bool(self._unconfirmed)
                    if self._unflushed:
                        time.sleep(min(left, _REFUSED_PAUSE))
                except Broken as error:
                    if time.monotonic() < end:
                        self._reattach(error)
        return self._take_losses()

    def extend(self, receipts: Sequence[Receipt] | None = None) -> Sequence[Lost]:
        self._check()
        with self._settle_lock:
            try:
                if not self._settling_attached or not self._settling.connected:
                    self._reattach()
                else:
                    self._repeat_refused()
                    self._beat()
            except Broken as error:
                self._reattach(error)
        if self._losses:
            self._poke()
        return self._take_losses()

    def _beat(self, timeout: float | None = None) -> None:
        """Renew the lease; when it is answered, so is every settlement before."""
        link = self._settling
        n = -link.number()
        link.send(encode(protocol.Beat(n)))
        end = time.monotonic() + (self._transport.options.timeout if timeout is None else timeout)
        while True:
            left = end - time.monotonic()
            if left <= 0:
                raise Broken("the hub does not answer")
            if not link.poll(left, wakes=False):
                continue
            frame = link.receive()
            if isinstance(frame, Reset):
                raise Broken("the hub does not know this connection any more")
            if isinstance(frame, Confirm):
                self._confirmed(frame)
                if not frame.known:
                    raise Broken("the hub does not know this consumer any more")
                if frame.n == n:
                    return

    def _take_losses(self) -> list[Lost]:
        with self._state:
            losses, self._losses = self._losses, []
        return losses

    def fuse(self, store: ResultStore) -> Committer | None:
        from taskq_lib_zeromq.results import HubResults

        if isinstance(store, HubResults) and store.results_place == self._transport.place:
            return ZeroMQCommitter(self, store)
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
            while len(self._pipe.recv(4096)) == 4096:
                continue
        except OSError:
            return

    def close(self, timeout: float | None = None) -> None:
        if self._closed:
            return
        self._closed = True
        self._transport.forget(self)
        if self._transport.owned:
            with self._settle_lock:
                self._leave(min(self._transport.options.timeout, 5.0 if timeout is None else timeout))
            self._intake.close()
            self._settling.close()
        self._pipe.close()
        self._bell.close()
        self._held.clear()
        self._buffer.clear()

    def _leave(self, timeout: float) -> None:
        """Have the hub take back what is held; what cannot be told it does when the lease ends."""
        end = time.monotonic() + timeout
        link = self._settling
        for _ in range(2):  # the connection may have broken while it was idle
            try:
                if not self._settling_attached or not link.connected:
                    link.connect(max(0.05, end - time.monotonic()))
                    self._attach(link, intake=False)
                    self._settling_attached = True
                    for batch in list(self._unconfirmed.values()):
                        link.send(batch.data)
                n = link.number()
                link.send(encode(protocol.Detach(n, self.id)))
                while (left := end - time.monotonic()) > 0:
                    if not link.poll(left, wakes=False):
                        continue
                    frame = link.receive()
                    if isinstance(frame, Answer) and frame.n == n:
                        return
                    if isinstance(frame, Reset):
                        raise Broken("the hub does not know this connection any more")
                return
            except Broken:
                link.close()
                self._settling_attached = False
            except (TransportError, AuthenticationFailed):
                return

    def _check(self) -> None:
        self._transport.check_process()
        if self._closed:
            raise TransportClosed("this consumer is closed; make a new one with Transport.consumer()")


class ZeroMQCommitter:
    """Stores outcomes, sends follow-ups and settles in one step of the hub."""

    def __init__(self, consumer: ZeroMQConsumer, store: Any) -> None:
        self._consumer = consumer
        self._store = store

    def commit(self, commits: Sequence[Commit]) -> Sequence[Lost]:
        records = [c.record for c in commits if c.record is not None]
        if records:
            self._store.check_records(records)
        return self._consumer.commit(commits)

"""The hub's one thread: its sockets, the state machines, and the journal between them and the answers."""

from __future__ import annotations

import logging
import os
import socket as sockets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import Struct

from taskq.errors import ConfigError
from taskq.message import ACK, Record, Settlement
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.hub.broker import Broker, new_epoch
from taskq_lib_zeromq.hub.door import Door, Unreachable
from taskq_lib_zeromq.hub.journal import Journal
from taskq_lib_zeromq.hub.results import Coordinator, Results
from taskq_lib_zeromq.hub.streams import Streams
from taskq_lib_zeromq.protocol import Answer, Confirm, Deliver, Failed, Heard, Message, Push, Welcome, encode

logger = logging.getLogger("taskq.zeromq.hub")
_AT_ONCE = 200
"""Requests that are handled before timers are looked at, and that share one write of the journal."""
_LONGEST_WAIT = 5.0
_FORGET_AFTER = 600.0
"""Seconds of silence after which a connection's session is forgotten."""
_JOURNAL_RETRY = 0.5
_FRAME_OVERHEAD = 1 << 20
_MUTATING = (
    protocol.Send, protocol.Put, protocol.Apply, protocol.Slot, protocol.IndexPut, protocol.Settle, protocol.Adopt,
    protocol.Declare,
)  # fmt: skip


@dataclass(frozen=True)
class HubOptions:
    """How a hub is run."""

    bind: tuple[str, ...] = (f"tcp://127.0.0.1:{protocol.DEFAULT_PORT}",)
    journal: str | None = None
    """File that makes the hub durable."""
    result_bytes: int = 256 << 20
    results_full: str = "evict"
    """What happens to a result for which there is no room: ``evict`` the oldest, or ``refuse`` it."""
    max_message_bytes: int = 32 << 20
    heartbeat: float = 5.0
    curve_secret_key: str = ""
    client_keys: frozenset[str] | None = None
    """Public keys that may connect; None for all that know the hub's public key."""


class _Session(Struct):
    """What is remembered of a client's connection, over reconnections."""

    n: int = 0
    answer: Any = None
    seen: float = 0.0


class Hub:
    """Binds when it is made; ``run`` serves until ``stop``.

    Raises:
        ConfigError: the address is in use or not possible, or a key is none.
    """

    def __init__(self, options: HubOptions) -> None:
        self.options = options
        self.name = f"{sockets.gethostname()}:{os.getpid()}"
        self._journal: Journal | None = None
        self._door = _open_door(options)
        self.addresses = self._door.addresses
        try:
            if options.journal is not None:
                self._journal = Journal(options.journal)
        except BaseException:
            self._door.close()
            raise
        self.epoch = self._journal.epoch if self._journal is not None else new_epoch()
        self._out: list[tuple[bytes, Any]] = []
        self._vows: list[tuple[bytes, Any]] = []
        """Answers that must not be given before the journal has what they tell of."""
        self.broker = Broker(self.epoch, self._say, self._journal)
        self.results = Results(options.result_bytes, evicts=options.results_full == "evict", journal=self._journal)
        self.coordinator = Coordinator(self._journal)
        if self._journal is not None:
            self._journal.replay(self.broker, self.results, self.coordinator)
        self._sessions: dict[str, _Session] = {}
        self._peers: dict[bytes, _Session] = {}
        self._watchers: dict[str, bytes] = {}
        self._listeners: dict[str, set[bytes]] = {}
        self._stopping = False
        self._foreign = 0
        self._forget_at = 0.0
        self._broken = ""
        """Why the journal cannot be written; then nothing new is accepted."""
        self._handlers: dict[type, Callable[[bytes, Any], Any]] = {
            protocol.Attach: self._attach,
            protocol.Adopt: lambda _, r: self.broker.adopt(r.consumer, r.held),
            protocol.Detach: self._detach,
            protocol.Send: self._send,
            protocol.Declare: lambda _, r: self.broker.declare(r.names, r.ordered),
            protocol.Stats: lambda _, r: self.broker.stats(r.names),
            protocol.Purge: lambda _, r: self.broker.purge(r.names),
            protocol.Peek: self._peek,
            protocol.Broadcast: self._broadcast,
            protocol.Listen: self._listen,
            protocol.Put: self._put,
            protocol.Get: lambda _, r: self.results.get(r.ids, time.time()),
            protocol.Delete: lambda _, r: self.results.delete(r.ids),
            protocol.Watch: self._watch,
            protocol.Apply: lambda _, r: self.coordinator.apply(r.ops, time.time()),
            protocol.Slot: self._slot,
            protocol.IndexPut: lambda _, r: self.coordinator.index_put(r.index, r.entries),
            protocol.IndexDue: lambda _, r: self.coordinator.index_due(r.index, r.now, r.limit),
            protocol.IndexRemove: lambda _, r: self.coordinator.index_remove(r.index, r.members),
            protocol.Keys: lambda _, r: self.names(),
        }

    # ------------------------------------------------------------------------------------------------------ loop

    def stop(self) -> None:
        """Make ``run`` return; from any thread or signal handler."""
        self._stopping = True
        self._door.wake()

    def run(self) -> None:
        """Serve until ``stop``."""
        logger.info("hub %s listens at %s", self.name, ", ".join(self.addresses))
        try:
            while not self._stopping:
                self._turn(self._door.receive(self._patience()))
        finally:
            self._flush()
            if self._journal is not None:
                self._journal.close()
            self._door.close()
            logger.info("hub %s has ended", self.name)

    def _patience(self) -> float:
        """Return how many seconds may pass until a timer is due."""
        now = time.monotonic()
        wait = min(_LONGEST_WAIT, self.broker.due() - now)
        wall = min(self.results.due(), self.coordinator.due())
        if wall < time.time() + wait:
            wait = wall - time.time()
        if self._journal is not None and (self._broken or self._journal.due or self._journal.lazy):
            wait = min(wait, _JOURNAL_RETRY if self._broken else 0.0 if self._journal.due else 1.0)
        return max(0.0, wait)

    def _turn(self, arrived: tuple[bytes, bytes] | None) -> None:
        """Handle what has arrived, and with a journal what else is there, so that it shares one write."""
        broker, journal, door = self.broker, self._journal, self._door
        number = 0
        while arrived is not None:
            broker.now = time.monotonic()
            self._handle(*arrived)
            if journal is None:
                self._flush()
                break
            number += 1
            arrived = door.receive(0.0) if number < _AT_ONCE else None
        if door.strange:
            self._strange("a message of several frames", door.strange)
            door.strange = 0
        broker.now = now = time.monotonic()
        if now >= broker.due():
            broker.advance()
        wall = time.time()
        if wall >= self.results.due():
            self.results.expire(wall)
        if wall >= self.coordinator.due():
            self.coordinator.expire(wall)
        if now >= self._forget_at:
            self._forget(now)
        self._flush()

    def _flush(self) -> None:
        """Write the journal, then say what waits to be said."""
        if self._journal is not None and self._write_journal(self._journal) and self._vows:
            self._out += self._vows
            self._vows = []
        out = self._out
        send = self._door.send
        while out:
            batch, self._out = out, []
            for connection, what in batch:
                try:
                    send(connection, encode(what))
                except Unreachable:
                    self._unreachable(connection, what)
            out = self._out

    def _write_journal(self, journal: Journal) -> bool:
        try:
            journal.commit()
        except OSError as error:
            if not self._broken:
                logger.error("the journal cannot be written, nothing is accepted until it can: %s", error)
            self._broken = str(error)
            return False
        if self._broken:
            logger.info("the journal is written again")
            self._broken = ""
        return True

    def _say(self, connection: bytes, what: Any) -> None:
        self._out.append((connection, what))

    def _vow(self, connection: bytes, what: Any) -> None:
        (self._out if self._journal is None else self._vows).append((connection, what))

    def _unreachable(self, connection: bytes, what: Any) -> None:
        """Forget a connection that is gone."""
        self._peers.pop(connection, None)
        for listeners in self._listeners.values():
            listeners.discard(connection)
        for address in [a for a, c in self._watchers.items() if c == connection]:
            del self._watchers[address]
        if isinstance(what, Deliver) and what.payloads:
            self.broker.undelivered(connection, what)

    def _forget(self, now: float) -> None:
        self._forget_at = now + _FORGET_AFTER / 10
        self._door.sweep()
        old = now - _FORGET_AFTER
        for name in [name for name, session in self._sessions.items() if session.seen < old]:
            del self._sessions[name]
        keep = {*self.broker.connections, *self._watchers.values()}.union(*self._listeners.values())
        for connection in [c for c, s in self._peers.items() if s.seen < old and c not in keep]:
            del self._peers[connection]
        self._listeners = {channel: c for channel, c in self._listeners.items() if c}

    def _strange(self, what: str, count: int = 1) -> None:
        before, self._foreign = self._foreign, self._foreign + count
        if before < 1 <= self._foreign or before < 10 <= self._foreign or before // 100 < self._foreign // 100:
            logger.warning("%s that is no request of taskq was ignored (%d by now)", what, self._foreign)

    # -------------------------------------------------------------------------------------------------- requests

    def _handle(self, connection: bytes, data: bytes) -> None:
        try:
            request = protocol.decode_request(data)
        except (msgspec.MsgspecError, RecursionError):
            self._strange("a frame")
            return
        kind = type(request)
        peer = self._peers.get(connection)
        if peer is None:
            if kind is not protocol.Hello:
                self._say(connection, protocol.Reset())
                return
        else:
            peer.seen = self.broker.now
            if kind is protocol.Demand:
                self._demand(connection, request)
                return
        if kind is protocol.Settle:
            self._settle(connection, request)
        elif kind is protocol.Beat:
            self._beat(connection, request)
        elif kind is protocol.Credit:
            self._credit(connection, request)
        elif kind is protocol.Hello:
            self._hello(connection, request)
        else:
            assert peer is not None
            self._answer(connection, peer, request)

    def _answer(self, connection: bytes, session: _Session, request: Any) -> None:
        n = request.n
        if session.n == n and session.answer is not None:
            self._vow(connection, session.answer)  # asked again after a broken connection
            return
        answer: Any
        changes = isinstance(request, _MUTATING)
        if changes and self._broken:
            self._say(connection, Failed(n, "full", f"its journal cannot be written: {self._broken}"))
            return
        try:
            value = self._handlers[type(request)](connection, request)
            answer = value if isinstance(value, Failed) else Answer(n, msgspec.Raw(encode(value)))
        except Exception as error:  # one odd request must not end the hub for all others
            logger.exception("a request could not be carried out")
            answer = Failed(n, "refused", f"the request could not be carried out: {error!r}")
        session.n = n
        session.answer = answer if changes else None
        (self._vow if changes else self._say)(connection, answer)

    def _hello(self, connection: bytes, request: protocol.Hello) -> None:
        if request.version != protocol.VERSION:
            text = f"it speaks version {protocol.VERSION} of the protocol, the client {request.version}"
            self._say(connection, protocol.Refused(protocol.VERSION, text))
            return
        session = self._sessions.get(request.session)
        known = session is not None
        if session is None:
            session = self._sessions[request.session] = _Session()
        session.seen = self.broker.now
        self._peers[connection] = session
        self._say(connection, Welcome(
            protocol.VERSION, self.epoch, self._journal is not None, self.results.evicts,
            self.options.max_message_bytes, self.options.max_message_bytes, known, self.name,
        ))  # fmt: skip

    def _send(self, _: bytes, request: protocol.Send) -> Any:
        most = self.options.max_message_bytes
        refused = [(i, f"{len(m.payload)} bytes") for i, m in enumerate(request.batch) if len(m.payload) > most]
        if refused:
            return Failed(request.n, "refused", f"a message is larger than the {most} bytes that it takes")
        return self.broker.send(request.batch)

    def _attach(self, connection: bytes, request: protocol.Attach) -> list[int]:
        return self.broker.attach(connection, request)

    def _detach(self, _: bytes, request: protocol.Detach) -> None:
        self.broker.detach(request.consumer)

    def _credit(self, connection: bytes, request: protocol.Credit) -> None:
        consumer = self.broker.connections.get(connection)
        if consumer is not None:
            consumer.credit, consumer.max_bytes = request.credit, request.max_bytes
            self.broker.served(consumer)

    def _demand(self, connection: bytes, request: protocol.Demand) -> None:
        consumer = self.broker.connections.get(connection)
        if consumer is None or consumer.intake != connection:
            self._say(connection, protocol.Gone(""))
            return
        self.broker.demand(consumer, request.n, request.limit, park=request.park)

    def _beat(self, connection: bytes, request: protocol.Beat) -> None:
        consumer = self.broker.connections.get(connection)
        if consumer is not None:
            self.broker.beat(consumer)
        settled = consumer.last_settle if consumer is not None else 0
        # behind the answers to settlements: who waits for this has all of those before
        behind = any(other == connection for other, _ in self._vows)
        (self._vow if behind else self._say)(connection, Confirm(request.n, settled, known=consumer is not None))

    def _settle(self, connection: bytes, request: protocol.Settle) -> None:
        consumer = self.broker.connections.get(connection)
        if consumer is None:
            self._say(connection, Confirm(request.n, known=False))
            return
        if request.n <= consumer.last_settle:
            self._say(connection, Confirm(request.n, consumer.last_settle))
            return
        acks, back = request.acks, request.back
        commits = request.commits
        if commits:
            records = [c.record for c in commits if c.record is not None]
            full = self.results.full(records, time.time()) if records else ""
            if full or (self._broken and records):
                consumer.last_settle = request.n
                full = full or f"its journal cannot be written: {self._broken}"
                self._say(connection, Confirm(request.n, request.n, full=full))
                return
            acks, back = [*acks], [*back]
            held = consumer.held
            mine = [c for c in commits if c.settlement.receipt in held]
            self._keep([c.record for c in mine if c.record is not None])
            if self._journal is None:
                self._flush()  # who waits need not wait for the rest of this
            follow_ups: list[Message] = []
            for commit in commits:
                settlement: Settlement = commit.settlement
                if settlement.kind == ACK:
                    acks.append(settlement.receipt)
                else:
                    back.append(settlement)
                if commit.follow_ups and settlement.receipt in held:
                    follow_ups += commit.follow_ups
            if follow_ups:
                self.broker.send(follow_ups)
        consumer.last_settle = request.n
        if self._journal is not None:
            self._journal.settled(consumer.id, request.n)
        lost = self.broker.settle(consumer, acks, back)
        if lost or request.answer:
            self._vow(connection, Confirm(request.n, request.n, lost))
        self.broker.served(consumer)

    # ------------------------------------------------------------------------------------------------- the rest

    def _peek(self, _: bytes, request: protocol.Peek) -> list[tuple[Any, ...]]:
        now = self.broker.now
        return [
            (cursor, m.payload, m.id, m.priority, delay, m.ended, None if delay else max(0.0, now - m.at))
            for cursor, m, delay in self.broker.peek(request.queue, request.limit, request.after)
        ]

    def _broadcast(self, _: bytes, request: protocol.Broadcast) -> int:
        listeners = self._listeners.get(request.channel, ())
        for connection in listeners:
            self._say(connection, Heard(request.channel, request.payload))
        return len(listeners)

    def _listen(self, connection: bytes, request: protocol.Listen) -> None:
        self._listeners.setdefault(request.channel, set()).add(connection)

    def _watch(self, connection: bytes, request: protocol.Watch) -> None:
        self._watchers[request.address] = connection

    def _put(self, _: bytes, request: protocol.Put) -> Any:
        full = self.results.full(request.records, time.time())
        if full:
            return Failed(request.n, "full", full)
        return self._keep(request.records)

    def _keep(self, records: Sequence[Record]) -> list[str]:
        """Keep records and push them to whoever waits; return the ids of those that were superseded."""
        now = time.time()
        superseded: list[str] = []
        pushes: dict[bytes, list[Record]] = {}
        for record in records:
            if not self.results.put(record, now):
                superseded.append(record.id)
            elif record.terminal and record.reply is not None:
                connection = self._watchers.get(record.reply)
                if connection is not None:
                    pushes.setdefault(connection, []).append(record)
        for connection, pushed in pushes.items():
            self._say(connection, Push(pushed))
        return superseded

    def _slot(self, _: bytes, request: protocol.Slot) -> Any:
        now = time.time()
        if request.what == "acquire":
            return self.coordinator.acquire(request.key, request.owner, request.slots, request.ttl, now)
        if request.what == "renew":
            return self.coordinator.renew(request.key, request.owner, request.ttl, now)
        return self.coordinator.release(request.key, request.owner)

    def names(self) -> list[str]:
        """Name all that is kept, besides empty queues."""
        found = [f"c:{name}" for name in self.broker.consumers]
        found += [f"q:{queue.name}" for queue in self.broker.queues.values() if queue.ready or queue.delayed]
        found += [f"r:{record_id}" for record_id in self.results.kept]
        self.coordinator.names(time.time(), found.append)
        return found


def _open_door(options: HubOptions) -> Door:
    most = options.max_message_bytes * 2 + _FRAME_OVERHEAD
    if options.curve_secret_key:
        from taskq_lib_zeromq.hub.router import Router

        return Router(
            options.bind, max_bytes=most, heartbeat=options.heartbeat, secret_key=options.curve_secret_key,
            clients=options.client_keys,
        )  # fmt: skip
    if options.client_keys is not None:
        raise ConfigError("client keys are of use only where the hub has a secret key")
    return Streams(options.bind, max_bytes=most, heartbeat=options.heartbeat)


class HubThread:
    """A hub on a thread of this process."""

    def __init__(self, options: HubOptions) -> None:
        self.hub = Hub(options)
        self._pid = os.getpid()
        self._thread = threading.Thread(target=self.hub.run, name="taskq-zeromq-hub", daemon=True)
        self._thread.start()

    def stop(self, timeout: float = 5.0) -> None:
        """Stop serving; what is not in a journal is gone."""
        if self._pid == os.getpid():
            self.hub.stop()
            self._thread.join(timeout)

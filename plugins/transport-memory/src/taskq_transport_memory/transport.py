"""The memory transport."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec

from taskq.errors import NotSupported, QueueMissing, TransportClosed
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, Ordering
from taskq_lib_memory import Bell, MemoryServer, Patience, server_for
from taskq_transport_memory.consumer import MemoryConsumer
from taskq_transport_memory.options import CAPABILITIES

if TYPE_CHECKING:
    from taskq.spi import DeclareMode, TransportConfig
    from taskq_lib_memory import Entry

_PLAIN = msgspec.structs.replace(CAPABILITIES, ordering=Ordering.QUEUE)
_BROADCASTS_KEPT = 10_000


class MemoryTransport:
    """Queues of this process.

    Messages are kept by reference: what was sent must not be changed afterwards.
    """

    def __init__(self, config: TransportConfig) -> None:
        self._config = config
        self._server: MemoryServer | None = None
        self._closed = False
        self._lease_s = config.lease_s if config.lease_s is not None else CAPABILITIES.lease_default_s
        self._consumers: dict[MemoryConsumer, None] = {}
        self._channels: dict[str, tuple[deque[bytes], Bell]] = {}

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    @property
    def server(self) -> MemoryServer:
        """The open server.

        Raises:
            TransportClosed: not open, or opened by the parent process.
        """
        server = self._server
        if server is None or self._closed:
            raise TransportClosed("memory:// was used before open() or after close()")
        if server.inherited():
            raise TransportClosed(
                f"memory:// was opened by process {server.pid} and holds nothing in its child {os.getpid()}: open a "
                "new transport here (it starts empty), or use one that several processes can reach, such as sqlite://"
            )
        return server

    def check(self) -> None:
        self.server  # noqa: B018  raises

    def open(self) -> None:
        if self._server is None:
            self._server = server_for(self._config.urls, self._config.clock)
            self._server.audience.add(self)
        self._closed = False

    def close(self, *, timeout: float = 5.0) -> None:
        if self._closed or self._server is None or self._server.inherited():
            return
        for consumer in list(self._consumers):
            consumer.close()
        self._closed = True
        self._server.audience.discard(self)
        for _, bell in self._channels.values():
            bell.ring()
        self._channels.clear()

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        server = self.server
        facts = {}
        with server.lock:
            by_name = server.queues.by_name
            if mode == "verify" and (missing := [q.name for q in queues if q.name not in by_name]):
                raise QueueMissing(
                    f"memory://{server.name} has no queue {', '.join(missing)}; "
                    "declare with mode='create', or send a message to make it"
                )
            for spec in queues:
                if spec.options:
                    raise NotSupported(f"queue {spec.name}: memory:// has no queue options, got {sorted(spec.options)}")
            for spec in queues:
                created = spec.name not in by_name
                if mode == "none":
                    ordered = spec.ordered if created else by_name[spec.name].ordered
                    facts[spec.name] = QueueFacts(capabilities=CAPABILITIES if ordered else _PLAIN)
                    continue
                queue = server.queues.queue(spec.name)
                if spec.ordered and not queue.ordered:
                    if queue.ready() or queue.delayed or server.queues.in_flight(spec.name):
                        raise NotSupported(
                            f"queue {spec.name} holds messages and is not ordered; empty it to make it so"
                        )
                    queue.ordered = True
                facts[spec.name] = QueueFacts(created=created, capabilities=CAPABILITIES if queue.ordered else _PLAIN)
        return facts

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            return server.queues.send(batch, now)

    def consumer(self) -> MemoryConsumer:
        consumer = MemoryConsumer(self, self.server, self._lease_s)
        self._consumers[consumer] = None
        return consumer

    def forget(self, consumer: MemoryConsumer) -> None:
        self._consumers.pop(consumer, None)

    # ------------------------------------------------------------------------------------------------ abilities

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            state = server.queues
            state.reap(now)
            state.promote(now)
            found = {}
            for name in queues:
                queue = state.by_name.get(name)
                if queue is not None:
                    heads = [line[0].at for line in (*queue.levels.values(), *queue.behind.values()) if line]
                    found[name] = QueueStats(
                        queue.ready(),
                        len(state.in_flight(name)),
                        len(queue.delayed),
                        max(0.0, now - min(heads)) if heads else None,
                    )
        return found

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            state = server.queues
            state.reap(now)
            known = [state.by_name[name] for name in queues if name in state.by_name]
            return {queue.name: queue.purge(state.in_flight(queue.name)) for queue in known}

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        server = self.server
        now = server.clock.monotonic()
        with server.lock:
            state = server.queues
            state.reap(now)
            state.promote(now)
            found = state.by_name.get(queue)
            if found is None:
                return []
            listing = [self._peeked(e, now, in_flight=True) for e in state.in_flight(queue)]
            listing += [self._peeked(e, now) for e in found.waiting()]
            listing += [self._peeked(e, now, due - now) for due, _, e, _ in sorted(found.delayed, key=lambda d: d[:2])]
        start = 0
        if after is not None:
            # The message of the cursor may be gone by now; then go on with whatever would come after it.
            start = next((i + 1 for i, p in enumerate(listing) if p.cursor == after), -1)
            if start < 0:
                stage, priority, seq = (int(part) for part in after.split("."))
                keys = ([int(part) for part in p.cursor.split(".")] for p in listing)
                later = (i for i, (s, p, q) in enumerate(keys) if (s, -p, q) > (stage, -priority, seq))
                start = next(later, len(listing))
        return listing[start : start + limit]

    @staticmethod
    def _peeked(entry: Entry, now: float, delay: float = 0.0, *, in_flight: bool = False) -> Peeked:
        stage = 0 if in_flight else 2 if delay else 1
        return Peeked(
            f"{stage}.{entry.priority}.{entry.seq}",
            entry.payload,
            entry.queue,
            entry.id,
            entry.priority,
            delay,
            entry.ended + in_flight,
            None if delay else max(0.0, now - entry.at),
            in_flight,
        )

    def broadcast(self, channel: str, payload: bytes) -> None:
        server = self.server
        with server.lock:
            for listener in server.audience:
                listener.heard(channel, payload)

    def heard(self, channel: str, payload: bytes) -> None:
        """Take a broadcast, under the server's lock."""
        if (found := self._channels.get(channel)) is not None:
            found[0].append(payload)
            found[1].ring()

    def listen(self, channel: str, wait: float) -> Sequence[bytes]:
        server = self.server
        with server.lock:
            inbox, bell = self._channels.setdefault(channel, (deque(maxlen=_BROADCASTS_KEPT), Bell()))
            server.bells.add(bell)
        patience = Patience(server, wait)
        while True:
            with server.lock:
                heard = list(inbox)
                inbox.clear()
            if heard or self._closed or (left := patience.left()) <= 0:
                return heard
            bell.wait(left)

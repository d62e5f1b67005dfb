"""The ZeroMQ transport: sending, counting, listening."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence

import msgspec

from taskq.errors import (
    AuthenticationFailed,
    ConnectionFailed,
    ConnectionLost,
    NotSupported,
    PayloadTooLarge,
    QueueMissing,
    SchemaMismatch,
    StorageFull,
    TransportClosed,
    TransportError,
)
from taskq.message import Outbound, Peeked, QueueFacts, QueueSpec, QueueStats, SendFailure
from taskq.spi import Capabilities, DeclareMode, Durability, Ordering, TransportConfig
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.embed import embedded
from taskq_lib_zeromq.link import Link, Links
from taskq_lib_zeromq.target import Errors, make_target
from taskq_lib_zeromq.wire import Broken
from taskq_transport_zeromq.consumer import ZeroMQConsumer
from taskq_transport_zeromq.options import ZeroMQOptions, capabilities

ERRORS = Errors(ConnectionFailed, ConnectionLost, AuthenticationFailed, SchemaMismatch, StorageFull, TransportError)
_CHUNK = 1000
_CHUNK_BYTES = 8 << 20
_NOTHING = b"\x90"
"""An empty list: nothing was refused."""
_SEND = 2

_refusals = msgspec.msgpack.Decoder(list[tuple[int, str]]).decode
_names = msgspec.msgpack.Decoder(list[str]).decode
_stats = msgspec.msgpack.Decoder(dict[str, tuple[int, int, int, float | None]]).decode
_counts = msgspec.msgpack.Decoder(dict[str, int]).decode
_peeked = msgspec.msgpack.Decoder(list[tuple[str, bytes, str, int, float, int, float | None]]).decode


class ZeroMQTransport:
    """One hub, or its fail-over hubs in order."""

    def __init__(self, config: TransportConfig) -> None:
        self.options: ZeroMQOptions = config.options
        target = make_target(config.urls, self.options, ERRORS)
        self._embedded = embedded(target, self.options) if self.options.hub == "embed" else None
        if self._embedded is None and self.options.journal:
            raise NotSupported(
                "the option journal is for hub=embed; start the hub with `taskq zeromq hub --journal FILE`"
            )
        self.target = target if self._embedded is None else self._embedded.reviving(target)
        self.lease_s = config.lease_s or capabilities(self.options).lease_default_s
        self.max_payload = 0
        self._capabilities = capabilities(self.options)
        self._links = Links(self.target)
        self._pid = os.getpid()
        self._open = False
        self._consumers: set[ZeroMQConsumer] = set()
        self._listeners: dict[str, _Listener] = {}
        self._listening = threading.Lock()

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def place(self) -> tuple[str, ...]:
        """The hub: a store of the same place can be fused."""
        return self.target.addresses

    @property
    def owned(self) -> bool:
        """Whether this process opened it, not its parent."""
        return self._pid == os.getpid()

    def open(self) -> None:
        if self._open:
            return
        self.check_process()
        if self._embedded is not None:
            self._embedded.start()
        try:
            welcome = self._links.open()
        except BaseException:
            self._links.close()
            if self._embedded is not None:
                self._embedded.release()
            raise
        self.max_payload = welcome.max_payload
        self._capabilities = msgspec.structs.replace(
            self._capabilities,
            durability=Durability.DISK if welcome.durable else Durability.SERVER,
            max_payload_bytes=min(welcome.max_payload, 1 << 30),
        )
        self._open = True

    def close(self, *, timeout: float = 5.0) -> None:
        was_open, self._open = self._open, False
        if not self.owned:
            return
        end = time.monotonic() + timeout
        for consumer in list(self._consumers):
            consumer.close(max(0.1, (end - time.monotonic()) / 2))
        with self._listening:
            for listener in self._listeners.values():
                listener.link.close()
            self._listeners.clear()
        self._links.close()
        if was_open and self._embedded is not None:
            self._embedded.release()

    def check_process(self) -> None:
        """Refuse to work on what a parent process opened. Raises: TransportClosed."""
        if self._pid != os.getpid():
            raise TransportClosed(
                f"this transport belongs to process {self._pid}; open a new one in process {os.getpid()}"
            )

    def _check(self) -> None:
        self.check_process()
        if not self._open:
            raise TransportClosed("the transport is not open; call open() first")

    # ------------------------------------------------------------------------------------------------- messages

    def declare(self, queues: Sequence[QueueSpec], *, mode: DeclareMode = "create") -> Mapping[str, QueueFacts]:
        self._check()
        for queue in queues:
            if queue.options:
                raise NotSupported(
                    f"queue {queue.name!r} has options {sorted(queue.options)}; a hub's queues have none"
                )
        names = [queue.name for queue in queues]
        made: set[str] = set()
        if mode == "create" and names:
            ordered = [queue.name for queue in queues if queue.ordered]
            made = set(_names(self._links.request(lambda n: protocol.Declare(n, names, ordered))))
        elif mode == "verify":
            known = self.stats(names)
            missing = [name for name in names if name not in known]
            if missing:
                raise QueueMissing(
                    f"the hub {self.target.name} has no queue {', '.join(map(repr, missing))}; declare it with mode "
                    "'create' once, or correct the name"
                )
        plain = msgspec.structs.replace(self._capabilities, ordering=Ordering.QUEUE)
        return {
            q.name: QueueFacts(created=q.name in made, capabilities=self._capabilities if q.ordered else plain)
            for q in queues
        }

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        self._check()
        if len(batch) == 1:
            self._check_size(batch[0])
            return self._send(batch, 0)
        failures: list[SendFailure] = []
        start = size = 0
        for i, outbound in enumerate(batch):
            length = len(outbound.payload)
            if length > self.max_payload:
                failures += self._send(batch[start:i], start) if i > start else ()
                failures.append(SendFailure(i, self._too_large(outbound), retryable=False))
                start, size = i + 1, 0
                continue
            if i > start and (size + length > _CHUNK_BYTES or i - start >= _CHUNK):
                failures += self._send(batch[start:i], start)
                start, size = i, 0
            size += length
        if start < len(batch):
            failures += self._send(batch[start:] if start else batch, start)
        return failures

    def _send(self, part: Sequence[Outbound], offset: int) -> Sequence[SendFailure]:
        try:
            value = self._links.request(lambda n: (_SEND, n, part))
        except ConnectionLost as error:
            return [SendFailure(offset + i, str(error), maybe_sent=True) for i in range(len(part))]
        except TransportError as error:
            if offset == 0 and not isinstance(error, StorageFull):
                raise
            return [SendFailure(offset + i, str(error), retryable=error.retryable) for i in range(len(part))]
        if value == _NOTHING:
            return ()
        return [SendFailure(offset + i, reason, retryable=False) for i, reason in _refusals(value)]

    def _check_size(self, outbound: Outbound) -> None:
        if len(outbound.payload) > self.max_payload:
            raise PayloadTooLarge(self._too_large(outbound))

    def _too_large(self, outbound: Outbound) -> str:
        return (
            f"message {outbound.id} has {len(outbound.payload)} bytes and the hub takes {self.max_payload}; store "
            "large data elsewhere and send its address, or start the hub with a larger --max-message-bytes"
        )

    def consumer(self) -> ZeroMQConsumer:
        self._check()
        consumer = ZeroMQConsumer(self)
        self._consumers.add(consumer)
        return consumer

    def forget(self, consumer: ZeroMQConsumer) -> None:
        """Take a closed consumer off the list of those to close."""
        self._consumers.discard(consumer)

    # -------------------------------------------------------------------------------------------------- looking

    def stats(self, queues: Sequence[str]) -> Mapping[str, QueueStats]:
        self._check()
        if not queues:
            return {}
        found = _stats(self._links.request(lambda n: protocol.Stats(n, list(queues))))
        return {name: QueueStats(*counts) for name, counts in found.items()}

    def purge(self, queues: Sequence[str]) -> Mapping[str, int]:
        self._check()
        return _counts(self._links.request(lambda n: protocol.Purge(n, list(queues)))) if queues else {}

    def peek(self, queue: str, *, limit: int = 100, after: str | None = None) -> Sequence[Peeked]:
        self._check()
        found = _peeked(self._links.request(lambda n: protocol.Peek(n, queue, limit, after)))
        return [
            Peeked(cursor, payload, queue, message_id, priority, delay, ended, age)
            for cursor, payload, message_id, priority, delay, ended, age in found
        ]

    # ------------------------------------------------------------------------------------------------- broadcast

    def broadcast(self, channel: str, payload: bytes) -> None:
        self._check()
        self._links.request(lambda n: protocol.Broadcast(n, channel, payload))

    def listen(self, channel: str, wait: float) -> Sequence[bytes]:
        self._check()
        with self._listening:
            listener = self._listeners.get(channel)
            if listener is None:
                listener = self._listeners[channel] = _Listener(Link(self.target), channel)
        try:
            return listener.listen(wait)
        except Broken as error:
            listener.link.close()
            raise ConnectionLost(f"the connection to the hub {self.target.name} broke: {error}") from error


class _Listener:
    """A connection that broadcasts of one channel are pushed to."""

    def __init__(self, link: Link, channel: str) -> None:
        self.link = link
        self.channel = channel

    def listen(self, wait: float) -> list[bytes]:
        link, channel = self.link, self.channel
        if not link.connected:
            link.request(lambda n: protocol.Listen(n, channel))
        heard: list[bytes] = []
        left = wait
        while link.poll(left, wakes=False):
            frame = link.receive()
            if isinstance(frame, protocol.Heard):
                heard.append(frame.payload)
            elif isinstance(frame, protocol.Reset):
                link.request(lambda n: protocol.Listen(n, channel))
            left = 0.0
        return heard

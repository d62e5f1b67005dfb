"""A memory transport behind a TCP server: the least that has a network, for the kit's tests with a broken one.

A frame is a length of four bytes and msgpack: a request ``[method, arguments]``, an answer ``[error or None, value]``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from taskq.errors import ConnectionFailed, ConnectionLost, TransportClosed, TransportError
from taskq.message import (
    Delivery,
    Fetched,
    Lost,
    Outbound,
    QueueFacts,
    QueueSpec,
    SendFailure,
    Settlement,
    Subscription,
)
from taskq.spi import Capabilities, NoOptions, TransportConfig, TransportSpec, parse_urls
from taskq_transport_memory.options import CAPABILITIES
from taskq_transport_memory.transport import MemoryTransport

DECLARED = msgspec.structs.replace(
    CAPABILITIES, network=True, broadcast=False, peek=False, stats=False, purge=False, fused_stores=()
)
encode, decode = msgspec.msgpack.encode, msgspec.msgpack.decode


def read_frame(sock: socket.socket) -> bytes:
    head = _exactly(sock, 4)
    return _exactly(sock, *struct.unpack(">I", head))


def _exactly(sock: socket.socket, n: int) -> bytes:
    found = b""
    while len(found) < n:
        data = sock.recv(n - len(found))
        if not data:
            raise ConnectionResetError("closed by the other side")
        found += data
    return found


def frame(value: Any) -> bytes:
    data = encode(value)
    return struct.pack(">I", len(data)) + data


class Server:
    """Holds one memory transport for all clients."""

    def __init__(self, lease_s: float = 30.0) -> None:
        config = TransportConfig(urls=parse_urls("memory://"), options=NoOptions(), lease_s=lease_s)
        self.transport = MemoryTransport(config)
        self.transport.open()
        self.consumers: dict[str, Any] = {}
        self.answers: dict[str, tuple[int, Any]] = {}
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for sock in list(self.sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.transport.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.sockets.add(sock)
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                while True:
                    method, arguments = decode(read_frame(sock))
                    try:
                        answer = [None, getattr(self, f"on_{method}")(*arguments)]
                    except Exception as error:
                        answer = [f"{type(error).__name__}: {error}", None]
                    sock.sendall(frame(answer))
            except OSError:
                self.sockets.discard(sock)

    def on_hello(self) -> str:
        return "kit"

    def on_send(self, batch: list[Any]) -> Any:
        return self.transport.send([msgspec.convert(m, Outbound) for m in batch])

    def on_declare(self, queues: list[Any], mode: str) -> Any:
        specs = [msgspec.convert(q, QueueSpec) for q in queues]
        return {n: f.created for n, f in self.transport.declare(specs, mode=mode).items()}  # type: ignore[arg-type]

    def on_consumer(self, key: str) -> None:
        self.consumers[key] = self.transport.consumer()

    def on_subscribe(self, key: str, queues: list[Any], order: Any) -> None:
        self.consumers[key].subscribe([Subscription(*q) for q in queues], order=order)

    def on_credit(self, key: str, n: int, max_bytes: int) -> None:
        self.consumers[key].credit(n, max_bytes)

    def on_fetch(self, key: str, turn: int, limit: int, wait: float) -> Any:
        """Answer a repeated turn as before: the client has not seen the answer, and must not lose the messages."""
        if self.answers.get(key, (-1, None))[0] != turn:
            self.answers[key] = (turn, self.consumers[key].fetch(limit, wait))
        return self.answers[key][1]

    def on_settle(self, key: str, settlements: list[Any]) -> Any:
        return self.consumers[key].settle([msgspec.convert(s, Settlement) for s in settlements])

    def on_extend(self, key: str) -> Any:
        return self.consumers[key].extend()

    def on_close(self, key: str) -> None:
        if (consumer := self.consumers.pop(key, None)) is not None:
            consumer.close()


class TcpTransport:
    """The client: a pool of connections, each used by one call at a time."""

    timeout_s = 0.6
    connection_lost: type[TransportError] = ConnectionLost

    def __init__(self, config: TransportConfig) -> None:
        self.url = config.urls[0]
        self.free: list[socket.socket] = []
        self.consumers: list[TcpConsumer] = []
        self.closed = False
        self.pid = os.getpid()

    @property
    def capabilities(self) -> Capabilities:
        return DECLARED

    def connect(self) -> socket.socket:
        sock = None
        try:
            sock = socket.create_connection((self.url.host or "", self.url.port or 0), timeout=self.timeout_s)
            sock.settimeout(self.timeout_s)
            sock.sendall(frame(["hello", []]))
            read_frame(sock)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise ConnectionFailed(f"no server answers at {self.url.host}:{self.url.port}: {error}") from error
        return sock

    def call(self, method: str, *arguments: Any) -> Any:
        """Send a request and return the answer.

        Raises:
            ConnectionFailed: the server has not seen the whole request.
            ConnectionLost: it may have.
        """
        if self.closed or self.inherited():
            raise TransportClosed("this kit transport is closed, or of the parent process; open another")
        sock = self.free.pop() if self.free else self.connect()
        try:
            sock.sendall(frame([method, arguments]))
        except OSError as error:
            sock.close()
            self._drop()
            raise ConnectionFailed(f"the request was not sent: {error}") from error
        try:
            error_text, value = decode(read_frame(sock))
        except (OSError, msgspec.DecodeError) as error:
            sock.close()
            self._drop()
            raise self.connection_lost(f"no answer came: {error}") from error
        if self.closed:
            sock.close()
        else:
            self.free.append(sock)
        if error_text:
            raise TransportError(error_text)
        return value

    def inherited(self) -> bool:
        return self.pid != os.getpid()

    def _drop(self) -> None:
        """What broke one connection has broken the others."""
        while self.free:
            self.free.pop().close()

    def open(self) -> None:
        if not self.free:
            self.free.append(self.connect())

    def close(self, *, timeout: float = 5.0) -> None:
        if self.inherited():
            return
        for consumer in list(self.consumers):
            consumer.close()
        self.closed = True
        self._drop()

    def declare(self, queues: Any, *, mode: Any = "create") -> Any:
        return {n: QueueFacts(created=c) for n, c in self.call("declare", queues, mode).items()}

    def send(self, batch: Sequence[Outbound]) -> Sequence[SendFailure]:
        try:
            failures = self.call("send", batch)
        except ConnectionLost as error:
            return [SendFailure(i, str(error), maybe_sent=True) for i in range(len(batch))]
        return [msgspec.convert(f, SendFailure) for f in failures]

    def consumer(self) -> TcpConsumer:
        consumer = TcpConsumer(self)
        self.consumers.append(consumer)
        return consumer


class TcpConsumer:
    """Its state lives on the server under a key, whatever the connection."""

    def __init__(self, transport: TcpTransport) -> None:
        self.transport = transport
        self.key = uuid.uuid4().hex
        self.turn = 0
        self.woken = threading.Event()
        self.closed = False
        transport.call("consumer", self.key)

    def subscribe(self, queues: Sequence[Subscription], *, order: str = "fair") -> None:
        self.transport.call("subscribe", self.key, [(q.queue, q.weight) for q in queues], order)

    def credit(self, n: int, max_bytes: int) -> None:
        self.transport.call("credit", self.key, n, max_bytes)

    def fetch(self, limit: int, wait: float, *, ahead: int = 0) -> Fetched:
        end = time.monotonic() + wait
        while True:
            # Short turns, so that a wake is heard and no turn takes longer than the timeout.
            left = end - time.monotonic()
            found = self.transport.call("fetch", self.key, self.turn, limit, max(0.0, min(left, 0.05)))
            self.turn += 1
            fetched = msgspec.convert(found, Fetched)
            if fetched.deliveries or fetched.lost or left <= 0 or self.woken.is_set():
                self.woken.clear()
                return Fetched([msgspec.convert(d, Delivery) for d in fetched.deliveries], fetched.lost)

    def settle(self, settlements: Sequence[Settlement]) -> Sequence[Lost]:
        return [msgspec.convert(entry, Lost) for entry in self.transport.call("settle", self.key, settlements)]

    def flush(self, timeout: float) -> Sequence[Lost]:
        return ()

    def extend(self, receipts: Any = None) -> Sequence[Lost]:
        return [msgspec.convert(entry, Lost) for entry in self.transport.call("extend", self.key)]

    def wake(self) -> None:
        self.woken.set()

    def close(self) -> None:
        if not self.closed and not self.transport.inherited():
            self.closed = True
            self.transport.consumers.remove(self)
            with contextlib.suppress(TransportError):
                self.transport.call("close", self.key)


SPEC = TransportSpec(
    spi="0.1",
    name="kit-tcp",
    schemes=("kit-tcp",),
    factory=TcpTransport,
    capabilities=lambda _: DECLARED,
    summary="for the kit",
)

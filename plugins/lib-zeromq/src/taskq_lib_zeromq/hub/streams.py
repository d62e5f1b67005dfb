"""A hub's sockets without encryption: it speaks ZMTP itself, as a ROUTER, on its one thread."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import selectors
import socket
import stat
import time
from collections import deque
from collections.abc import Sequence

from taskq_lib_client.bell import Bell
from taskq_lib_zeromq import zmtp
from taskq_lib_zeromq.hub.door import AddressInUse, Unreachable

logger = logging.getLogger("taskq.zeromq.hub")
_BACKLOG = 512
_UNSHAKEN_S = 30.0
"""Seconds that a connection may take to shake hands."""
_UNREAD_BYTES = 64 << 20
"""Bytes that may wait to be read by one client before it counts as gone."""
_LINGER_S = 0.2
_KEEPALIVES = 3


class Streams:
    """Listens at TCP addresses and Unix sockets.

    Raises:
        AddressInUse: one of the addresses is not to be had.
    """

    def __init__(self, bind: Sequence[str], *, max_bytes: int, heartbeat: float) -> None:
        self.addresses: list[str] = []
        self.strange = 0
        self._max_bytes = max_bytes
        self._heartbeat = max(1, round(heartbeat))
        self._selector = selectors.DefaultSelector()
        self._bell = Bell()
        self._listeners: list[socket.socket] = []
        self._deaf = False
        """Whether no connections are accepted for want of descriptors."""
        self._numbers = itertools.count(1)
        self._peers: dict[bytes, _Peer] = {}
        self._arrived: deque[tuple[bytes, bytes]] = deque()
        self._selector.register(self._bell.fileno(), selectors.EVENT_READ)
        try:
            for address in bind:
                self._listen(address)
        except BaseException:
            self.close()
            raise

    def _listen(self, address: str) -> None:
        kind, _, rest = address.partition("://")
        try:
            if kind == "ipc":
                listener = _unix_listener(rest)
                self.addresses.append(address)
            elif kind == "tcp":
                host, _, port = rest.rpartition(":")
                listener = _tcp_listener(host, 0 if port == "*" else _port(port))
                self.addresses.append(f"tcp://{host}:{listener.getsockname()[1]}")
            else:
                raise ValueError("an address begins with tcp:// or ipc://")
        except (OSError, ValueError) as error:
            raise AddressInUse(address, error) from error
        listener.setblocking(False)
        self._listeners.append(listener)
        self._selector.register(listener, selectors.EVENT_READ, listener)

    # -------------------------------------------------------------------------------------------------- receiving

    def receive(self, seconds: float) -> tuple[bytes, bytes] | None:
        arrived = self._arrived
        if not arrived:
            for key, events in self._selector.select(seconds):
                who = key.data
                if type(who) is _Peer:
                    if events & selectors.EVENT_READ:
                        self._read(who)
                    if events & selectors.EVENT_WRITE and who.unsent:
                        self._write_on(who)
                elif who is not None:
                    self._accept(who)
                else:
                    self._bell.hush()
        return arrived.popleft() if arrived else None

    def _read(self, peer: _Peer) -> None:
        try:
            more = peer.take_in()
        except BlockingIOError:
            return
        except (OSError, zmtp.Nonsense):
            more = False
        reader = peer.reader
        if reader.strange:
            self.strange += reader.strange
            reader.strange = 0
        messages, key = reader.messages, peer.key
        while messages:
            self._arrived.append((key, messages.popleft()))
        if more and reader.replies:
            replies, reader.replies = b"".join(reader.replies), []
            self._write(peer, replies)
        elif not more:
            self._drop(peer)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, ConnectionError):
            return
        except OSError as error:
            if not self._deaf:
                logger.error("no connections are accepted until one ends: %s", error)
                self._deaf = True
                for other in self._listeners:
                    self._selector.unregister(other)
            return
        with contextlib.suppress(OSError):  # gone already: reading tells
            accepted.setblocking(False)
            if accepted.family != getattr(socket, "AF_UNIX", None):
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._keep_alive(accepted)
        peer = _Peer(next(self._numbers).to_bytes(8, "big"), accepted, self._max_bytes)
        self._peers[peer.key] = peer
        self._selector.register(accepted, selectors.EVENT_READ, peer)
        self._write(peer, zmtp.SIGNATURE + zmtp.REST)

    def _keep_alive(self, accepted: socket.socket) -> None:
        """Have the system look whether a silent client's machine is there: its process may be busy and not reading."""
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            ("TCP_KEEPIDLE", self._heartbeat), ("TCP_KEEPINTVL", self._heartbeat), ("TCP_KEEPCNT", _KEEPALIVES),
        ):  # fmt: skip
            if hasattr(socket, name):
                accepted.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    # ---------------------------------------------------------------------------------------------------- sending

    def send(self, connection: bytes, frame: bytes) -> None:
        peer = self._peers.get(connection)
        if peer is None:
            raise Unreachable
        if not self._write(peer, zmtp.frame(frame)):
            raise Unreachable

    def _write(self, peer: _Peer, data: bytes) -> bool:
        """Write what can be written at once, and keep the rest; False where the connection is gone."""
        if peer.unsent:
            if len(peer.unsent) > _UNREAD_BYTES:
                self._drop(peer)
                return False
            peer.unsent += data
            return True
        try:
            sent = peer.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(peer)
            return False
        if sent < len(data):
            peer.unsent += memoryview(data)[sent:]
            self._selector.modify(peer.socket, selectors.EVENT_READ | selectors.EVENT_WRITE, peer)
        return True

    def _write_on(self, peer: _Peer) -> None:
        try:
            while peer.unsent:
                del peer.unsent[: peer.socket.send(peer.unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._drop(peer)
            return
        self._selector.modify(peer.socket, selectors.EVENT_READ, peer)

    # ----------------------------------------------------------------------------------------------------- ending

    def _drop(self, peer: _Peer) -> None:
        if self._peers.pop(peer.key, None) is None:
            return
        self._selector.unregister(peer.socket)
        peer.socket.close()
        peer.unsent.clear()
        self._hear_again()

    def _hear_again(self) -> None:
        if self._deaf:
            self._deaf = False
            for listener in self._listeners:
                self._selector.register(listener, selectors.EVENT_READ, listener)

    def sweep(self) -> None:
        old = time.monotonic() - _UNSHAKEN_S
        for peer in [p for p in self._peers.values() if not p.reader.shaken and p.since < old]:
            self._drop(peer)
        self._hear_again()

    def wake(self) -> None:
        self._bell.ring()

    def close(self) -> None:
        for listener, address in zip(self._listeners, self.addresses, strict=True):
            listener.close()
            if address.startswith("ipc://"):
                with contextlib.suppress(OSError):
                    os.unlink(address[6:])
        for peer in self._peers.values():
            with contextlib.suppress(OSError):
                if peer.unsent:
                    peer.socket.settimeout(_LINGER_S)
                    peer.socket.sendall(peer.unsent)
            peer.socket.close()
        self._selector.close()
        self._bell.close()


class _Peer:
    """A client's connection."""

    __slots__ = ("_greeting", "key", "reader", "since", "socket", "unsent")

    def __init__(self, key: bytes, accepted: socket.socket, max_bytes: int) -> None:
        self.key = key
        self.socket = accepted
        self.reader = zmtp.Reader(max_bytes)
        self.unsent = bytearray()
        self.since = time.monotonic()
        self._greeting: bytes | None = b""

    def take_in(self) -> bool:
        """Take in what is there; False at the end. Raises: OSError, Nonsense."""
        reader = self.reader
        if self._greeting is not None:
            data = self.socket.recv(zmtp.GREETING_BYTES - len(self._greeting))
            self._greeting += data
            if len(self._greeting) == zmtp.GREETING_BYTES:
                if zmtp.mechanism(self._greeting) != "NULL":
                    return False
                self._greeting = None
                reader.replies.append(zmtp.ready(b"ROUTER"))
                return True
            return bool(data) and self._greeting[0] == zmtp.SIGNATURE[0]
        more = reader.read(self.socket)
        if reader.messages and not reader.shaken:
            raise zmtp.Nonsense("a message before the handshake")
        return more


def _tcp_listener(host: str, port: int) -> socket.socket:
    if ":" in host:
        return socket.create_server(
            (host.strip("[]"), port), family=socket.AF_INET6, backlog=_BACKLOG,
            dualstack_ipv6=host == "[::]" and socket.has_dualstack_ipv6(),
        )  # fmt: skip
    return socket.create_server(("" if host == "*" else host, port), backlog=_BACKLOG)


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65535:
        raise ValueError(f"{port} is no port")
    return port


def _unix_listener(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(path)
        except OSError:
            if not stat.S_ISSOCK(os.stat(path).st_mode) or _answers(path):
                raise
            os.unlink(path)  # of a hub that was killed
            listener.bind(path)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except OSError:
            return True  # who knows
    return True

"""A TCP proxy between a plugin and its server that cuts, delays, stalls and half-closes."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Literal

Direction = Literal["up", "down"]
"""From the client to the server, or back."""


_POLL_S = 0.02


class TcpProxy:
    """Listens on a free port of this machine and passes bytes on, until it is told to misbehave.

    Use it as a context manager. Every fault holds for all connections, those made later included, until ``heal``.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.connections = 0
        self.passed = {"up": 0, "down": 0}
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stalled = False
        self._swallow: set[Direction] = set()
        self._delay = 0.0
        self._budget: dict[Direction, int] = {}
        self._closed = False
        self._start(self._accept)

    # --------------------------------------------------------------------------------------------------- faults

    def cut(self) -> None:
        """Break every connection at once. New ones may be made.

        The client sees a reset; the server gets what was passed on before, and then the end.
        """
        with self._changed:
            sockets, self._sockets = self._sockets, set()
        for sock in sockets:
            with contextlib.suppress(OSError):
                if sock.getsockname()[1] == self.port:
                    # Linger of no time makes a close a reset. It is sent when the thread that polls the socket lets go.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    def cut_after(self, count: int, direction: Direction = "up") -> None:
        """Pass ``count`` more bytes in a direction, in the middle of whatever they are, then cut. Once."""
        with self._changed:
            self._budget[direction] = count

    def stall(self) -> None:
        """Pass nothing on and close nothing: a server that hangs, or a network that drops packets."""
        with self._changed:
            self._stalled = True

    def swallow(self, direction: Direction) -> None:
        """Throw away what comes from one side: with ``down`` the server does its work and no answer arrives."""
        with self._changed:
            self._swallow.add(direction)

    def delay(self, seconds: float) -> None:
        """Pass everything on so much later."""
        with self._changed:
            self._delay = seconds

    def half_close(self) -> None:
        """Tell every client that the server will send no more, and keep reading from it."""
        with self._changed:
            sockets = list(self._sockets)
        for sock in sockets:
            with contextlib.suppress(OSError):
                if sock.getsockname()[1] == self.port:
                    sock.shutdown(socket.SHUT_WR)

    def heal(self) -> None:
        """Pass everything on again; what was held by a stall goes first."""
        with self._changed:
            self._stalled = False
            self._swallow.clear()
            self._delay = 0.0
            self._budget.clear()
            self._changed.notify_all()

    # ------------------------------------------------------------------------------------------------- workings

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name="kit: TCP proxy", daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(self.target, timeout=10.0)
            except OSError:
                client.close()
                continue
            with self._changed:
                if self._closed:
                    client.close()
                    server.close()
                    return
                self.connections += 1
                self._sockets |= {client, server}
            for sock in (client, server):
                sock.settimeout(_POLL_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._start(self._pump, client, server, "up")
            self._start(self._pump, server, client, "down")

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        try:
            while data := self._received(source):
                with self._changed:
                    self._changed.wait_for(lambda: not self._stalled or self._closed)
                    delay, budget = self._delay, self._budget.get(direction)
                    swallow = direction in self._swallow
                    if budget is not None:
                        data = data[:budget]
                        self._budget[direction] = budget - len(data)
                if delay:
                    time.sleep(delay)
                if not swallow and data:
                    self._send(sink, data)
                    self.passed[direction] += len(data)
                if budget is not None and budget <= len(data):
                    with self._changed:
                        self._budget.pop(direction, None)
                    self.cut()
                    return
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # cut, or the other side has gone
            with self._changed:
                whole = {source, sink} & self._sockets  # of a cut connection nothing is left to end
                self._sockets -= whole
            for sock in whole:
                sock.close()

    @staticmethod
    def _received(source: socket.socket) -> bytes:
        while True:
            try:
                return source.recv(1 << 16)
            except TimeoutError:
                continue

    @staticmethod
    def _send(sink: socket.socket, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[sink.send(view) :]
            except TimeoutError:
                continue

    def close(self) -> None:
        """Stop listening and break every connection. A second call does nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(2.0)

    def __enter__(self) -> TcpProxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

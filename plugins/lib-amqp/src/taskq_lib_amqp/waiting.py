"""Waiting for sockets, and ending such a wait from elsewhere."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any


class Bell:
    """Ends a wait from any thread or signal handler. Sticky until it is hushed."""

    def __init__(self) -> None:
        self._in, self._out = socket.socketpair()
        self._in.setblocking(False)
        self._out.setblocking(False)
        self.rung = False

    def fileno(self) -> int:
        return self._out.fileno()

    def ring(self) -> None:
        """Ring; harmless when it rings already or is gone."""
        if not self.rung:
            with contextlib.suppress(OSError):
                self._in.send(b"!")
            self.rung = True

    def hush(self) -> None:
        """Stop ringing."""
        if self.rung:
            self.rung = False
            with contextlib.suppress(OSError):
                self._out.recv(4096)

    def close(self) -> None:
        self._in.close()
        self._out.close()


def wait_for(timeout: float, *, read: Any = (), write: Any = ()) -> None:
    """Wait until one of the sockets can be read or written, at most ``timeout`` seconds."""
    if not hasattr(select, "poll"):  # Windows
        select.select(read, write, [], max(0.0, timeout))
        return
    poll = select.poll()
    for sock in read:
        poll.register(sock.fileno(), select.POLLIN)
    for sock in write:
        poll.register(sock.fileno(), select.POLLOUT)
    poll.poll(max(0.0, timeout * 1000))

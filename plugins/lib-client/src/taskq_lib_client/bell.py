"""Waiting for sockets, and a bell that ends the wait from anywhere."""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Protocol


class Source(Protocol):
    """A socket, or what has one."""

    def fileno(self) -> int: ...


def ready(sources: Sequence[Source], timeout: float) -> set[int]:
    """Return the descriptors that can be read, waiting up to ``timeout`` seconds for one."""
    descriptors = [d for s in sources if (d := s.fileno()) >= 0]  # not of one closed meanwhile
    if not hasattr(select, "poll"):  # Windows, and eventlet takes it away
        return set(select.select(descriptors, [], [], max(0.0, timeout))[0])
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, timeout * 1000))}


class Bell:
    """A source that can be read from when it is rung until it is hushed."""

    def __init__(self) -> None:
        self._ear, self._hammer = socket.socketpair()
        self._ear.setblocking(False)
        self._hammer.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to wait on; -1 once it is closed."""
        return self._ear.fileno()

    def ring(self) -> None:
        """End the wait, or else the next one. Any thread or signal handler; never blocks nor fails."""
        try:
            self._hammer.send(b"1")
        except OSError:
            return  # full, so it rings already; or closed meanwhile

    def hush(self) -> None:
        """Stop ringing. What the ring announced is to be looked at after this, or it may be missed."""
        try:
            while len(self._ear.recv(4096)) == 4096:
                continue
        except OSError:
            return

    def close(self) -> None:
        """Close it; ringing it does nothing from now on."""
        self._ear.close()
        self._hammer.close()

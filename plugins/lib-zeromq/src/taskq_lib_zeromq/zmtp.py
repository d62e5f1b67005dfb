"""ZMTP 3.1 with the mechanism NULL, as RFC 23 and 37 of ZeroMQ say it: greeting, commands, frames.

libzmq leaves sockets to a thread of its own: a message then costs two more changes of threads, which are most of what a
round trip takes. So where nothing is encrypted, whoever has something to say speaks ZMTP by itself.
"""

from __future__ import annotations

import socket
from collections import deque

_MORE, _LONG, _COMMAND = 1, 2, 4
"""Flags of a frame."""
SIGNATURE = b"\xff" + bytes(8) + b"\x7f\x03\x01"
"""How a greeting begins: version included, mechanism not."""
GREETING_BYTES = 64
_NULL = b"NULL"
REST = _NULL.ljust(20, b"\0") + bytes(32)
"""How a greeting ends."""
_READ_BYTES = 1 << 16
_MOST_READ_BYTES = 1 << 20


class Nonsense(Exception):
    """This is no ZMTP, or not what a hub and its clients say."""


def frame(body: bytes) -> bytes:
    """Return a message of one frame."""
    size = len(body)
    return (bytes((0, size)) if size < 256 else b"\x02" + size.to_bytes(8, "big")) + body


def command(name: bytes, body: bytes = b"") -> bytes:
    """Return a short command."""
    return bytes((_COMMAND, 1 + len(name) + len(body), len(name))) + name + body


def ready(kind: bytes) -> bytes:
    """Return the command that ends a handshake; ``kind`` is DEALER or ROUTER."""
    return command(b"READY", b"\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind)


PING = command(b"PING", bytes(2))


def mechanism(greeting: bytes) -> str | None:
    """Return the security mechanism of a greeting (NULL, CURVE), None where it is none of ZMTP 3."""
    if len(greeting) < GREETING_BYTES or greeting[0] != 0xFF or greeting[9] != 0x7F or greeting[10] < 3:
        return None
    return greeting[12:32].rstrip(b"\0").decode("ascii", "replace")


class Reader:
    """Cuts what comes over a connection into messages, and obeys its commands."""

    def __init__(self, most: int) -> None:
        """``most`` is the largest message in bytes."""
        self.messages: deque[bytes] = deque()
        self.shaken = False
        """Whether the other side is ready."""
        self.replies: list[bytes] = []
        """What is to be written in answer to commands."""
        self.strange = 0
        """Messages of several frames, which were ignored."""
        self._most = most
        self._parts: list[bytes] = []
        self._have = 0
        """Bytes in ``_parts``: of a frame that is not complete yet."""
        self._need = 2
        """Bytes from which on there may be a frame."""
        self._several = False

    def read(self, source: socket.socket) -> bool:
        """Take in what is there; False at the end of the connection.

        Raises:
            OSError: the connection broke, or (BlockingIOError) there is nothing.
            Nonsense: what comes makes no sense.
        """
        data = source.recv(min(_MOST_READ_BYTES, max(_READ_BYTES, self._need - self._have)))
        if not data:
            return False
        self._parts.append(data)
        self._have += len(data)
        if self._have >= self._need:
            self._cut(data if len(self._parts) == 1 else b"".join(self._parts))
        return True

    def _cut(self, data: bytes) -> None:
        at, size = 0, len(data)
        while True:
            self._need = 2
            start = at + 2
            if start > size:
                break
            flags, length = data[at], data[at + 1]
            if flags & _LONG:
                self._need = 9
                start = at + 9
                if start > size:
                    break
                length = int.from_bytes(data[at + 1 : start], "big")
            if flags > 7 or length > self._most:
                raise Nonsense(f"a frame of {length} bytes with the flags {flags}")
            end = start + length
            if end > size:
                self._need = end - at
                break
            if flags & _COMMAND:
                self._obey(data[start:end])
            elif flags & _MORE or self._several:
                self._several = bool(flags & _MORE)
                self.strange += not self._several
            else:
                self.messages.append(data[start:end])
            at = end
        self._parts = [data[at:]] if at < size else []
        self._have = size - at

    def _obey(self, body: bytes) -> None:
        length = body[0] if body else 0
        name, rest = body[1 : length + 1], body[length + 1 :]
        if name == b"PING":
            self.replies.append(command(b"PONG", rest[2:18]))
        elif name == b"READY":
            self.shaken = True
        elif name == b"ERROR":
            raise Nonsense(rest[1:].decode("ascii", "replace"))

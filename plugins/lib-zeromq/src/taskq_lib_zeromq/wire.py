"""What a link needs of a connection, whoever speaks ZMTP on it."""

from __future__ import annotations

from typing import Protocol

from taskq_lib_client.bell import Source


class Broken(Exception):
    """The connection is gone; why is in the text."""


class Denied(Broken):
    """The hub will never have this connection: other encryption, other keys."""


class Wire(Protocol):
    """A connection to a hub that carries whole frames. One thread at a time uses it."""

    def send(self, frame: bytes) -> None:
        """Send a frame. Raises: Broken: it may have been sent or not."""
        ...

    def poll(self, seconds: float, bell: Source | None = None) -> bool:
        """Wait until a frame is there (True), or the bell rings or the time has passed (False). Raises: Broken."""
        ...

    def receive(self) -> bytes | None:
        """Return the next frame that is there, None where there is none."""
        ...

    def close(self) -> None:
        """Close the connection at once."""
        ...

"""What a hub needs of its sockets, whoever speaks ZMTP on them."""

from __future__ import annotations

from typing import Protocol

from taskq.errors import ConfigError


class AddressInUse(ConfigError):
    """Somebody listens there already, or nobody can."""

    def __init__(self, address: str, why: object) -> None:
        super().__init__(f"a hub cannot listen at {address}: {why}")


class Unreachable(Exception):
    """The connection is gone, or takes no more."""


class Door(Protocol):
    """Listens, and carries frames. The hub's thread uses it; any may call ``wake``."""

    addresses: list[str]
    """Where it listens, ports filled in."""
    strange: int
    """Messages of several frames, which were ignored."""

    def receive(self, seconds: float) -> tuple[bytes, bytes] | None:
        """Return a connection and a frame that came on it; None after a while, or when woken."""
        ...

    def send(self, connection: bytes, frame: bytes) -> None:
        """Have a frame written, without waiting. Raises: Unreachable."""
        ...

    def sweep(self) -> None:
        """Drop connections that never shook hands; called once in a while."""
        ...

    def wake(self) -> None:
        """End ``receive`` soon."""
        ...

    def close(self) -> None:
        """Write what can be written at once, and stop listening."""
        ...

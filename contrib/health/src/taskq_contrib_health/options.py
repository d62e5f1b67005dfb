"""Options of the health probes, in the table ``extensions.health``."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.errors import ConfigError
from taskq.spi import option


@dataclass(frozen=True, kw_only=True)
class HealthOptions:
    """Where probes are answered, and how much they tell."""

    address: str | None = option(None, help="HOST:PORT, :PORT or unix:PATH to answer probes on; none for no probes")
    tasks: bool = option(False, help="whether /running tells which tasks run, by name and id")


def parse(address: str) -> tuple[str, int] | str:
    """Return host and port, or the path of a Unix socket.

    Raises:
        ConfigError: it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if path:
            return path
    else:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and int(port) < 65536:
            return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  asked for by leaving the host out
    raise ConfigError(f"extensions.health.address is HOST:PORT, :PORT or unix:PATH, not {address!r}")

"""Options of the health probes, in the table ``extensions.health``."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.errors import ConfigError
from taskq.spi import option


@dataclass(frozen=True, kw_only=True)
class HealthOptions:
    """Where probes are answered, and how much they tell."""

    address: str | None = option(
        None, help="HOST:PORT, :PORT or unix:PATH to answer probes on; {name} in PATH is the worker's"
    )
    tasks: bool = option(False, help="whether /running tells which tasks run, by name and id")


def parse(address: str, name: str | None = None) -> tuple[str, int] | str:
    """Return host and port, or the path of a Unix socket, of the worker of this name.

    Raises:
        ConfigError: it is neither.
    """
    if address.startswith("unix:"):
        path = address.removeprefix("unix:")
        if "{name}" in path and name is None:
            raise ConfigError(f"{address} is one for each worker: say which with --name")
        if path:
            return path.replace("{name}", name or "")
    else:
        host, colon, port = address.rpartition(":")
        if colon and port.isdecimal() and int(port) < 65536:
            return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104  asked for by leaving the host out
    raise ConfigError(f"extensions.health.address is HOST:PORT, :PORT or unix:PATH, not {address!r}")

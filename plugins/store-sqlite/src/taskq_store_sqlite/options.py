"""Options and promises of the SQLite result store; asking for them imports no driver."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support, option

MAX_RECORD_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True)
class SqliteStoreOptions:
    """Options of ``sqlite://`` as a result store."""

    synchronous: str = option(
        "FULL",
        help="FULL: a stored result survives power loss; NORMAL: faster one by one, power loss may undo "
        "the last moments",
        choices=("FULL", "NORMAL"),
    )
    busy_timeout: float = option(
        10.0, help="how long to wait for another process's transaction before giving up", minimum=0.1, unit="s"
    )
    poll_interval: float = option(
        0.2, help="how often a waiting client looks for what no bell announced", minimum=0.01, unit="s"
    )
    wake_up: str = option(
        "bell",
        help="bell: workers wake waiting clients through sockets beside the file; poll: results are found "
        "at the poll interval",
        choices=("bell", "poll"),
    )


def capabilities(options: Any) -> StoreCapabilities:
    """Return what the store promises with these options."""
    return StoreCapabilities(
        cross_process=True,
        network=False,
        keeps=Durable.DURABLE,
        readable_by=ReadableBy.ANYONE,
        push=hasattr(socket, "AF_UNIX") and getattr(options, "wake_up", "bell") == "bell",
        ttl=Support.NATIVE,
        supersede_exact=True,
        coordination=True,
        max_record_bytes=MAX_RECORD_BYTES,
        max_batch=1000,
        notes=("One file on a local disk, for the processes of one machine; network file systems are not supported.",),
    )

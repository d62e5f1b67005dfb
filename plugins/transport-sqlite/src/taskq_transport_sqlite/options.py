"""Options and promises of the SQLite transport; asking for them imports no driver."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

from taskq.spi import (
    Capabilities,
    DeliveryCount,
    Duplicates,
    Durability,
    Fencing,
    HandBack,
    LeaseScope,
    Ordering,
    Support,
    WakeUp,
    option,
)

MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
LEASE_DEFAULT_S = 10.0


@dataclass(frozen=True)
class SqliteOptions:
    """Options of ``sqlite://`` as a broker."""

    synchronous: str = option(
        "FULL",
        help="FULL: a sent message survives power loss; NORMAL: several times faster one by one, power loss may undo "
        "the last moments",
        choices=("FULL", "NORMAL"),
    )
    busy_timeout: float = option(
        10.0, help="how long to wait for another process's transaction before giving up", minimum=0.1, unit="s"
    )
    poll_interval: float = option(
        0.2, help="how often an idle consumer looks for what no bell announced", minimum=0.01, unit="s"
    )
    wake_up: str = option(
        "bell",
        help="bell: senders wake consumers through sockets beside the file; poll: they are found at the poll interval",
        choices=("bell", "poll"),
    )
    max_size: int = option(
        0, help="size of the file above which sending fails with StorageFull; 0 for no limit", minimum=0, unit="bytes"
    )


def capabilities(options: Any) -> Capabilities:
    """Return what the transport promises with these options."""
    bells = hasattr(socket, "AF_UNIX") and getattr(options, "wake_up", "bell") == "bell"
    full = getattr(options, "synchronous", "FULL") == "FULL"
    return Capabilities(
        durability=Durability.DISK if full else Durability.SERVER,
        cross_process=True,
        network=False,
        lease_scope=LeaseScope.CONSUMER,
        lease_default_s=LEASE_DEFAULT_S,
        lease_min_s=0.1,
        fencing=Fencing.EXACT,
        duplicates=Duplicates.AFTER_LOST_LEASE,
        delivery_count=DeliveryCount.EXACT,
        ordering=Ordering.GROUP,
        hand_back=HandBack.NATIVE,
        wake_up=WakeUp.PUSH if bells else WakeUp.POLL,
        delay=Support.NATIVE,
        release_delay=True,
        priority=Support.NATIVE,
        priority_levels=10,
        priority_strict=True,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        max_send_batch=10_000,
        max_fetch_batch=1000,
        max_settle_batch=10_000,
        stats=True,
        purge=True,
        peek=True,
        transactional_send=True,
        fused_stores=("sqlite",),
        notes=(
            "One file on a local disk, for the processes of one machine; network file systems are not supported.",
            "A queue declared ordered keeps the order of each group; any other queue is first in, first out.",
            "A killed consumer's messages come back as soon as another one looks, at the latest when its lease ends.",
            "What send_in wrote is found at the poll interval after the caller's commit.",
        ),
    )

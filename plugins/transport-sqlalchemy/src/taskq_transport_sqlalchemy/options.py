"""Options and declared abilities; imports no client library."""

from __future__ import annotations

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
from taskq_lib_sqlalchemy.options import DatabaseOptions


@dataclass(frozen=True, kw_only=True)
class SqlTransportOptions(DatabaseOptions):
    """How the queues are kept and watched."""

    listen: bool = option(
        True, help="PostgreSQL: wake by LISTEN/NOTIFY; False: poll (a pooler that cannot carry LISTEN)"
    )
    poll_min: float = option(0.02, minimum=0.001, unit="s", help="shortest time between looks while a queue is empty")
    poll_max: float = option(0.5, minimum=0.01, unit="s", help="longest time between looks, after a while of silence")
    durable_claims: bool = option(
        False,
        help="PostgreSQL: also claims wait for the disk; without, a crash of the server may undo the last of them",
    )


NOTES = (
    "PostgreSQL wakes consumers by NOTIFY; with MariaDB, MySQL and SQLite they poll (20 ms to 0.5 s)",
    "consumers take from a queue's head side by side: each gets its messages in order, skipping what others just take",
    "durability and the largest payload depend on the server's settings and are exact once it has been opened",
)


def capabilities(options: Any) -> Capabilities:
    """Return the widest set, that of PostgreSQL."""
    return Capabilities(
        durability=Durability.REPLICATED,
        cross_process=True,
        network=True,
        lease_scope=LeaseScope.CONSUMER,
        lease_default_s=10.0,
        lease_min_s=0.5,
        fencing=Fencing.EXACT,
        duplicates=Duplicates.AFTER_LOST_LEASE,
        delivery_count=DeliveryCount.EXACT,
        ordering=Ordering.QUEUE,
        hand_back=HandBack.NATIVE,
        wake_up=WakeUp.PUSH,
        delay=Support.NATIVE,
        release_delay=True,
        priority=Support.NATIVE,
        priority_levels=10,
        priority_strict=True,
        max_payload_bytes=500_000_000,
        stats=True,
        purge=True,
        peek=True,
        transactional_send=True,
        fused_stores=("sqlalchemy",),
        notes=NOTES,
    )

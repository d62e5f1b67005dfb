"""Options and promises of the ZeroMQ transport; asking for them imports no client library."""

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

SCHEMES = ("zeromq",)


@dataclass(frozen=True)
class ZeroMQOptions:
    """Options of ``zeromq://`` as a broker."""

    hub: str = option(
        "connect",
        help="connect: to a hub that runs somewhere; embed: the first process to come runs the hub, others connect",
        choices=("connect", "embed"),
    )
    journal: str = option("", help="file that makes an embedded hub durable; empty for none")
    connect_timeout: float = option(5.0, help="longest time to connect to one hub", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer", minimum=0.05, unit="s")
    heartbeat: float = option(
        5.0,
        help="how often to look whether a connection that is waited on stands; after three it is given up",
        minimum=0.1,
        unit="s",
    )
    curve_server_key: str = option("", help="the hub's public key, for an encrypted connection", secret=True)
    curve_public_key: str = option(
        "", help="this client's public key; empty to make a pair for each process", secret=True
    )
    curve_secret_key: str = option("", help="this client's secret key", secret=True)


def capabilities(options: Any) -> Capabilities:
    """Return the widest promise; the hub says whether it has a journal when it is connected."""
    return Capabilities(
        durability=Durability.DISK,
        cross_process=True,
        network=True,
        lease_scope=LeaseScope.CONSUMER,
        lease_default_s=10.0,
        lease_min_s=0.1,
        fencing=Fencing.EXACT,
        duplicates=Duplicates.AFTER_LOST_LEASE,
        delivery_count=DeliveryCount.EXACT,
        ordering=Ordering.GROUP,
        hand_back=HandBack.NATIVE,
        wake_up=WakeUp.PUSH,
        delay=Support.NATIVE,
        release_delay=True,
        priority=Support.NATIVE,
        priority_levels=10,
        priority_strict=True,
        max_payload_bytes=1 << 30,
        max_send_batch=1000,
        max_fetch_batch=1000,
        max_settle_batch=4000,
        stats=True,
        purge=True,
        peek=True,
        broadcast=True,
        fused_stores=("zeromq",),
        notes=(
            "Messages survive the hub's death only if it has a journal: `taskq zeromq hub --journal FILE`.",
            "Order per group holds in queues that are declared ordered, elsewhere order per queue.",
            "The largest message is the hub's to say, 32 MiB by default.",
        ),
    )

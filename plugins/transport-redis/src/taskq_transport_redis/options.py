"""Options and promises of the Redis transport; asking for them imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

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

CLUSTER_SCHEMES = ("redis+cluster", "rediss+cluster")
SCHEMES = ("redis", "rediss", "valkey", "valkeys", "redis+sentinel", "rediss+sentinel", *CLUSTER_SCHEMES)
MAX_PAYLOAD_BYTES = 256 * 1024 * 1024
"""Half of what one Redis string may hold, so that a frame and its script argument fit."""


@dataclass(frozen=True)
class RedisOptions:
    """Options of ``redis://`` as a broker."""

    key_prefix: str = option("taskq:", help="beginning of every key; transport and store may share it")
    connect_timeout: float = option(5.0, help="longest time to connect to one server", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer", minimum=0.05, unit="s")
    sentinel_service: str = option(
        "", help="name of the service that the sentinels watch; needed with redis+sentinel:// and only there"
    )
    tls_ca_file: str = option("", help="file with the authorities to trust, for rediss://; empty for the system's own")
    tls_cert_file: str = option("", help="client certificate, for rediss://")
    tls_key_file: str = option("", help="key of the client certificate, for rediss://")
    tls_verify: bool = option(True, help="check the server's certificate and host name, for rediss://")
    poll_interval: float = option(
        1.0, help="how often an idle consumer looks for what no bell announced", minimum=0.01, unit="s"
    )
    wait_replicas: int = option(
        0, help="how many replicas must have a message before it counts as sent; 0 for none", minimum=0
    )


def capabilities(options: Any) -> Capabilities:
    """Return the widest promise; what survives the server's death depends on its own persistence settings."""
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
        ordering=Ordering.QUEUE,
        hand_back=HandBack.NATIVE,
        wake_up=WakeUp.PUSH,
        delay=Support.NATIVE,
        release_delay=True,
        priority=Support.NATIVE,
        priority_levels=10,
        priority_strict=True,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        max_send_batch=1000,
        max_fetch_batch=1000,
        max_settle_batch=4000,
        stats=True,
        purge=True,
        peek=True,
        broadcast=True,
        fused_stores=("redis",),
        notes=(
            "Messages survive power loss with appendonly yes and appendfsync always, else the last may be lost.",
            "With wait_replicas a failover loses nothing that counts as sent; it may lose acknowledgements.",
            "One server, its fail-over servers, or Sentinel; redis+cluster:// for a cluster.",
        ),
    )


def cluster_capabilities(options: Any) -> Capabilities:
    """Return the widest promise of a cluster."""
    return msgspec.structs.replace(
        capabilities(options),
        duplicates=Duplicates.POSSIBLE,
        fused_stores=(),
        notes=(
            "Messages survive power loss with appendonly yes and appendfsync always, else the last may be lost.",
            "A failover loses what the new master had not received; with wait_replicas nothing that counts as sent.",
            "A queue has one slot. Results lie in other slots: storing one and the acknowledgement are apart.",
        ),
    )

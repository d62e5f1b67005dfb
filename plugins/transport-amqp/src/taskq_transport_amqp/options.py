"""Options and promises of the AMQP transport; asking for them imports no client library."""

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

SCHEMES = ("amqp", "amqps")
QUORUM, CLASSIC = "quorum", "classic"
MAX_DELAY_S = 24 * 86400.0
"""What the delay queues can hold in one go; the kernel sends longer delays in legs."""


@dataclass(frozen=True)
class AmqpOptions:
    """Options of ``amqp://`` as a broker."""

    queue_type: str = option(
        QUORUM, choices=(QUORUM, CLASSIC),
        help="kind of the queues that are made: quorum (replicated, counts deliveries) or classic (priorities)",
    )  # fmt: skip
    exchange: str = option(
        "", help="exchange for messages with a routing key whose queue was declared without one of its own"
    )
    consumer_timeout: float = option(
        1800.0, minimum=0, unit="s",
        help="the server's consumer_timeout, the longest time that it lets a message stay unacknowledged; 0 for none",
    )  # fmt: skip
    delivery_limit: int = option(
        1000, minimum=1,
        help="deliveries after which the server itself moves a message of a quorum queue to QUEUE.dead",
    )  # fmt: skip
    max_payload_bytes: int = option(
        16 * 1024 * 1024, minimum=1, unit="bytes",
        help="largest message to send; the server's max_message_size must not be smaller",
    )  # fmt: skip
    heartbeat: int = option(0, minimum=0, unit="s", help="interval of heartbeats; 0 for half of the lease")
    connect_timeout: float = option(5.0, help="longest time to connect to one server", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer or a confirm", minimum=0.05, unit="s")
    tls_ca_file: str = option("", help="file with the authorities to trust, for amqps://; empty for the system's own")
    tls_cert_file: str = option("", help="client certificate, for amqps://")
    tls_key_file: str = option("", help="key of the client certificate, for amqps://")
    tls_verify: bool = option(True, help="check the server's certificate and host name, for amqps://")


def capabilities(options: Any) -> Capabilities:
    """Return what queues of the chosen type can do."""
    classic = options.queue_type == CLASSIC
    return Capabilities(
        durability=Durability.DISK,
        cross_process=True,
        network=True,
        lease_scope=LeaseScope.CONNECTION,
        lease_default_s=10.0,
        lease_min_s=2.0,
        max_hold_s=options.consumer_timeout or None,
        fencing=Fencing.LOCAL,
        duplicates=Duplicates.AFTER_LOST_LEASE,
        delivery_count=DeliveryCount.REDELIVERED if classic else DeliveryCount.COUNTS_RELEASES,
        ordering=Ordering.QUEUE if classic else Ordering.NONE,
        hand_back=HandBack.NATIVE,
        wake_up=WakeUp.PUSH,
        delay=Support.EMULATED,
        max_delay_s=MAX_DELAY_S,
        priority=Support.NATIVE if classic else Support.NO,
        priority_levels=10 if classic else 1,
        priority_strict=classic,
        max_payload_bytes=options.max_payload_bytes,
        max_send_batch=1000,
        max_fetch_batch=1000,
        max_settle_batch=4000,
        stats=True,
        purge=True,
        routing=True,
        notes=(
            "Quorum queues are first in, first out until something is given back: a copy goes to the tail.",
            "Quorum queues count a delivery that was pushed to a worker and never looked at, unless it returns there.",
            "Quorum queues of RabbitMQ 3.x have no priorities: queue_type=classic has ten levels.",
            "On a cluster of three or more nodes quorum queues survive the loss of one.",
            "A queue may be declared with another type than the transport's, by its option 'type'.",
        ),
    )

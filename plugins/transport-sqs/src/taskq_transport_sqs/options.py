"""Options and promises of the SQS transport; asking for them imports no client library."""

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

SCHEMES = ("sqs",)
MAX_MESSAGE_BYTES = 1 << 20
"""What a message, and a batch of them, may have at most: the server's own limit."""
MAX_PAYLOAD_BYTES = MAX_MESSAGE_BYTES // 4 * 3
"""A message is text, so a payload travels as base64, four characters for three bytes."""
MAX_DELAY_S = 900.0
MAX_HOLD_S = 43_200.0
MAX_RETENTION_S = 1_209_600


@dataclass(frozen=True)
class SqsOptions:
    """Options of ``sqs://`` as a broker."""

    region: str = option("", help="AWS region; empty for the URL's, then boto's own (AWS_REGION, profile)")
    account: str = option("", help="id of the account that owns the queues; empty for the credentials' own")
    endpoint: str = option("", help="URL of another endpoint of SQS, such as a VPC's; boto finds the credentials")
    profile: str = option("", help="profile of boto's configuration files; it may assume a role")
    queue_prefix: str = option("", help="beginning of every queue's name on the server")
    kind: str = option(
        "standard",
        help="what a queue is made as where nothing else says so; with fifo, every queue is taken to be ordered",
        choices=("standard", "fifo"),
    )
    create_queues: bool = option(
        True, help="make queues that are missing; false where the credentials may not, so that QueueMissing is raised"
    )
    retention: int = option(
        MAX_RETENTION_S, help="how long a new queue keeps messages before SQS drops them", minimum=60, unit="s"
    )
    max_receives: int = option(
        0, help="receives after which SQS itself moves a message of a new queue to QUEUE.dead; 0 for never", minimum=0
    )
    poll_wait: int = option(20, help="longest long poll, at most 20; a fetch that waits less polls less", minimum=1)
    connections: int = option(4, help="calls under way at once for one consumer, or for one large send", minimum=1)
    connect_timeout: float = option(5.0, help="longest time to connect", minimum=0.05, unit="s")
    timeout: float = option(10.0, help="longest time to wait for an answer, beyond a long poll", minimum=0.05, unit="s")


def capabilities(options: Any) -> Capabilities:
    """Return the widest promise: of standard queues, or of FIFO queues where ``kind`` makes all of them ordered."""
    return for_queue(fifo=getattr(options, "kind", "standard") == "fifo", durability=Durability.REPLICATED)


def for_queue(*, fifo: bool, durability: Durability) -> Capabilities:
    """Return what a queue of this kind can do."""
    return Capabilities(
        durability=durability,
        cross_process=True,
        network=True,
        lease_scope=LeaseScope.MESSAGE,
        lease_default_s=30.0,
        lease_min_s=1.0,
        max_hold_s=MAX_HOLD_S,
        fencing=Fencing.LOCAL,
        duplicates=Duplicates.POSSIBLE,
        delivery_count=DeliveryCount.COUNTS_RELEASES,
        ordering=Ordering.GROUP if fifo else Ordering.NONE,
        hand_back=HandBack.COSTLY,
        wake_up=WakeUp.PUSH,
        delay=Support.NO if fifo else Support.NATIVE,
        max_delay_s=None if fifo else MAX_DELAY_S,
        release_delay=True,
        priority=Support.NO,
        fair_groups=not fifo,
        max_payload_bytes=MAX_PAYLOAD_BYTES,
        max_send_batch=1000,
        max_fetch_batch=100,
        max_settle_batch=1000,
        stats=True,
        notes=(
            "Amazon SQS delivers at least once: a message may come twice without a reason, also on FIFO queues.",
            "Counts of stats are the server's approximations, late by up to a minute.",
            "Delays and leases are whole seconds, rounded up; a FIFO queue takes no delay per message.",
            "A hand-back is counted by the server. A message is dropped, unseen, at the end of the queue's retention.",
            "Ordered queues are FIFO queues: their name on the server ends in .fifo.",
            "PurgeQueue would take what workers hold and counts nothing, so purge is not declared.",
        ),
    )

"""The memory transport has no options; its promises stand here so that asking for them imports no driver."""

from __future__ import annotations

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
)

CAPABILITIES = Capabilities(
    durability=Durability.PROCESS,
    lease_scope=LeaseScope.CONSUMER,
    lease_default_s=10.0,
    lease_min_s=0.05,
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
    stats=True,
    purge=True,
    peek=True,
    broadcast=True,
    fused_stores=("memory",),
    notes=(
        "memory:// is private to the transport object; memory://NAME is shared by all of this process with that name.",
        "A queue declared ordered keeps the order of each group; any other queue is first in, first out.",
        "A forked child starts empty.",
    ),
)
"""Of a queue that may be declared ordered; of a plain queue ``ordering`` is QUEUE."""

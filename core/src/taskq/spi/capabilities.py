"""What a component can do, as data.

The kernel plans with these (native, emulated by the kernel, or refused at start-up), ``taskq plugins show`` prints
them, and the conformance kit tests them: what is declared and fails is red, what works undeclared is reported.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from msgspec import Struct


class Support(StrEnum):
    """NATIVE: the server does it. EMULATED: the plugin does it for the server. NO: the kernel does it or refuses it."""

    NATIVE = "native"
    EMULATED = "emulated"
    NO = "no"


class Durability(StrEnum):
    """What an accepted message survives."""

    PROCESS = "process"
    """Nothing beyond the process that holds it."""
    SERVER = "server"
    """The death of every client, but not of the server or machine."""
    DISK = "disk"
    """Power loss: written to disk before ``send`` returned."""
    REPLICATED = "replicated"
    """The loss of one machine."""


class LeaseScope(StrEnum):
    """What keeps a delivery held."""

    MESSAGE = "message"
    CONSUMER = "consumer"
    CONNECTION = "connection"
    NONE = "none"


class Fencing(StrEnum):
    """Whether a settlement that comes after its lease ended is refused.

    By the server, by this client, or not at all.
    """

    EXACT = "exact"
    LOCAL = "local"
    NONE = "none"


class Duplicates(StrEnum):
    """When a message may be delivered again without a release or a crash."""

    AFTER_LOST_LEASE = "after_lost_lease"
    POSSIBLE = "possible"


class DeliveryCount(StrEnum):
    """What ``Delivery.deliveries`` counts."""

    EXACT = "exact"
    """Deliveries less uncounted releases."""
    COUNTS_RELEASES = "counts_releases"
    REDELIVERED = "redelivered"
    """1 at first, 2 whenever it may not be the first."""
    NONE = "none"


class Ordering(StrEnum):
    """What order is promised among messages of one priority."""

    NONE = "none"
    QUEUE = "queue"
    """First in, first out, per queue, as long as nothing is released or lost."""
    GROUP = "group"
    """As QUEUE per group, and a group's next message waits until the one before is settled."""


class HandBack(StrEnum):
    """What ``RELEASE`` costs: cheap and uncounted, costly (a round trip each, or counted), or impossible."""

    NATIVE = "native"
    COSTLY = "costly"
    NO = "no"


class WakeUp(StrEnum):
    """How a waiting ``fetch`` learns of a message sent by another process."""

    PUSH = "push"
    POLL = "poll"


class Capabilities(Struct, frozen=True, kw_only=True):
    """A transport's declared abilities; the defaults are the weakest promise, so an author states what is better.

    Lengths are in bytes, times in seconds; a limit of None means none known.
    """

    durability: Durability = Durability.PROCESS
    cross_process: bool = False
    network: bool = False
    lease_scope: LeaseScope = LeaseScope.NONE
    lease_default_s: float = 10.0
    lease_min_s: float = 0.5
    max_hold_s: float | None = None
    """Longest time the server lets one delivery stay unsettled, however often extended."""
    fencing: Fencing = Fencing.NONE
    duplicates: Duplicates = Duplicates.POSSIBLE
    delivery_count: DeliveryCount = DeliveryCount.NONE
    ordering: Ordering = Ordering.NONE
    hand_back: HandBack = HandBack.NO
    wake_up: WakeUp = WakeUp.POLL
    delay: Support = Support.NO
    max_delay_s: float | None = None
    release_delay: bool = False
    """``RELEASE`` may carry a delay."""
    priority: Support = Support.NO
    priority_levels: int = 1
    """Distinct levels kept apart among 0–9; neighbours share a level where fewer than ten."""
    priority_strict: bool = False
    """A higher level is always delivered before a lower one that waits in the same queue."""
    fair_groups: bool = False
    """``Outbound.group`` on a queue without order shares it fairly: no group's backlog holds up the others."""
    routing: bool = False
    """``Outbound.routing_key`` is honoured: the broker routes by it (topic, fan-out), to any number of queues."""
    max_payload_bytes: int | None = None
    max_send_batch: int = 1000
    max_fetch_batch: int = 512
    max_settle_batch: int = 1000
    stats: bool = False
    purge: bool = False
    peek: bool = False
    broadcast: bool = False
    transactional_send: bool = False
    fused_stores: tuple[str, ...] = ()
    """Result stores (by name) with which outcome and acknowledgement are one step."""
    notes: tuple[str, ...] = ()
    """Sentences for ``plugins show``: what depends on the server's version or on the kind of queue."""


class Durable(StrEnum):
    """How a store keeps what it accepted: until its ttl, or possibly evicted earlier."""

    DURABLE = "durable"
    EVICTABLE = "evictable"


class ReadableBy(StrEnum):
    """Who can read a result: anyone with the id, or only the client that sent the task."""

    ANYONE = "anyone"
    CALLER = "caller"


class StoreCapabilities(Struct, frozen=True, kw_only=True):
    """A result store's declared abilities; the defaults are the weakest promise."""

    cross_process: bool = False
    network: bool = False
    keeps: Durable = Durable.DURABLE
    readable_by: ReadableBy = ReadableBy.ANYONE
    push: bool = False
    """``SupportsWait`` is told of a result rather than polling for it."""
    ttl: Support = Support.NO
    supersede_exact: bool = False
    """The rule about replacing records holds under concurrent writers."""
    coordination: bool = False
    max_record_bytes: int | None = None
    max_batch: int = 1000
    notes: tuple[str, ...] = ()


class PoolCapabilities(Struct, frozen=True, kw_only=True):
    """A pool's declared abilities."""

    inline: bool = False
    """Runs on the worker's own thread (``SupportsInline``): no hand-off, one job at a time."""
    max_concurrency: int | None = None
    default_concurrency: int | None = None
    """Slots when nobody says how many; None for the CPUs that the process may use."""
    isolation: bool = False
    """A job that crashes its process leaves the worker and the other jobs alive."""
    sync_tasks: bool = True
    async_tasks: Support = Support.EMULATED
    soft_limit: Support = Support.NO
    hard_limit: Support = Support.NO
    cancel_running: Support = Support.NO
    """``cancel(hard=False)`` ends a running job that does not resist."""
    terminate: bool = False
    """``cancel(hard=True)`` ends any running job at once."""
    limits_sync: bool = True
    """Limits and ``cancel_running`` hold for ``def`` tasks, too; False: for ``async def`` only."""
    resize: bool = False
    recycle: bool = False
    """Honours ``max_tasks_per_child`` and ``max_memory_per_child``."""
    monkey_patches: str | None = None
    """Name of the library that must patch the process before the application is imported (gevent, eventlet)."""
    notes: tuple[str, ...] = ()


def as_dict(capabilities: Any) -> dict[str, Any]:
    """Return a capabilities object as plain data for printing and JSON, in declaration order."""
    return {name: getattr(capabilities, name) for name in capabilities.__struct_fields__}


__all__ = [
    "Capabilities",
    "DeliveryCount",
    "Duplicates",
    "Durability",
    "Durable",
    "Fencing",
    "HandBack",
    "LeaseScope",
    "Ordering",
    "PoolCapabilities",
    "ReadableBy",
    "StoreCapabilities",
    "Support",
    "WakeUp",
    "as_dict",
]  # fmt: skip

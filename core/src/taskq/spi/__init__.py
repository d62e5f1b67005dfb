"""The plugin interface: all that a transport, store, pool, serializer, compressor, scheduler or autoscaler needs.

``SPI_VERSION`` is the interface's own version. Plugins import this package, ``taskq.errors`` and ``taskq.testing``
only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskq.message import (
    ACK,
    DEAD,
    DONE,
    FINISHED,
    RELEASE,
    RELEASED,
    Commit,
    Delivery,
    Fetched,
    Job,
    Lost,
    Outbound,
    Outcome,
    Peeked,
    QueueFacts,
    QueueSpec,
    QueueStats,
    Receipt,
    Record,
    SendFailure,
    Settlement,
    Subscription,
)
from taskq.spi.capabilities import (
    Capabilities,
    DeliveryCount,
    Duplicates,
    Durability,
    Durable,
    Fencing,
    HandBack,
    LeaseScope,
    Ordering,
    PoolCapabilities,
    ReadableBy,
    StoreCapabilities,
    Support,
    WakeUp,
)
from taskq.spi.clock import SYSTEM_CLOCK, Clock, SystemClock
from taskq.spi.formats import Compressor, Serializer
from taskq.spi.options import NoOptions, option
from taskq.spi.pool import (
    Finished,
    Pool,
    PoolSink,
    Running,
    Runtime,
    SupportsInline,
    SupportsInspect,
    TaskLimits,
)
from taskq.spi.scheduling import Autoscaler, Fire, LoadSample, Schedule, Scheduler
from taskq.spi.specs import (
    AutoscalerSpec,
    ComponentConfig,
    ComponentSpec,
    CompressorSpec,
    PoolConfig,
    PoolSpec,
    SchedulerSpec,
    SerializerSpec,
    StoreConfig,
    StoreSpec,
    TransportConfig,
    TransportSpec,
)
from taskq.spi.store import (
    Coordination,
    Op,
    OpKind,
    OpResult,
    ResultStore,
    SupportsStoreMaintenance,
    SupportsTimeIndex,
    SupportsWait,
)
from taskq.spi.transport import (
    Committer,
    Consumer,
    DeclareMode,
    SubscribeOrder,
    SupportsBroadcast,
    SupportsFuse,
    SupportsMaintenance,
    SupportsPeek,
    SupportsPurge,
    SupportsStats,
    SupportsTransactionalSend,
    Transport,
)
from taskq.spi.url import Url, parse_urls, redact_text
from taskq.spi.version import COMPATIBLE_SPI, SPI_VERSION

if TYPE_CHECKING:
    from taskq.spi.hooks import hookimpl


def __getattr__(name: str) -> Any:
    # pluggy is only needed by plugins and at selection, not by every ``import taskq``.
    if name == "hookimpl":
        from taskq.spi.hooks import hookimpl

        return hookimpl
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ACK",
    "COMPATIBLE_SPI",
    "DEAD",
    "DONE",
    "FINISHED",
    "RELEASE",
    "RELEASED",
    "SPI_VERSION",
    "SYSTEM_CLOCK",
    "Autoscaler",
    "AutoscalerSpec",
    "Capabilities",
    "Clock",
    "Commit",
    "Committer",
    "ComponentConfig",
    "ComponentSpec",
    "Compressor",
    "CompressorSpec",
    "Consumer",
    "Coordination",
    "DeclareMode",
    "Delivery",
    "DeliveryCount",
    "Duplicates",
    "Durability",
    "Durable",
    "Fencing",
    "Fetched",
    "Finished",
    "Fire",
    "HandBack",
    "Job",
    "LeaseScope",
    "LoadSample",
    "Lost",
    "NoOptions",
    "Op",
    "OpKind",
    "OpResult",
    "Ordering",
    "Outbound",
    "Outcome",
    "Peeked",
    "Pool",
    "PoolCapabilities",
    "PoolConfig",
    "PoolSink",
    "PoolSpec",
    "QueueFacts",
    "QueueSpec",
    "QueueStats",
    "ReadableBy",
    "Receipt",
    "Record",
    "ResultStore",
    "Running",
    "Runtime",
    "Schedule",
    "Scheduler",
    "SchedulerSpec",
    "SendFailure",
    "Serializer",
    "SerializerSpec",
    "Settlement",
    "StoreCapabilities",
    "StoreConfig",
    "StoreSpec",
    "SubscribeOrder",
    "Subscription",
    "Support",
    "SupportsBroadcast",
    "SupportsFuse",
    "SupportsInline",
    "SupportsInspect",
    "SupportsMaintenance",
    "SupportsPeek",
    "SupportsPurge",
    "SupportsStats",
    "SupportsStoreMaintenance",
    "SupportsTimeIndex",
    "SupportsTransactionalSend",
    "SupportsWait",
    "SystemClock",
    "TaskLimits",
    "Transport",
    "TransportConfig",
    "TransportSpec",
    "Url",
    "WakeUp",
    "hookimpl",
    "option",
    "parse_urls",
    "redact_text",
]

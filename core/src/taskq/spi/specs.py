"""What a plugin answers when it is asked what it offers: one frozen spec per kind, with a factory.

Asking for a spec does no I/O and imports no client library; the factory imports what it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec import Struct

from taskq.spi.capabilities import Capabilities, PoolCapabilities, StoreCapabilities
from taskq.spi.clock import SYSTEM_CLOCK, Clock
from taskq.spi.formats import Compressor, Serializer
from taskq.spi.options import NoOptions
from taskq.spi.pool import Pool
from taskq.spi.scheduling import Autoscaler, Scheduler
from taskq.spi.store import ResultStore
from taskq.spi.transport import Transport
from taskq.spi.url import Url


class TransportConfig(Struct, frozen=True, kw_only=True):
    """What a transport is opened with. ``lease_s`` is None for the capability's default."""

    urls: tuple[Url, ...]
    options: Any
    app: str = "taskq"
    lease_s: float | None = None
    clock: Clock = SYSTEM_CLOCK


class StoreConfig(Struct, frozen=True, kw_only=True):
    """What a result store is opened with."""

    urls: tuple[Url, ...]
    options: Any
    app: str = "taskq"
    clock: Clock = SYSTEM_CLOCK


class PoolConfig(Struct, frozen=True, kw_only=True):
    """What a pool is made with; ``concurrency`` is the number of slots.

    ``max_tasks_per_child`` jobs, or more than ``max_memory_per_child`` bytes of resident memory, end a child process
    after its running job, where the pool declares ``recycle``. ``name`` is the worker's.
    """

    concurrency: int
    options: Any
    name: str = "worker"
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None


class ComponentConfig(Struct, frozen=True, kw_only=True):
    """What a serializer, compressor, scheduler or autoscaler is made with."""

    options: Any
    app: str = "taskq"
    clock: Clock = SYSTEM_CLOCK


class TransportSpec(Struct, frozen=True, kw_only=True):
    """A transport on offer. ``schemes`` are all URL schemes that its entry points name.

    ``capabilities(options)`` gives the widest set without I/O.
    """

    name: str
    schemes: tuple[str, ...]
    factory: Callable[[TransportConfig], Transport]
    capabilities: Callable[[Any], Capabilities]
    options: type = NoOptions
    spi: str
    summary: str = ""


class StoreSpec(Struct, frozen=True, kw_only=True):
    """A result store on offer; fields as in ``TransportSpec``."""

    name: str
    schemes: tuple[str, ...]
    factory: Callable[[StoreConfig], ResultStore]
    capabilities: Callable[[Any], StoreCapabilities]
    options: type = NoOptions
    spi: str
    summary: str = ""


class PoolSpec(Struct, frozen=True, kw_only=True):
    """A pool on offer.

    ``patch`` patches the process, where the capability ``monkey_patches`` says so: ``taskq worker`` calls it before the
    application is imported. The factory raises ConfigError in a process that is not patched.
    """

    name: str
    factory: Callable[[PoolConfig], Pool]
    capabilities: PoolCapabilities
    patch: Callable[[], None] | None = None
    options: type = NoOptions
    spi: str
    summary: str = ""


class SerializerSpec(Struct, frozen=True, kw_only=True):
    """A serializer on offer; ``trusted`` must equal the serializer's own."""

    name: str
    factory: Callable[[ComponentConfig], Serializer]
    trusted: bool = False
    options: type = NoOptions
    spi: str
    summary: str = ""


class CompressorSpec(Struct, frozen=True, kw_only=True):
    """A compressor on offer."""

    name: str
    factory: Callable[[ComponentConfig], Compressor]
    options: type = NoOptions
    spi: str
    summary: str = ""


class SchedulerSpec(Struct, frozen=True, kw_only=True):
    """A scheduler on offer; ``rules`` are the first words of the rules that it keeps; ``shared`` across processes."""

    name: str
    factory: Callable[[ComponentConfig], Scheduler]
    rules: tuple[str, ...] = ("every", "at")
    shared: bool = False
    options: type = NoOptions
    spi: str
    summary: str = ""


class AutoscalerSpec(Struct, frozen=True, kw_only=True):
    """An autoscaler on offer; ``needs`` names the fields of ``LoadSample`` it cannot do without."""

    name: str
    factory: Callable[[ComponentConfig], Autoscaler]
    needs: tuple[str, ...] = ()
    options: type = NoOptions
    spi: str
    summary: str = ""


ComponentSpec = TransportSpec | StoreSpec | PoolSpec | SerializerSpec | CompressorSpec | SchedulerSpec | AutoscalerSpec

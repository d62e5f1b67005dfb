"""Offers the memory transport."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskq.spi import Capabilities, TransportConfig, TransportSpec, hookimpl
from taskq_transport_memory.options import CAPABILITIES

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_memory.transport import MemoryTransport

    return MemoryTransport(config)


def _capabilities(options: Any) -> Capabilities:
    return CAPABILITIES


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="memory",
        schemes=("memory",),
        factory=_make,
        capabilities=_capabilities,
        summary="Queues inside this process, for tests and for programs that are their own worker",
    )

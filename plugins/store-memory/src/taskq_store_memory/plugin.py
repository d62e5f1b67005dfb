"""Offers the memory result store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from taskq.spi import StoreCapabilities, StoreConfig, StoreSpec, hookimpl
from taskq_store_memory.options import CAPABILITIES

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    from taskq_store_memory.store import MemoryStore

    return MemoryStore(config)


def _capabilities(options: Any) -> StoreCapabilities:
    return CAPABILITIES


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="memory",
        schemes=("memory",),
        factory=_make,
        capabilities=_capabilities,
        summary="Results inside this process, for tests and for programs that are their own worker",
    )

"""Offers the ZeroMQ result store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import StoreConfig, StoreSpec, hookimpl
from taskq_store_zeromq.options import SCHEMES, ZeroMQStoreOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    from taskq_store_zeromq.store import ZeroMQStore

    return ZeroMQStore(config)


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="zeromq",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=ZeroMQStoreOptions,
        summary="Results in the hub of the ZeroMQ transport, pushed to whoever waits",
    )

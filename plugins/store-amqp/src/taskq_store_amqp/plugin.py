"""Offers the AMQP result store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import StoreConfig, StoreSpec, hookimpl
from taskq_store_amqp.options import SCHEMES, AmqpStoreOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    from taskq_store_amqp.store import AmqpStore

    return AmqpStore(config)


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="amqp",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=AmqpStoreOptions,
        summary="Results as messages to the process that sent the task, and to nobody else",
    )

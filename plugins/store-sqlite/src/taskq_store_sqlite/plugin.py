"""Offers the SQLite result store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import StoreConfig, StoreSpec, hookimpl
from taskq_store_sqlite.options import SqliteStoreOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    from taskq_store_sqlite.store import SqliteStore

    return SqliteStore(config)


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="sqlite",
        schemes=("sqlite",),
        factory=_make,
        capabilities=capabilities,
        options=SqliteStoreOptions,
        summary="Results in one file, shared by the processes of one machine; needs nothing but Python",
    )

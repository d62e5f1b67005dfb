"""Offers the SQL result store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import StoreConfig, StoreSpec, hookimpl
from taskq_store_sqlalchemy.options import SqlStoreOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    from taskq_store_sqlalchemy.store import SqlStore

    return SqlStore(config)


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="sqlalchemy",
        schemes=("postgresql", "mysql", "mariadb", "sqlite+sqlalchemy"),
        factory=_make,
        capabilities=capabilities,
        options=SqlStoreOptions,
        summary="Results and coordination in PostgreSQL, MariaDB, MySQL or SQLite",
    )

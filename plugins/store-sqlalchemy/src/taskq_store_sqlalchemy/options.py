"""Options and declared abilities; imports no client library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from taskq.spi import Durable, ReadableBy, StoreCapabilities, Support, option
from taskq_lib_sqlalchemy.options import DatabaseOptions


@dataclass(frozen=True, kw_only=True)
class SqlStoreOptions(DatabaseOptions):
    """How results are kept and waited for."""

    listen: bool = option(True, help="PostgreSQL: have results pushed by NOTIFY; False: poll (a pooler without LISTEN)")
    poll_min: float = option(0.01, minimum=0.001, unit="s", help="shortest time between looks for a result")
    poll_max: float = option(0.5, minimum=0.01, unit="s", help="longest time between looks for a result")


def capabilities(options: Any) -> StoreCapabilities:
    """Return the widest set, that of PostgreSQL."""
    return StoreCapabilities(
        cross_process=True,
        network=True,
        keeps=Durable.DURABLE,
        readable_by=ReadableBy.ANYONE,
        push=True,
        ttl=Support.NATIVE,
        supersede_exact=True,
        coordination=True,
        max_record_bytes=500_000_000,
        max_batch=1000,
        notes=(
            "PostgreSQL pushes results to the caller by NOTIFY; with MariaDB, MySQL and SQLite the caller polls",
            "expired records are never returned; some worker deletes them in the background",
        ),
    )

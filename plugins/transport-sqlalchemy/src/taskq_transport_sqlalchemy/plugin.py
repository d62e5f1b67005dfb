"""Offers the SQL transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_sqlalchemy.options import SqlTransportOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_sqlalchemy.transport import SqlTransport

    return SqlTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="sqlalchemy",
        schemes=("postgresql", "mysql", "mariadb", "sqlite+sqlalchemy"),
        factory=_make,
        capabilities=capabilities,
        options=SqlTransportOptions,
        summary="Queues in PostgreSQL, MariaDB, MySQL or SQLite, with sending inside your own transaction",
    )

"""Offers the SQLite transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_sqlite.options import SqliteOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_sqlite.transport import SqliteTransport

    return SqliteTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="sqlite",
        schemes=("sqlite",),
        factory=_make,
        capabilities=capabilities,
        options=SqliteOptions,
        summary="Queues in one file, shared by the processes of one machine; needs nothing but Python",
    )

"""Offers the ZeroMQ transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_zeromq.options import SCHEMES, ZeroMQOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_zeromq.transport import ZeroMQTransport

    return ZeroMQTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="zeromq",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=ZeroMQOptions,
        summary="Queues without a broker, in a small hub of its own: the shortest round trip over a network",
    )

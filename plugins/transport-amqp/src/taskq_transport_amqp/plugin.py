"""Offers the AMQP transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_amqp.options import SCHEMES, AmqpOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_amqp.transport import AmqpTransport

    return AmqpTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="amqp",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=AmqpOptions,
        summary="Queues on a RabbitMQ server, replicated by default; routing by topic and fan-out",
    )

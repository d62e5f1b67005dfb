"""Offers the SQS transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_sqs.options import SCHEMES, SqsOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_sqs.transport import SqsTransport

    return SqsTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="sqs",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=SqsOptions,
        summary="Standard and FIFO queues of Amazon SQS",
    )

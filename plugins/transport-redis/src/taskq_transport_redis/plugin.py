"""Offers the Redis transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_redis.options import SCHEMES, RedisOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    from taskq_transport_redis.transport import RedisTransport

    return RedisTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="redis",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=RedisOptions,
        summary="Queues on a Redis or Valkey server: the highest rates and sub-millisecond round trips",
    )

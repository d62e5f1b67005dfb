"""Offers the Redis transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import TransportConfig, TransportSpec, hookimpl
from taskq_transport_redis.options import CLUSTER_SCHEMES, SCHEMES, RedisOptions, capabilities, cluster_capabilities

if TYPE_CHECKING:
    from taskq.spi import Transport


def _make(config: TransportConfig) -> Transport:
    if config.urls[0].scheme in CLUSTER_SCHEMES:
        from taskq_transport_redis.cluster import ClusterTransport

        return ClusterTransport(config)
    from taskq_transport_redis.transport import RedisTransport

    return RedisTransport(config)


@hookimpl
def taskq_transport(scheme: str) -> TransportSpec:
    return TransportSpec(
        spi="0.1",
        name="redis",
        schemes=SCHEMES,
        factory=_make,
        capabilities=cluster_capabilities if scheme in CLUSTER_SCHEMES else capabilities,
        options=RedisOptions,
        summary="Queues on a Redis or Valkey server: the highest rates and sub-millisecond round trips",
    )

"""Offers the Redis result store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from taskq.spi import StoreConfig, StoreSpec, hookimpl
from taskq_store_redis.options import CLUSTER_SCHEMES, SCHEMES, RedisStoreOptions, capabilities

if TYPE_CHECKING:
    from taskq.spi import ResultStore


def _make(config: StoreConfig) -> ResultStore:
    if config.urls[0].scheme in CLUSTER_SCHEMES:
        from taskq_store_redis.cluster import ClusterStore

        return ClusterStore(config)
    from taskq_store_redis.store import RedisStore

    return RedisStore(config)


@hookimpl
def taskq_result_store(scheme: str) -> StoreSpec:
    return StoreSpec(
        spi="0.1",
        name="redis",
        schemes=SCHEMES,
        factory=_make,
        capabilities=capabilities,
        options=RedisStoreOptions,
        summary="Results on a Redis or Valkey server, pushed to whoever waits",
    )

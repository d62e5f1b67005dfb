"""Hook implementations of the gevent pool."""

from __future__ import annotations

from taskq.spi import Pool, PoolConfig, PoolSpec, hookimpl
from taskq_lib_pool.promises import green_capabilities


def make(config: PoolConfig) -> Pool:
    """Make the pool; imports gevent. Errors: ConfigError for a concurrency below 1, or a process not patched."""
    from taskq_pool_gevent.pool import make_pool

    return make_pool(config)


def patch() -> None:
    """Patch the process; before anything else is imported."""
    from taskq_pool_gevent.pool import patch_process

    patch_process()


@hookimpl
def taskq_pool(name: str) -> PoolSpec:
    """Offer the pool."""
    return PoolSpec(
        spi="0.1",
        name=name,
        factory=make,
        capabilities=green_capabilities("gevent"),
        patch=patch,
        summary="tasks on gevent's greenlets, thousands at a time, in a patched process",
    )

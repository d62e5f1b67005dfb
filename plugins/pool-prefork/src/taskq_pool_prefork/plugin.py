"""Hook implementations of the prefork pool."""

from __future__ import annotations

from taskq.spi import Pool, PoolConfig, PoolSpec, hookimpl
from taskq_pool_prefork.options import CAPABILITIES, PreforkOptions


def make(config: PoolConfig) -> Pool:
    """Make the pool; imports the driver. Errors: ConfigError for a concurrency below 1."""
    from taskq_pool_prefork.pool import PreforkPool

    return PreforkPool(config)


@hookimpl
def taskq_pool(name: str) -> PoolSpec:
    """Offer the pool."""
    return PoolSpec(
        spi="0.1",
        name=name,
        factory=make,
        capabilities=CAPABILITIES,
        options=PreforkOptions,
        summary="tasks in child processes: uses all CPUs, ends tasks by force, survives their crashes",
    )

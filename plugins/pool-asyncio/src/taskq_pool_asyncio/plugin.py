"""Hook implementations of the asyncio pool."""

from __future__ import annotations

from taskq.spi import Pool, PoolCapabilities, PoolConfig, PoolSpec, Support, hookimpl
from taskq_pool_asyncio.options import AsyncioOptions

CAPABILITIES = PoolCapabilities(
    default_concurrency=100,
    async_tasks=Support.NATIVE,
    soft_limit=Support.NATIVE,
    hard_limit=Support.NATIVE,
    cancel_running=Support.NATIVE,
    limits_sync=False,
    resize=True,
    notes=(
        "Limits and cancellation reach an async def task where it awaits, as CancelledError.",
        "A task that resists its hard limit for a second is reported as ended, and left to itself.",
        "A task that blocks the event loop stops all others; it is warned of, and cannot be ended.",
        "A def task runs on a thread: it cannot be ended, and computing tasks share one interpreter.",
    ),
)


def make(config: PoolConfig) -> Pool:
    """Make the pool; imports the driver. Errors: ConfigError for a concurrency below 1, or a missing uvloop."""
    from taskq_pool_asyncio.pool import AsyncioPool

    return AsyncioPool(config)


@hookimpl
def taskq_pool(name: str) -> PoolSpec:
    """Offer the pool."""
    return PoolSpec(
        spi="0.1",
        name=name,
        factory=make,
        capabilities=CAPABILITIES,
        options=AsyncioOptions,
        summary="async def tasks on an event loop, thousands at a time; def tasks on threads",
    )

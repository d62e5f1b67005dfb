"""Hook implementations of the solo pool."""

from __future__ import annotations

from taskq.spi import Pool, PoolCapabilities, PoolConfig, PoolSpec, Support, hookimpl

CAPABILITIES = PoolCapabilities(
    inline=True,
    max_concurrency=1,
    async_tasks=Support.EMULATED,
    soft_limit=Support.NATIVE,
    cancel_running=Support.NATIVE,
    notes=(
        "async def tasks run one at a time, each to its end.",
        "Soft limits and cancelling need the main thread: a worker embedded on another one refuses tasks with a limit.",
        "Nothing ends a task that catches what is raised in it: hard limits need a pool of processes.",
    ),
)


def make(config: PoolConfig) -> Pool:
    """Make the pool; imports the driver. Errors: NotSupported for a concurrency other than 1."""
    from taskq_pool_solo.pool import SoloPool

    return SoloPool(config)


@hookimpl
def taskq_pool(name: str) -> PoolSpec:
    """Offer the pool."""
    return PoolSpec(
        spi="0.1",
        name=name,
        factory=make,
        capabilities=CAPABILITIES,
        summary="one task at a time on the worker's own thread: least overhead, nothing in parallel",
    )

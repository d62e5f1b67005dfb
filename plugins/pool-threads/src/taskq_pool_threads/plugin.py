"""Hook implementations of the threads pool."""

from __future__ import annotations

from taskq.spi import Pool, PoolCapabilities, PoolConfig, PoolSpec, Support, hookimpl

CAPABILITIES = PoolCapabilities(
    async_tasks=Support.EMULATED,
    soft_limit=Support.EMULATED,
    cancel_running=Support.EMULATED,
    resize=True,
    notes=(
        "An async def task occupies a thread and runs there to its end.",
        "Soft limits and cancelling raise an exception on the task's thread: in C code (a query, a sleep) at its end.",
        "Nothing ends a task that does not give way: hard limits need a pool of processes.",
        "Threads share one interpreter: tasks that compute do not run faster than on one thread.",
    ),
)


def make(config: PoolConfig) -> Pool:
    """Make the pool; imports the driver. Errors: ConfigError for a concurrency below 1."""
    from taskq_pool_threads.pool import ThreadsPool

    return ThreadsPool(config)


@hookimpl
def taskq_pool(name: str) -> PoolSpec:
    """Offer the pool."""
    return PoolSpec(
        spi="0.1",
        name=name,
        factory=make,
        capabilities=CAPABILITIES,
        summary="tasks on threads of one process: for tasks that wait for files, databases and networks",
    )

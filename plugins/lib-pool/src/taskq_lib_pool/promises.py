"""What a pool of greenlets can do; imports nothing of one."""

from __future__ import annotations

from taskq.spi import PoolCapabilities, Support


def green_capabilities(library: str) -> PoolCapabilities:
    """Return the capabilities of a pool whose process this library patches."""
    return PoolCapabilities(
        default_concurrency=100,
        async_tasks=Support.NATIVE,
        soft_limit=Support.NATIVE,
        hard_limit=Support.NATIVE,
        cancel_running=Support.NATIVE,
        resize=True,
        monkey_patches=library,
        notes=(
            "Limits and cancellation reach a task where it waits; one that computes, or waits in C code, stops all.",
            "A task that resists its hard limit for a second is reported as ended, and left to itself.",
            "An async def task runs on an event loop, on a thread of the system beside the greenlets.",
        ),
    )

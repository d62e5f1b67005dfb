"""Hook implementations of the simple scheduler."""

from __future__ import annotations

from taskq.spi import ComponentConfig, Scheduler, SchedulerSpec, hookimpl
from taskq_scheduler_simple.options import SimpleSchedulerOptions


def make(config: ComponentConfig) -> Scheduler:
    """Make the scheduler; imports the driver."""
    from taskq_scheduler_simple.scheduler import SimpleScheduler

    return SimpleScheduler(config.options)


@hookimpl
def taskq_scheduler(name: str) -> SchedulerSpec:
    """Offer the scheduler."""
    return SchedulerSpec(
        spi="0.1",
        name=name,
        factory=make,
        rules=("every", "at"),
        options=SimpleSchedulerOptions,
        summary="fixed intervals and single moments, kept in memory or in one file of this machine",
    )

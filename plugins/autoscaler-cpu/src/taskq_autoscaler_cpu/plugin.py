"""Hook implementations of the CPU autoscaler."""

from __future__ import annotations

from taskq.spi import Autoscaler, AutoscalerSpec, ComponentConfig, hookimpl
from taskq_autoscaler_cpu.options import CpuAutoscalerOptions


def make(config: ComponentConfig) -> Autoscaler:
    """Make the autoscaler; imports the driver. Errors: ConfigError for an option out of its range."""
    from taskq_autoscaler_cpu.autoscaler import CpuAutoscaler

    return CpuAutoscaler(config.options)


@hookimpl
def taskq_autoscaler(name: str) -> AutoscalerSpec:
    """Offer the autoscaler."""
    return AutoscalerSpec(
        spi="0.1",
        name=name,
        factory=make,
        options=CpuAutoscalerOptions,
        summary="more slots while tasks wait and the CPU has time left, fewer when it has not; quick up, slow down",
    )

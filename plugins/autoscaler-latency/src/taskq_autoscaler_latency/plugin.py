"""Hook implementations of the latency autoscaler."""

from __future__ import annotations

from taskq.spi import Autoscaler, AutoscalerSpec, ComponentConfig, hookimpl
from taskq_autoscaler_latency.options import LatencyAutoscalerOptions


def make(config: ComponentConfig) -> Autoscaler:
    """Make the autoscaler; imports the driver. Errors: ConfigError for an option out of its range."""
    from taskq_autoscaler_latency.autoscaler import LatencyAutoscaler

    return LatencyAutoscaler(config.options)


@hookimpl
def taskq_autoscaler(name: str) -> AutoscalerSpec:
    """Offer the autoscaler."""
    return AutoscalerSpec(
        spi="0.1",
        name=name,
        factory=make,
        options=LatencyAutoscalerOptions,
        summary="as many slots as keep tasks from waiting longer than an objective; quick up, slow down",
    )

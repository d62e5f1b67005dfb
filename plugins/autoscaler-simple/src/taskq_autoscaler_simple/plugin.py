"""Hook implementations of the simple autoscaler."""

from __future__ import annotations

from taskq.spi import Autoscaler, AutoscalerSpec, ComponentConfig, hookimpl
from taskq_autoscaler_simple.options import SimpleAutoscalerOptions


def make(config: ComponentConfig) -> Autoscaler:
    """Make the autoscaler; imports the driver. Errors: ConfigError for an option out of its range."""
    from taskq_autoscaler_simple.autoscaler import SimpleAutoscaler

    return SimpleAutoscaler(config.options)


@hookimpl
def taskq_autoscaler(name: str) -> AutoscalerSpec:
    """Offer the autoscaler."""
    return AutoscalerSpec(
        spi="0.1",
        name=name,
        factory=make,
        options=SimpleAutoscalerOptions,
        summary="as many slots as are busy, with headroom, and more for what waits; quick up, slow down",
    )

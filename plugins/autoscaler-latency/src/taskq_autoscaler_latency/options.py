"""Options of the latency autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class LatencyAutoscalerOptions:
    """What the latency autoscaler can be told."""

    objective_s: float = option(5.0, minimum=0.001, unit="s", help="how long a task may wait before it is started")
    target_busy: float = option(0.8, minimum=0.05, help="share of the slots that shall be busy; the rest is headroom")
    up_s: float = option(10.0, minimum=0.0, unit="s", help="how slowly a rising need is believed; 0: at once")
    down_s: float = option(60.0, minimum=0.0, unit="s", help="how slowly a falling need is believed; 0: at once")
    tolerance: float = option(
        0.3,
        minimum=0.0,
        help="how far the need must fall below the slots, as a share of it, before some are given back",
    )

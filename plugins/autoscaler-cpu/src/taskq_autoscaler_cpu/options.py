"""Options of the CPU autoscaler."""

from __future__ import annotations

from dataclasses import dataclass

from taskq.spi import option


@dataclass(frozen=True)
class CpuAutoscalerOptions:
    """What the CPU autoscaler can be told."""

    target_cpu: float = option(
        0.85, minimum=0.05, help="share of the CPUs that this worker may use which its processes shall use at most"
    )
    target_busy: float = option(0.8, minimum=0.05, help="share of the slots that shall be busy; the rest is headroom")
    target_backlog_per_slot: float = option(
        4.0, minimum=0.01, help="messages that may wait for each slot; more of them call for more slots"
    )
    up_s: float = option(15.0, minimum=0.0, unit="s", help="how slowly a rising need is believed; 0: at once")
    down_s: float = option(60.0, minimum=0.0, unit="s", help="how slowly a falling need is believed; 0: at once")
    tolerance: float = option(
        0.3,
        minimum=0.0,
        help="how far the need must fall below the slots, as a share of it, before some are given back",
    )

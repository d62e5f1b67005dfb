"""The autoscaler: slots are multiplied by how far the waiting time exceeds its objective."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from taskq.errors import ConfigError
from taskq.spi import LoadSample
from taskq_autoscaler_latency.options import LatencyAutoscalerOptions


class Smoothed(Struct, frozen=True):
    """The state: the smoothed need in slots, and when it was computed."""

    need: float
    at: float


class LatencyAutoscaler:
    """Wants the busy slots divided by ``target_busy``, and more when tasks wait longer than ``objective_s``.

    The waiting time is the age of the oldest waiting task where the transport can tell, else what tasks have waited
    that were started lately. Where the backlog and the pace are known, no more slots are asked for than would clear
    the backlog within the objective: a single old task is no reason to double them.
    """

    def __init__(self, options: LatencyAutoscalerOptions | None = None) -> None:
        chosen = options or LatencyAutoscalerOptions()
        if not chosen.objective_s > 0:
            found = chosen.objective_s
            raise ConfigError(f"The latency autoscaler's option objective_s is {found}; it must be above 0.")
        if not 0 < chosen.target_busy <= 1:
            found = chosen.target_busy
            raise ConfigError(
                f"The latency autoscaler's option target_busy is {found}; it is a share above 0, 1 at most."
            )
        self._options = chosen

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        """Return the wanted number of slots and the new state."""
        options, slots = self._options, sample.slots
        if state is None:  # the first look: keep what there is, nothing is known of the load before
            state = Smoothed(float(slots), sample.at)
        # Twice the slots at most: the kernel's bound may be low, and a need far above it would take long to forget.
        load = min(self._load(sample), 2.0 * slots + 1.0)
        slowness = options.up_s if load > state.need else options.down_s
        passed = max(0.0, sample.at - state.at)
        weight = 1.0 - math.exp(-passed / slowness) if slowness > 0 else 1.0
        need = state.need + (load - state.need) * weight
        # Up at once when the need exceeds the slots, down only with a margin: between the two, nothing changes.
        enough = math.ceil(need * (1.0 + options.tolerance) + 0.5)
        wanted = math.ceil(need) if need > slots else min(slots, enough)
        return wanted, Smoothed(need, sample.at)

    def _load(self, sample: LoadSample) -> float:
        """Return the slots that this load needs."""
        options, busy = self._options, sample.busy
        running = busy / options.target_busy
        waited = sample.oldest_age if sample.oldest_age is not None else sample.wait_p95
        if waited is None or waited <= options.objective_s:
            return running
        late = max(1, sample.slots) * waited / options.objective_s
        if sample.backlog is not None and sample.completed_per_s > 0.0:
            each = max(1, busy) / sample.completed_per_s  # a first busy slot must not be a reason for fewer
            late = min(late, running + sample.backlog * each / options.objective_s)
        return max(running, late)

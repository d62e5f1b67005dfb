"""The autoscaler: the need of the load, and at most as many slots as the CPU can bear."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from taskq.errors import ConfigError
from taskq.spi import LoadSample
from taskq_autoscaler_cpu.options import CpuAutoscalerOptions


class Smoothed(Struct, frozen=True):
    """The state: the smoothed need in slots, and when it was computed."""

    need: float
    at: float


class CpuAutoscaler:
    """Wants slots for what runs and waits, and no more of them than use ``target_cpu`` of the CPUs.

    What a busy slot uses is the present use divided by the busy slots, so tasks that wait for others get many slots,
    and tasks that compute about one per CPU. Where the use is not known, the load alone decides.
    """

    def __init__(self, options: CpuAutoscalerOptions | None = None) -> None:
        chosen = options or CpuAutoscalerOptions()
        for name in ("target_cpu", "target_busy"):
            value = getattr(chosen, name)
            if not 0 < value <= 1:
                raise ConfigError(f"The CPU autoscaler's option {name} is {value}; it is a share above 0, 1 at most.")
        if not chosen.target_backlog_per_slot > 0:
            found = chosen.target_backlog_per_slot
            raise ConfigError(f"The CPU autoscaler's option target_backlog_per_slot is {found}; it must be above 0.")
        self._options = chosen

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        """Return the wanted number of slots and the new state."""
        options, slots = self._options, sample.slots
        if state is None:  # the first look: keep what there is, nothing is known of the load before
            state = Smoothed(float(slots), sample.at)
        load = sample.busy / options.target_busy + (sample.backlog or 0) / options.target_backlog_per_slot
        # Twice the slots at most: the kernel's bound may be low, and a need far above it would take long to forget.
        load = min(load, 2.0 * slots + 1.0)
        if sample.cpu:
            # nothing busy counts as one slot: a first task must not be a reason for fewer
            load = min(load, max(1.0, max(1, sample.busy) * options.target_cpu / sample.cpu))
        slowness = options.up_s if load > state.need else options.down_s
        passed = max(0.0, sample.at - state.at)
        weight = 1.0 - math.exp(-passed / slowness) if slowness > 0 else 1.0
        need = state.need + (load - state.need) * weight
        # Up at once when the need exceeds the slots, down only with a margin: between the two, nothing changes.
        enough = math.ceil(need * (1.0 + options.tolerance) + 0.5)
        wanted = math.ceil(need) if need > slots else min(slots, enough)
        return wanted, Smoothed(need, sample.at)

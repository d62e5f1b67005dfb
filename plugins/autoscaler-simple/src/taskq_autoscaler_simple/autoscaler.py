"""The autoscaler: a need is computed from the load, smoothed, and compared with the slots there are."""

from __future__ import annotations

import math
from typing import Any

from msgspec import Struct

from taskq.errors import ConfigError
from taskq.spi import LoadSample
from taskq_autoscaler_simple.options import SimpleAutoscalerOptions


class Smoothed(Struct, frozen=True):
    """The state: the smoothed need in slots, and when it was computed."""

    need: float
    at: float


class SimpleAutoscaler:
    """Wants the busy slots divided by ``target_busy``, and one for each ``target_backlog_per_slot`` messages that wait.

    How many slots are busy does not depend on how many are idle, so a constant load has one answer, whatever the number
    of slots was before. What is smoothed is the need, with one time constant for a rising and one for a falling load.
    """

    def __init__(self, options: SimpleAutoscalerOptions | None = None) -> None:
        chosen = options or SimpleAutoscalerOptions()
        for name in ("target_busy", "target_backlog_per_slot"):
            value = getattr(chosen, name)
            if not value > 0:
                raise ConfigError(f"The simple autoscaler's option {name} is {value}; it must be above 0.")
        if chosen.target_busy > 1:
            found = chosen.target_busy
            raise ConfigError(f"The simple autoscaler's option target_busy is {found}; it is a share, 1 at most.")
        self._options = chosen

    def decide(self, sample: LoadSample, state: Any) -> tuple[int, Any]:
        """Return the wanted number of slots and the new state."""
        options, slots = self._options, sample.slots
        if state is None:  # the first look: keep what there is, nothing is known of the load before
            state = Smoothed(float(slots), sample.at)
        load = sample.busy / options.target_busy + (sample.backlog or 0) / options.target_backlog_per_slot
        # Twice the slots at most: the kernel's bound may be low, and a need far above it would take long to forget.
        load = min(load, 2.0 * slots + 1.0)
        slowness = options.up_s if load > state.need else options.down_s
        passed = max(0.0, sample.at - state.at)
        weight = 1.0 - math.exp(-passed / slowness) if slowness > 0 else 1.0
        need = state.need + (load - state.need) * weight
        # Up at once when the need exceeds the slots, down only with a margin: between the two, nothing changes.
        enough = math.ceil(need * (1.0 + options.tolerance) + 0.5)
        wanted = math.ceil(need) if need > slots else min(slots, enough)
        return wanted, Smoothed(need, sample.at)

"""How much to take: free slots, plus what the pool will have finished by the time the next batch can be here.

Estimates are kept per task name and the slowest name seen lately rules, because the next batch may hold nothing else.
So no-op floods move in batches of hundreds, and one task of a second brings the worker back to taking one at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

from taskq.spi.pool import Finished

_WINDOW = 0.05
"""Seconds of work to hold; a batch that takes this long to run hides its own round trip well."""
_KEEP = 0.7
"""Weight of the past in an estimate."""
_FORGET_AFTER = 20
"""Batches without a task after which its estimate no longer rules."""


class TakeEstimator:
    """Says how many messages to hold; fed with every finished batch."""

    __slots__ = ("_batch", "_cap", "_estimates", "_grown", "_slots", "_window", "stalled", "worst")

    def __init__(self, slots: int, cap: int) -> None:
        self._slots = slots
        self._cap = cap
        self._window = _WINDOW
        self._grown = slots
        self._batch = 0
        self._estimates: dict[str, tuple[float, int]] = {}
        self.worst: float | None = None
        self.stalled = False
        """Set when work had to be handed back behind a slow task: nothing is taken ahead until something ends."""

    def resize(self, slots: int) -> None:
        """Take a new number of slots into account."""
        self._slots = slots

    def round_trip(self, seconds: float) -> None:
        """Take the time of a fetch into account that found messages at once."""
        self._window = max(_WINDOW, 2 * seconds)

    def saw(self, tasks: Sequence[str], batch: Sequence[Finished]) -> None:
        """Learn from a finished batch; ``tasks`` are the names of its jobs, in the same order."""
        self.stalled = False
        self._batch += 1
        estimates, number = self._estimates, self._batch
        worst_of: dict[str, float] = {}
        if tasks.count(tasks[0]) == len(tasks):
            worst_of[tasks[0]] = sum([finished.elapsed for finished in batch]) / len(tasks)
        else:
            name, total, count = tasks[0], 0.0, 0
            for task, finished in zip(tasks, batch, strict=True):
                if task is not name and task != name:
                    worst_of[name] = max(worst_of.get(name, 0.0), total / count)
                    name, total, count = task, 0.0, 0
                total += finished.elapsed
                count += 1
            worst_of[name] = max(worst_of.get(name, 0.0), total / count)
        for task, mean in worst_of.items():
            known = estimates.get(task)
            # a slow run counts at once, a fast one only bit by bit
            value = mean if known is None or mean > known[0] else known[0] * _KEEP + mean * (1 - _KEEP)
            estimates[task] = (value, number)
        if len(estimates) > len(worst_of):
            for task in [t for t, (_, seen) in estimates.items() if number - seen > _FORGET_AFTER]:
                del estimates[task]
        self.worst = max(value for value, _ in estimates.values())

    def target(self) -> int:
        """Return how many messages to hold at most, those running included."""
        worst = self.worst
        if worst is None or self.stalled:
            return self._slots
        ahead = int(self._slots * self._window / worst) if worst > 1e-9 else self._cap
        # Grow by doubling: one fast batch says little about the next.
        self._grown = min(self._cap + self._slots, max(self._slots, self._grown) * 2)
        return max(self._slots, min(self._cap, ahead, self._grown))

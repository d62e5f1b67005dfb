"""Autoscaling: asks the chosen autoscaler for a number of slots, and keeps to the bounds and the cool-down."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TransportError
from taskq.message import QueueStats
from taskq.spi.scheduling import Autoscaler, LoadSample
from taskq.spi.transport import SupportsStats

if TYPE_CHECKING:
    from taskq.worker.worker import Worker

logger = logging.getLogger("taskq.worker")
_PERIOD = 1.0
_COOL_DOWN = 5.0
"""Seconds after a change in which the pool does not shrink; it may grow at any time."""


class Autoscale:
    """Resizes one worker's pool within ``worker.autoscale``."""

    def __init__(self, worker: Worker, autoscaler: Autoscaler, low: int, high: int) -> None:
        self._worker = worker
        self._autoscaler = autoscaler
        self._low, self._high = low, high
        self._state: Any = None
        self._next = 0.0
        self._changed = 0.0
        self._progress = 0
        self._at = 0.0

    @classmethod
    def of(cls, worker: Worker) -> Autoscale | None:
        """Return a worker's autoscaling, None where it is not set."""
        bounds = worker.settings.autoscale
        if bounds is None:
            return None
        autoscaler: Autoscaler = worker.app.component("autoscaler", worker.settings.autoscaler)
        return cls(worker, autoscaler, min(bounds), max(bounds))

    def tick(self, now: float) -> None:
        """Take a sample and act on it, once a second; ``now`` is monotonic."""
        if now < self._next:
            return
        self._next = now + _PERIOD
        worker = self._worker
        wanted, self._state = self._autoscaler.decide(self._sample(now), self._state)
        wanted = max(self._low, min(self._high, wanted))
        if wanted == worker.slots or (wanted < worker.slots and now - self._changed < _COOL_DOWN):
            return
        self._changed = now
        before, worker.slots = worker.slots, worker.pool.resize(wanted)
        worker.engine.take.resize(worker.slots)
        logger.info("autoscale: %d slots instead of %d", worker.slots, before)

    def _sample(self, now: float) -> LoadSample:
        worker = self._worker
        backlog: int | None = None
        oldest: float | None = None
        if isinstance(worker.transport, SupportsStats):
            counts: Sequence[QueueStats] = ()
            try:
                counts = list(worker.transport.stats([q.queue for q in worker.queues]).values())
            except TransportError as error:
                logger.debug("autoscale: no counts this time: %s", error)
            known = [c.ready for c in counts if c.ready is not None]
            ages = [c.oldest_age for c in counts if c.oldest_age is not None]
            backlog = sum(known) if known else None
            oldest = max(ages) if ages else None
        done, elapsed = worker.progress - self._progress, now - self._at
        self._progress, self._at = worker.progress, now
        busy = min(worker.slots, len(worker.held))
        rate = done / elapsed if self._at and elapsed > 0 else 0.0
        return LoadSample(
            at=time.time(), slots=worker.slots, busy=busy, backlog=backlog, oldest_age=oldest, completed_per_s=rate
        )

"""Autoscaling: asks the chosen autoscaler for a number of slots, and keeps to the bounds and the cool-down."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskq.envelope import NOT_BEFORE
from taskq.errors import TransportError
from taskq.message import QueueStats
from taskq.spi.pool import SupportsInspect
from taskq.spi.scheduling import Autoscaler, LoadSample
from taskq.spi.transport import SupportsStats
from taskq.worker.plan import cpu_count

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
        self._cpu = CpuMeter()

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
        worker.wanted_slots = wanted
        wanted = max(self._low, min(self._high, wanted))
        if wanted == worker.slots or (wanted < worker.slots and now - self._changed < _COOL_DOWN):
            return
        self._changed = now
        before, worker.slots = worker.slots, worker.pool.resize(wanted)
        for lane in worker.lanes_up:
            lane.engine.take.resize(worker.slots)
        facts = {"slots": worker.slots, "wanted_slots": worker.wanted_slots}
        logger.info("autoscale: %d slots instead of %d", worker.slots, before, extra=facts)

    def _sample(self, now: float) -> LoadSample:
        worker = self._worker
        backlog: int | None = None
        oldest: float | None = None
        counts: list[QueueStats] = []
        for lane in worker.lanes_up:
            if isinstance(lane.transport, SupportsStats) and not lane.broker_down:
                try:
                    counts += lane.transport.stats([q.queue for q in lane.queues]).values()
                except TransportError as error:
                    logger.debug("autoscale: no counts this time: %s", error)
        known = [c.ready for c in counts if c.ready is not None]
        ages = [c.oldest_age for c in counts if c.oldest_age is not None]
        if counts:
            backlog = sum(known) if known else None
            oldest = max(ages) if ages else None
        waited = self._waited(self._at)
        progress = sum(lane.progress for lane in worker.lanes)
        done, elapsed = progress - self._progress, now - self._at
        self._progress, self._at = progress, now
        busy = min(worker.slots, worker.held_count())
        rate = done / elapsed if self._at and elapsed > 0 else 0.0
        return LoadSample(
            at=time.time(), slots=worker.slots, busy=busy, backlog=backlog, oldest_age=oldest, completed_per_s=rate,
            wait_p95=waited, cpu=self._cpu.share(now),
        )  # fmt: skip

    def _waited(self, since: float) -> float | None:
        """Return what running tasks had waited that were started since a moment (monotonic), by the sender's clock."""
        worker = self._worker
        if not isinstance(worker.pool, SupportsInspect):
            return None
        offset = time.time() - time.monotonic()
        waits = []
        for running in worker.pool.running():
            job = worker.find_held(running.key)
            if running.since >= since and job is not None and job.header is not None and not job.header.attempt:
                due = max(job.header.enqueued_at, job.header.get(NOT_BEFORE) or 0.0)
                waits.append(max(0.0, running.since + offset - due))
        return sorted(waits)[int(len(waits) * 0.95)] if waits else None


class CpuMeter:
    """Measures what this process and all below it use of the CPUs, by /proc where there is one."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._seen: dict[int, float] = {}
        self._at = 0.0

    def share(self, now: float) -> float | None:
        """Return the share of the usable CPUs (0 to 1) that was used since the last call; None at first."""
        seen = self._times()
        before, self._seen, since, self._at = self._seen, seen, self._at, now
        if not before or now <= since:
            return None
        # a process that is new counts whole, one that has gone not at all
        used = sum(max(0.0, spent - before.get(process, 0.0)) for process, spent in seen.items())
        return min(1.0, used / (now - since) / cpu_count())

    def _times(self) -> dict[int, float]:
        """Return the CPU seconds of each process of the tree."""
        found = {os.getpid(): time.process_time()}
        waiting = [os.getpid()]
        tick = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
        while waiting:
            parent = waiting.pop()
            for listed in self._proc.glob(f"{parent}/task/*/children"):
                try:
                    children = [int(text) for text in listed.read_text().split()]
                except OSError:
                    continue
                for child in children:
                    try:
                        fields = (self._proc / str(child) / "stat").read_text().rpartition(")")[2].split()
                    except OSError:
                        continue  # it has just ended
                    found[child] = (int(fields[11]) + int(fields[12])) / tick
                    waiting.append(child)
        return found

"""Several pools in one worker, seen by the engine as one.

Jobs wait in a lane before their pool. What a full pool will not take soon leaves its lane again: it is handed back to
the broker with a pause, so that other workers may have it, while the other pools of this worker go on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from taskq.message import Job
from taskq.spi.pool import Pool, PoolSink, Running, Runtime, SupportsInspect

if TYPE_CHECKING:
    from taskq.worker.plan import PlannedPool

logger = logging.getLogger("taskq.worker")
_LANE = 16
"""Fewest jobs that may wait before a pool, beside as many as it has slots."""
_WARN_EVERY = 60.0


class _Lane:
    """One pool, and the jobs that wait for it."""

    def __init__(self, planned: PlannedPool, pool: Pool) -> None:
        self.name = planned.spec.name
        self.pool = pool
        self.most = planned.slots + max(_LANE, planned.slots)
        self.waiting: deque[Job] = deque()
        self.warned = 0.0

    def feed(self) -> None:
        """Give the pool what it takes."""
        waiting = self.waiting
        while waiting:
            jobs = list(waiting)
            count = self.pool.submit(jobs)
            for _ in range(count):
                waiting.popleft()
            if count < len(jobs):
                return


class PoolSet:
    """A pool made of pools; see ``taskq.spi.Pool``. ``overflow`` is called with jobs that must leave the worker."""

    def __init__(
        self,
        members: Sequence[tuple[PlannedPool, Pool]],
        route: Callable[[Job], int],
        overflow: Callable[[Sequence[Job]], None],
    ) -> None:
        self._lanes = [_Lane(planned, pool) for planned, pool in members]
        self._route = route
        self._overflow = overflow
        self._moving = threading.Lock()
        self._sink: PoolSink | None = None

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start all pools; if one cannot, stop the others."""
        self._sink = sink
        started: list[_Lane] = []
        try:
            for lane in self._lanes:
                lane.pool.start(runtime, sink)
                started.append(lane)
        except BaseException:
            for lane in started:
                lane.pool.stop(time.monotonic())
            raise

    def free(self) -> int:
        """Return the free slots of all pools, those left out whose lane is full."""
        return sum(max(0, lane.pool.free() - len(lane.waiting)) for lane in self._lanes)

    def free_for(self, job: Job) -> bool:
        """Whether the pool of this job could start it at once."""
        lane = self._lanes[self._route(job)]
        return lane.pool.free() > len(lane.waiting)

    def submit(self, jobs: Sequence[Job]) -> int:
        """Take all jobs into their lanes, and hand back what a lane cannot hold."""
        too_many: list[Job] = []
        with self._moving:
            for job in jobs:
                lane = self._lanes[self._route(job)]
                lane.waiting.append(job)
            for lane in self._lanes:
                lane.feed()
                while len(lane.waiting) > lane.most:
                    too_many.append(lane.waiting.pop())
                    self._warn(lane)
        if too_many:
            too_many.reverse()
            self._overflow(too_many)
        return len(jobs)

    @staticmethod
    def _warn(lane: _Lane) -> None:
        now = time.monotonic()
        if now - lane.warned > _WARN_EVERY or not lane.warned:
            lane.warned = now
            logger.warning(
                "pool %s is full: what it cannot take is handed back to the broker. Give it more slots (-P %s=N), "
                "or its tasks a queue that other workers serve, too",
                lane.name,
                lane.name,
            )

    @property
    def waiting(self) -> bool:
        """Whether jobs wait before a pool."""
        return any(lane.waiting for lane in self._lanes)

    def feed(self) -> None:
        """Give every pool what it takes by now; intake thread."""
        with self._moving:
            for lane in self._lanes:
                lane.feed()

    def take_back(self, limit: int) -> Sequence[int]:
        """Give jobs that have not started, last accepted first per pool."""
        keys: list[int] = []
        with self._moving:
            for lane in self._lanes:
                while lane.waiting and len(keys) < limit:
                    keys.append(lane.waiting.pop().key)
                keys += lane.pool.take_back(limit - len(keys))
        return keys

    def resize(self, concurrency: int) -> int:
        """Leave the sizes alone: one number says nothing about several pools."""
        return sum(lane.pool.free() for lane in self._lanes)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Cancel in whatever pool the jobs are."""
        wanted = set(keys)
        done: list[int] = []
        with self._moving:
            for lane in self._lanes:
                out = [job for job in lane.waiting if job.key in wanted]
                for job in out:
                    lane.waiting.remove(job)
                done += [job.key for job in out]
        if done and self._sink is not None:
            self._sink.returned(list(done))
        for lane in self._lanes:
            done += lane.pool.cancel(keys, hard=hard)
        return done

    def stop(self, deadline: float) -> Sequence[int]:
        """Stop all pools at the same time."""
        unfinished: list[int] = []

        def stop(lane: _Lane) -> None:
            unfinished.extend(lane.pool.stop(deadline))

        threads = [threading.Thread(target=stop, args=(lane,), daemon=True) for lane in self._lanes[1:]]
        for thread in threads:
            thread.start()
        stop(self._lanes[0])
        for thread in threads:
            thread.join()
        return unfinished

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return what runs in the pools that can tell."""
        found = [r for lane in self._lanes if isinstance(lane.pool, SupportsInspect)
                 for r in lane.pool.running(stacks=stacks)]  # fmt: skip
        return sorted(found, key=lambda r: r.since)

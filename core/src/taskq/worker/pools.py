"""Several pools in one worker, seen by the engine as one.

Jobs wait before their pool. What a full pool will not take soon leaves again: it is handed back to the broker with a
pause, so that other workers may have it, while the other pools of this worker go on.
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
_ROOM = 16
"""Fewest jobs that may wait before a pool, beside as many as it has slots."""
_WARN_EVERY = 60.0


class _Member:
    """One pool, and the jobs that wait for it."""

    def __init__(self, planned: PlannedPool, pool: Pool) -> None:
        self.name = planned.spec.name
        self.pool = pool
        self.most = planned.slots + max(_ROOM, planned.slots)
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
        self._members = [_Member(planned, pool) for planned, pool in members]
        self._route = route
        self._overflow = overflow
        self._moving = threading.Lock()
        self._sink: PoolSink | None = None

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start all pools; if one cannot, stop the others."""
        self._sink = sink
        started: list[_Member] = []
        try:
            for member in self._members:
                member.pool.start(runtime, sink)
                started.append(member)
        except BaseException:
            for member in started:
                member.pool.stop(time.monotonic())
            raise

    def free(self) -> int:
        """Return the free slots of all pools, less what waits before them."""
        return sum(max(0, member.pool.free() - len(member.waiting)) for member in self._members)

    def free_for(self, job: Job) -> bool:
        """Whether the pool of this job could start it at once."""
        member = self._members[self._route(job)]
        return member.pool.free() > len(member.waiting)

    def submit(self, jobs: Sequence[Job]) -> int:
        """Take all jobs before their pools, and hand back what is too many there."""
        too_many: list[Job] = []
        with self._moving:
            for job in jobs:
                member = self._members[self._route(job)]
                member.waiting.append(job)
            for member in self._members:
                member.feed()
                while len(member.waiting) > member.most:
                    too_many.append(member.waiting.pop())
                    self._warn(member)
        if too_many:
            too_many.reverse()
            self._overflow(too_many)
        return len(jobs)

    @staticmethod
    def _warn(member: _Member) -> None:
        now = time.monotonic()
        if now - member.warned > _WARN_EVERY or not member.warned:
            member.warned = now
            logger.warning(
                "pool %s is full: what it cannot take is handed back to the broker. Give it more slots (-P %s=N), "
                "or its tasks a queue that other workers serve, too",
                member.name,
                member.name,
            )

    @property
    def several(self) -> PoolSet:
        """Itself: what an engine asks where its pool may be a share of a set."""
        return self

    @property
    def waiting(self) -> bool:
        """Whether jobs wait before a pool."""
        return any(member.waiting for member in self._members)

    def feed(self) -> None:
        """Give every pool what it takes by now; intake thread."""
        with self._moving:
            for member in self._members:
                member.feed()

    def take_back(self, limit: int) -> Sequence[int]:
        """Give jobs that have not started, last accepted first per pool."""
        keys: list[int] = []
        with self._moving:
            for member in self._members:
                while member.waiting and len(keys) < limit:
                    keys.append(member.waiting.pop().key)
                keys += member.pool.take_back(limit - len(keys))
        return keys

    def resize(self, concurrency: int) -> int:
        """Leave the sizes alone: one number says nothing about several pools."""
        return sum(member.pool.free() for member in self._members)

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Cancel in whatever pool the jobs are."""
        wanted = set(keys)
        done: list[int] = []
        with self._moving:
            for member in self._members:
                out = [job for job in member.waiting if job.key in wanted]
                for job in out:
                    member.waiting.remove(job)
                done += [job.key for job in out]
        if done and self._sink is not None:
            self._sink.returned(list(done))
        for member in self._members:
            done += member.pool.cancel(keys, hard=hard)
        return done

    def stop(self, deadline: float) -> Sequence[int]:
        """Stop all pools at the same time."""
        unfinished: list[int] = []

        def stop(member: _Member) -> None:
            unfinished.extend(member.pool.stop(deadline))

        threads = [threading.Thread(target=stop, args=(member,), daemon=True) for member in self._members[1:]]
        for thread in threads:
            thread.start()
        stop(self._members[0])
        for thread in threads:
            thread.join()
        return unfinished

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return what runs in the pools that can tell."""
        found = [r for member in self._members if isinstance(member.pool, SupportsInspect)
                 for r in member.pool.running(stacks=stacks)]  # fmt: skip
        return sorted(found, key=lambda r: r.since)

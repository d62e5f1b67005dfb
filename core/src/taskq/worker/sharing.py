"""One pool under the lanes of several brokers: each sees a pool of its own, the slots are everybody's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from taskq.errors import TaskQError
from taskq.message import Job
from taskq.spi.pool import Finished, Pool
from taskq.worker.pools import PoolSet

if TYPE_CHECKING:
    from taskq.worker.pooled import PoolEngine


class PoolShare:
    """What one lane sees of the pool; the part of ``taskq.spi.Pool`` that an engine calls."""

    def __init__(self, shared: SharedPool) -> None:
        self._shared = shared
        self.engine: PoolEngine | None = None
        """Who hears of this lane's jobs; set before the first is submitted."""
        self.several = shared.several

    def submit(self, jobs: Sequence[Job]) -> int:
        """Take a prefix of the jobs; return its length."""
        return self._shared.submit(self, jobs)

    def free(self) -> int:
        """Return the slots that are free, for whoever is first."""
        return self._shared.pool.free()

    def take_back(self, limit: int) -> Sequence[int]:
        """Give this lane's jobs that have not started, last accepted first."""
        return self._shared.take_back(self, limit)


class SharedPool:
    """The pool with its sink: remembers which lane each job is of."""

    def __init__(self, pool: Pool | PoolSet) -> None:
        self.pool = pool
        self.several = pool if isinstance(pool, PoolSet) else None
        self._jobs: dict[int, tuple[PoolShare, Job]] = {}
        self._shares: list[PoolShare] = []
        self._moving = threading.RLock()
        """Held while jobs go to the pool or come back: the order of each lane's stays."""

    def share(self) -> PoolShare:
        """Return the pool as a further lane sees it."""
        share = PoolShare(self)
        self._shares.append(share)
        return share

    # ------------------------------------------------------------------------------------------- for the shares

    def submit(self, share: PoolShare, jobs: Sequence[Job]) -> int:
        """Take a prefix of one lane's jobs; return its length."""
        with self._moving:
            for job in jobs:  # before the pool has them: they may end at once
                self._jobs[job.key] = share, job
            count = self.pool.submit(jobs)
            for job in jobs[count:]:
                self._jobs.pop(job.key, None)
        return count

    def take_back(self, share: PoolShare, limit: int) -> list[int]:
        """Give what one lane has waiting; what is of others goes to the pool again."""
        mine: list[int] = []
        others: list[tuple[PoolShare, Job]] = []
        with self._moving:
            for key in self.pool.take_back(limit):
                found = self._jobs.pop(key, None)
                if found is not None and found[0] is not share:
                    others.append(found)
                else:
                    mine.append(key)
            left = others[::-1]  # as they came
            while left:
                owner = left[0][0]
                run = [job for own, job in left if own is owner]
                rest = run[self.submit(owner, run) :]
                if rest:
                    owner_engine(owner).returned([job.key for job in rest])
                left = [pair for pair in left if pair[0] is not owner]
        return mine

    def overflow(self, jobs: Sequence[Job]) -> None:
        """Have jobs handed back that one of several pools cannot take soon."""
        for share, own in self._grouped([(job.key, job) for job in jobs]):
            owner_engine(share).overflow(own)

    # --------------------------------------------------------------------------------------- the pool's sink

    def started(self, keys: Sequence[int]) -> None:
        """Nobody waits for it."""

    def finished(self, batch: Sequence[Finished]) -> None:
        """Tell each lane of its ends, and the others that there may be room."""
        told = set()
        for share, own in self._grouped([(finished.key, finished) for finished in batch]):
            owner_engine(share).finished(own)
            told.add(share)
        for share in self._shares:
            if share not in told and share.engine is not None:
                share.engine.room_made()

    def returned(self, keys: Sequence[int]) -> None:
        """Have the lanes hand back what the pool did not start."""
        for share, own in self._grouped([(key, key) for key in keys]):
            owner_engine(share).returned(own)

    def crashed(self, running: Sequence[int], unstarted: Sequence[int], reason: str) -> None:
        """Tell each lane of what it has lost."""
        ran = dict(self._grouped([(key, key) for key in running]))
        waited = dict(self._grouped([(key, key) for key in unstarted]))
        for share in {**ran, **waited}:
            owner_engine(share).crashed(ran.get(share, ()), waited.get(share, ()), reason)

    def aborted(self, keys: Sequence[int], error: TaskQError) -> None:
        """Tell each lane of what the pool has ended."""
        for share, own in self._grouped([(key, key) for key in keys]):
            owner_engine(share).aborted(own, error)

    def request(self, data: bytes, reply: Callable[[bytes], None]) -> None:
        """Answer a child process; every lane's engine has the same connections."""
        next(owner_engine(share) for share in self._shares if share.engine is not None).request(data, reply)

    def _grouped(self, items: Sequence[tuple[int, Any]]) -> list[tuple[PoolShare, list[Any]]]:
        """Forget the jobs of these keys; return what is said of them by lane."""
        found: dict[PoolShare, list[Any]] = {}
        for key, item in items:
            known = self._jobs.pop(key, None)
            if known is not None:
                found.setdefault(known[0], []).append(item)
        return list(found.items())


def owner_engine(share: PoolShare) -> PoolEngine:
    """Return the engine of a lane that has submitted jobs."""
    assert share.engine is not None
    return share.engine

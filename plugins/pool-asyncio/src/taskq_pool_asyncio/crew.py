"""The threads that ``def`` tasks run on."""

from __future__ import annotations

import queue
import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from taskq.errors import TaskInterrupted
from taskq.spi import RELEASED, Finished, Job, Outcome
from taskq_lib_pool.reports import FLUSH_JOBS, FLUSH_S

if TYPE_CHECKING:
    from taskq_pool_asyncio.lane import Lane
    from taskq_pool_asyncio.pool import AsyncioPool

SHORT_S: Final = 0.001
"""Jobs that take less are left to the threads that run already: more of them would only fight for the GIL."""
STUCK_S: Final = 0.02
"""Time without a start after which those threads are believed to be stuck; they may only wait for the GIL."""


class Crew:
    """Threads, started when there is a job and none is idle: never more than slots."""

    def __init__(self, pool: AsyncioPool, name: str) -> None:
        self.running: dict[int, tuple[Job, float]] = {}
        """Thread ident → its job and when it began."""
        self._pool = pool
        self._name = name
        self._inbox: queue.SimpleQueue[tuple[Lane, Job] | None] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._typical = SHORT_S  # seconds that a job takes
        self._taken = 0.0  # when a thread last took a job

    def enough(self) -> bool:
        """Whether the threads that run get through the jobs, so that none needs to be given out."""
        if self._typical >= SHORT_S or not self.running:
            return False
        if monotonic() - self._taken < STUCK_S:
            return True
        self._typical = SHORT_S
        return False

    def give(self, lane: Lane, job: Job) -> None:
        """Have a thread run a job in a slot of this lane."""
        self._inbox.put((lane, job))
        if not self._idle.acquire(blocking=False):
            with self._lock:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads) + 1}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self, deadline: float) -> None:
        """End the threads; one that is stuck in a task stays."""
        with self._lock:
            for _ in self._threads:
                self._inbox.put(None)
            for thread in self._threads:
                thread.join(max(0.0, deadline - monotonic()))

    def _work(self) -> None:
        me = threading.get_ident()
        while (given := self._inbox.get()) is not None:
            lane: Lane = given[0]
            job: Job | None = given[1]
            while job is not None:
                self._run(me, lane, job)
                job = self._next()
                self._report(lane, idle=job is None)
            self._idle.release()
            lane.release()

    def _run(self, me: int, lane: Lane, job: Job) -> None:
        reports = self._pool.reports
        reports.begun.append(job.key)
        since = self._taken = monotonic()
        self.running[me] = (job, since)
        try:
            outcome = self._pool.runtime.execute(job)
        except TaskInterrupted:
            outcome = Outcome(RELEASED, "QUEUED", terminal=False)
        except BaseException as error:  # SystemExit, too: the thread must go on
            reports.broken(job.key, error)
            return
        finally:
            del self.running[me]
        elapsed, typical = monotonic() - since, self._typical
        reports.done.append(Finished(job.key, outcome, elapsed))
        # A long one may only have waited for the GIL; ``enough`` finds out when threads are stuck.
        seen = min(elapsed, 2 * SHORT_S)
        self._typical = typical + (seen - typical) * (0.5 if seen < typical else 0.1)

    def _next(self) -> Job | None:
        """Take the next job where it is one for a thread, so that the loop need not be asked."""
        ready = self._pool.ready
        try:
            job = ready.popleft()
        except IndexError:
            return None
        if self._pool.plan(job.task).is_async:
            ready.appendleft(job)
            return None
        return job

    def _report(self, lane: Lane, *, idle: bool) -> None:
        reports = self._pool.reports
        if idle or len(reports.done) >= FLUSH_JOBS or monotonic() - reports.flushed >= FLUSH_S:
            reports.flush()
        else:
            lane.report_soon()

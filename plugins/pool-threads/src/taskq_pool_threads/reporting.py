"""What the worker is told: in batches, each beginning before its end, each job once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from time import perf_counter
from typing import Any, TypeVar

from taskq.errors import TaskQError
from taskq.spi import Finished, Job, PoolSink

T = TypeVar("T")
log = logging.getLogger("taskq.pool.threads")


class Reporting:
    """The reports of a pool's threads; any of them may call ``_flush``."""

    def __init__(self) -> None:
        self._sink: PoolSink
        self._held: set[int] = set()  # keys accepted and not yet reported; its length is exact without a lock
        self._begun: deque[int] = deque()
        self._done: deque[Finished] = deque()
        self._typical = 0.0  # seconds that a job takes; 0 while nothing is known
        self._flushed = 0.0
        self._report = threading.Lock()  # held while the sink is called, so that "started" comes before "finished"
        self._closed = False

    def _flush(self) -> None:
        """Report what has begun and ended; where another thread is at it already, that one reports this, too."""
        while self._done or self._begun:
            if not self._report.acquire(blocking=False):
                return  # the holder looks again after it has let go
            try:
                self._deliver()
            finally:
                self._report.release()

    def _deliver(self) -> None:
        """Call the sink; the caller holds ``_report``."""
        # Ended before begun: each of the ended then has its beginning among those taken next, or earlier.
        done = _take(self._done)
        begun = _take(self._begun)
        if self._closed:
            return
        if begun:
            self._tell(self._sink.started, begun)
        if done:
            # One sample per report: a mean would be spoilt by the few that waited for the GIL.
            seen, typical = done[len(done) // 2].elapsed, self._typical
            if not typical:
                self._typical = seen
            else:  # quicker to believe that jobs are short: the watcher makes up for a mistake
                self._typical = typical + (seen - typical) * (0.5 if seen < typical else 0.2)
            self._held.difference_update([finished.key for finished in done])
            self._tell(self._sink.finished, done)
        self._flushed = perf_counter()

    def _broken_runtime(self, job: Job, error: BaseException) -> None:
        with self._report:
            self._deliver()
            if not self._closed:
                self._held.discard(job.key)
                reason = f"the runtime raised {type(error).__name__}: {error}, which it never may"
                self._tell(self._sink.crashed, [job.key], [], reason)

    def _aborted(self, job: Job, error: TaskQError) -> None:
        with self._report:
            self._deliver()
            if not self._closed:
                self._held.discard(job.key)
                self._tell(self._sink.aborted, [job.key], error)

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            log.exception("the worker failed to take a report of the threads pool: %.500r", arguments)


def _take(queue: deque[T]) -> list[T]:
    pop = queue.popleft
    return [pop() for _ in range(len(queue))]

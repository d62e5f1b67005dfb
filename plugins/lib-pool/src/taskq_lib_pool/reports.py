"""Reports to the worker: in batches, each beginning before its end, each job once."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from taskq.errors import TaskQError
from taskq.spi import Finished, Job, PoolSink

T = TypeVar("T")

FLUSH_S: Final = 0.005
"""Longest time that a finished job should stay unreported."""
FLUSH_JOBS: Final = 128
"""Most finished jobs in one report."""
AHEAD_S: Final = 0.05
"""Work that is accepted beyond the free slots, so that no slot idles while the worker fetches more."""
AHEAD_JOBS: Final = 1024
"""Most jobs accepted beyond the slots."""


class Reports:
    """Tells the sink what began and ended.

    Append to ``begun`` and ``done`` from any thread, then have ``flush`` called soon. ``held`` are the jobs that were
    accepted and not yet reported; its length is exact without a lock.
    """

    def __init__(self, log: logging.Logger) -> None:
        self.begun: deque[int] = deque()
        self.done: deque[Finished] = deque()
        self.held: dict[int, Job] = {}
        self.flushed = 0.0
        self.empty = threading.Event()
        """Set whenever a report leaves nothing held."""
        self._typical = 0.0  # seconds that a job takes; 0 while nothing is known
        self._log = log
        self._sink: PoolSink
        self._lock = threading.Lock()  # held while the sink is called, so that "started" comes before "finished"
        self._closed = False

    def open(self, sink: PoolSink) -> None:
        """Take the sink to report to."""
        self._sink = sink

    def room(self, slots: int) -> int:
        """Return how many jobs more may be accepted: what is free, and some 50 ms of work by the run times seen."""
        typical = self._typical
        ahead = min(AHEAD_JOBS, int(slots * AHEAD_S / typical)) if typical else slots
        return slots + ahead - len(self.held)

    def pending(self) -> bool:
        """Whether anything waits to be reported."""
        return bool(self.done or self.begun)

    def flush(self) -> None:
        """Report what has begun and ended; where another thread is at it already, that one reports this, too."""
        while self.done or self.begun:
            if not self._lock.acquire(blocking=False):
                return  # the holder looks again after it has let go
            try:
                self._deliver()
            finally:
                self._lock.release()

    def returned(self, keys: Sequence[int]) -> None:
        """Report jobs that did not start, and are no longer held."""
        if keys:
            self._tell(self._sink.returned, keys)

    def aborted(self, key: int, error: TaskQError) -> None:
        """Report a job that this pool has ended."""
        with self._lock:
            self._deliver()
            if not self._closed and self.held.pop(key, None) is not None:
                self._tell(self._sink.aborted, [key], error)
                self._look()

    def broken(self, key: int, error: BaseException) -> None:
        """Report a job out of which the runtime raised what it may not."""
        reason = f"the runtime raised {type(error).__name__}: {error}, which it never may"
        with self._lock:
            self._deliver()
            if not self._closed and self.held.pop(key, None) is not None:
                self._tell(self._sink.crashed, [key], [], reason)
                self._look()

    def close(self, patience: float) -> list[int]:
        """Report what is left, then nothing ever again; return what is held. A sink that hangs gets ``patience`` s."""
        locked = self._lock.acquire(timeout=patience)
        if locked:
            self._deliver()
        self._closed = True
        rest = list(self.held)
        self.held.clear()
        if locked:
            self._lock.release()
        return rest

    def _deliver(self) -> None:
        # Ended before begun: each of the ended then has its beginning among those taken next, or earlier.
        done = _take(self.done)
        begun = _take(self.begun)
        if self._closed:
            return
        if begun:
            self._tell(self._sink.started, begun)
        if done:
            seen, typical = done[len(done) // 2].elapsed, self._typical
            self._typical = typical + (seen - typical) * (0.5 if seen < typical else 0.2) if typical else seen
            pop = self.held.pop
            for finished in done:
                pop(finished.key, None)
            self._tell(self._sink.finished, done)
            self._look()
        self.flushed = monotonic()

    def _look(self) -> None:
        if not self.held:
            self.empty.set()

    def _tell(self, method: Callable[..., None], *arguments: Any) -> None:
        try:
            method(*arguments)
        except Exception:
            self._log.exception("the worker failed to take a report of its pool: %.500r", arguments)


def _take(queue: deque[T]) -> list[T]:
    pop = queue.popleft
    return [pop() for _ in range(len(queue))]

"""The solo pool.

It has no thread, no lock and no queue of its own: the worker keeps the jobs and calls ``run``. That makes it the pool
with the least overhead per job, and the easiest to debug.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter

from taskq.errors import NotSupported, WorkerError
from taskq.spi import Finished, Job, Outcome, PoolConfig, PoolSink, Runtime


class SoloPool:
    """Runs jobs on the thread that calls ``run``.

    What is queued stays with the caller (``submit`` accepts nothing), so handing back unstarted work needs no help
    from the pool. ``run`` reports by its return value; the sink hears only of a runtime that broke its contract.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency != 1:
            raise NotSupported(
                f"The solo pool runs one task at a time, but a concurrency of {config.concurrency} was asked for. "
                "Leave the concurrency out, set it to 1, or choose another pool (threads, prefork)."
            )
        self._execute: Callable[[Job], Outcome] | None = None
        self._sink: PoolSink | None = None
        self._running = False
        self._stopped = False
        self.finished: list[Finished] = []
        """While ``run`` goes on, what it has finished: the very list that it returns, so that another thread may take
        from its left. When an exception left ``run``, what it had finished; empty after a ``run`` that returned.
        """

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Take the runtime; there is nothing to start."""
        if self._execute is not None:
            raise WorkerError("The solo pool was started twice; make a new pool for a new start.")
        self._execute = runtime.execute
        self._sink = sink

    def free(self) -> int:
        """Return 1 when ``run`` may be called, 0 while it runs, before ``start`` and after ``stop``."""
        return int(self._execute is not None and not self._running and not self._stopped)

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept nothing: jobs are given to ``run``."""
        return 0

    def run(self, jobs: deque[Job], slice_s: float) -> list[Finished]:
        """Pop jobs from the left and run them until none is left or ``slice_s`` seconds have passed; at least one.

        When TaskInterrupted (or KeyboardInterrupt, or another exception of a signal handler) leaves this method, the
        outcomes reached until then are in ``self.finished``: they must be settled like returned ones. The job that was
        popped and is not among them is unfinished.
        """
        execute = self._execute
        if execute is None or self._stopped:
            raise WorkerError("The solo pool was asked to run jobs before start() or after stop().")
        pop = jobs.popleft
        finished: list[Finished] = []
        add = finished.append
        self.finished = finished
        self._running = True
        try:
            before = perf_counter()
            end = before + slice_s
            while True:
                try:
                    job = pop()  # not "while jobs": another thread may take the last one in between
                except IndexError:
                    break
                try:
                    outcome = execute(job)
                except Exception as error:
                    self._broken_runtime(job, error)
                    before = perf_counter()
                    continue
                now = perf_counter()
                add(Finished(job.key, outcome, now - before))
                if now >= end:
                    break
                before = now  # one look at the clock per job: the end of one is the start of the next
        finally:
            self._running = False
        self.finished = []
        return finished

    def _broken_runtime(self, job: Job, error: Exception) -> None:
        assert self._sink is not None  # start() sets both
        reason = f"the runtime raised {type(error).__name__}: {error}, which it never may"
        self._sink.crashed([job.key], [], reason)

    def take_back(self, limit: int) -> Sequence[int]:
        """Give nothing: the pool holds no unstarted job."""
        return ()

    def resize(self, concurrency: int) -> int:
        """Return 1, the only size there is."""
        return 1

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Act on nothing: unstarted jobs are not here, and a running one cannot be stopped."""
        return ()

    def stop(self, deadline: float) -> Sequence[int]:
        """Run nothing more. On the worker's own thread no job can be running, so none is unfinished."""
        self._stopped = True
        return ()

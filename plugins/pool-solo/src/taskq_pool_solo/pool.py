"""The solo pool.

It has no lock and no queue of its own: the worker keeps the jobs and calls ``run``. That makes it the pool with the
least overhead per job, and the easiest to debug.

A task is ended by a signal: its handler runs on the main thread, on which the task runs, too, so it can raise an
exception there, even in a system call that waits. A thread that is started with the first limited task sends it when
the limit has passed. The signal is SIGURG, which does nothing by itself: SIGALRM and the timer are left to tasks.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic, perf_counter
from types import FrameType
from typing import Any, Final

from taskq.errors import (
    NotSupported,
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskQError,
    TaskRevoked,
    WorkerError,
)
from taskq.spi import Finished, Job, Outcome, PoolConfig, PoolSink, Running, Runtime

NEVER: Final = float("inf")
REPEAT_S: Final = 0.2
"""Time after which a signal is sent again that has had no effect."""
CAN_SIGNAL: Final = hasattr(signal, "pthread_kill") and hasattr(signal, "SIGURG")


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
        self._name = config.name
        self._runtime: Runtime
        self._execute: Callable[[Job], Outcome] | None = None
        self._sink: PoolSink | None = None
        self._running = False
        self._stopped = False
        self._thread = 0  # on which run() runs
        self._job: Job | None = None  # what runs, and may be struck
        self._since = 0.0
        self._soft: dict[str, float | None] = {}
        self._until = NEVER
        self._cancelled: Job | None = None
        self._can_strike = False
        self._previous: Any = None
        self._keeper: threading.Thread | None = None
        self._looks = NEVER  # when the keeper will look at the clock
        self._change = threading.Condition()
        self.finished: list[Finished] = []
        """While ``run`` goes on, what it has finished: the very list that it returns, so that another thread may take
        from its left. When an exception left ``run``, what it had finished; empty after a ``run`` that returned.
        """

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Take the runtime, and the signal by which tasks are ended.

        Errors: NotSupported for a task with a soft limit, where signals cannot be had: off the main thread.
        """
        if self._execute is not None:
            raise WorkerError("The solo pool was started twice; make a new pool for a new start.")
        self._can_strike = CAN_SIGNAL and threading.current_thread() is threading.main_thread()
        if self._can_strike:
            self._previous = signal.signal(signal.SIGURG, self._struck)
        self._runtime = runtime
        for task in runtime.tasks():
            self._limit(task)
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
        execute, limits = self._execute, self._soft
        if execute is None or self._stopped:
            raise WorkerError("The solo pool was asked to run jobs before start() or after stop().")
        pop = jobs.popleft
        finished: list[Finished] = []
        add = finished.append
        self.finished = finished
        self._running = True
        self._thread = threading.get_ident()
        outcome: Outcome | None
        try:
            before = perf_counter()
            end = before + slice_s
            while True:
                try:
                    job = pop()  # not "while jobs": another thread may take the last one in between
                except IndexError:
                    break
                outcome = None
                try:
                    try:
                        soft = limits[job.task]
                    except KeyError:
                        soft = self._limit(job.task)
                    if soft is not None:
                        self._watch(before + soft)
                    self._since = before
                    self._job = job  # from now on it may be struck
                    outcome = execute(job)
                    self._job = None
                    self._until = NEVER
                except BaseException as error:
                    self._job = None  # from now on it may not
                    self._until = NEVER
                    if outcome is not None:  # it was struck when it had just ended
                        add(Finished(job.key, outcome, perf_counter() - before))
                    if not self._report(job, error, ended=outcome is not None):
                        raise
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

    def _report(self, job: Job, error: BaseException, *, ended: bool) -> bool:
        """Report a job that an exception ended outside its task; False for one that is meant for the worker."""
        assert self._sink is not None  # start() sets both
        why: TaskQError
        if isinstance(error, TaskCancelled):
            why = TaskRevoked(f"task {job.task} was cancelled while it ran")
        elif isinstance(error, SoftTimeLimitExceeded):
            why = error
        elif isinstance(error, Exception) and not ended:
            reason = f"the runtime raised {type(error).__name__}: {error}, which it never may"
            self._sink.crashed([job.key], [], reason)
            return True
        else:
            return False
        if not ended:
            self._sink.aborted([job.key], why)
        return True

    # ------------------------------------------------------------------------------------------- limits, cancelling

    def _limit(self, task: str) -> float | None:
        soft = self._soft[task] = self._runtime.limits(task).soft
        if soft is not None and not self._can_strike:
            raise NotSupported(
                f"The solo pool cannot keep the soft time limit of task {task} here: it needs signals, and those come "
                "to the main thread only. Run this worker on the main thread, choose another pool (threads, prefork), "
                "or remove the limit."
            )
        return soft

    def _watch(self, until: float) -> None:
        """Have the keeper look after a limit; it is told only when it would come too late by itself."""
        self._until = until
        if until < self._looks or self._keeper is None:
            self._call_keeper()

    def _call_keeper(self) -> None:
        with self._change:
            if self._keeper is None:
                self._keeper = threading.Thread(target=self._keep, name=f"{self._name}-pool-limits", daemon=True)
                self._keeper.start()
            self._change.notify()

    def _keep(self) -> None:
        with self._change:
            while not self._stopped:
                self._looks = NEVER  # before the look at the limit: the other thread sets that and then looks here
                now, until = perf_counter(), self._until
                if until <= now or (self._cancelled is not None and self._cancelled is self._job):
                    signal.pthread_kill(self._thread, signal.SIGURG)
                    until = now + REPEAT_S
                self._looks = until
                self._change.wait(None if until == NEVER else until - now)

    def _struck(self, number: int, frame: FrameType | None) -> None:
        """End the running task if it is time; the signal's handler."""
        job = self._job
        if job is not None and threading.get_ident() == self._thread:
            until = self._until
            if job is self._cancelled:
                self._cancelled = None
                if not self._runtime.interrupt(TaskCancelled()):  # its coroutine is not yet there: once more, later
                    self._cancelled = job
            elif perf_counter() >= until:
                self._until = NEVER
                if not self._runtime.interrupt(SoftTimeLimitExceeded(f"task {job.task} ran past its soft limit")):
                    self._until = until
        if callable(self._previous):
            self._previous(number, frame)

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return the job that runs now."""
        job, since = self._job, self._since
        frame = sys._current_frames().get(self._thread) if stacks else None
        if job is None or job is not self._job:
            return ()
        stack = None if frame is None else "".join(traceback.format_stack(frame))
        return (Running(job.key, since + monotonic() - perf_counter(), "the worker's thread", stack),)

    def take_back(self, limit: int) -> Sequence[int]:
        """Give nothing: the pool holds no unstarted job."""
        return ()

    def resize(self, concurrency: int) -> int:
        """Return 1, the only size there is."""
        return 1

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Raise TaskCancelled in the running job; unstarted ones are not here. ``hard`` makes no difference."""
        job = self._job
        if job is None or job.key not in keys or not self._can_strike:
            return ()
        self._cancelled = job
        self._call_keeper()
        return (job.key,)

    def stop(self, deadline: float) -> Sequence[int]:
        """Run nothing more. On the worker's own thread no job can be running, so none is unfinished."""
        self._stopped = True
        if self._can_strike and signal.getsignal(signal.SIGURG) == self._struck:  # else another pool has it by now
            signal.signal(signal.SIGURG, self._previous)
        if self._keeper is not None:
            with self._change:
                self._change.notify()
            self._keeper.join(1.0)
        return ()

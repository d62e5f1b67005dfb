"""The threads pool.

One deque holds what has not started; every thread takes one job at a time from its left, which is atomic and needs no
lock. So nothing ever waits behind a slow job while a thread is free, and what is unstarted can be taken back from the
right at any moment. What goes in batches is the rest: waking threads (as many as the work is worth, by the run times
seen) and reporting to the sink. A watcher thread, which sleeps unless needed, reports for threads that got stuck in a
long job, wakes further threads when the estimate was too low, and looks after time limits.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from time import monotonic, perf_counter
from typing import Final

from taskq.errors import (
    ConfigError,
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskInterrupted,
    TaskRevoked,
    WorkerError,
)
from taskq.spi import RELEASED, Finished, Job, Outcome, PoolConfig, PoolSink, Running, Runtime
from taskq_pool_threads.reporting import Reporting
from taskq_pool_threads.striking import Striking
from taskq_pool_threads.thread import PoolThread, Struck

log = logging.getLogger("taskq.pool.threads")

FLUSH_S: Final = 0.005
"""Longest time that a finished job stays unreported."""
FLUSH_JOBS: Final = 128
"""Most finished jobs in one report by the thread that ran them."""
CHUNK_S: Final = 0.002
"""Work that justifies waking another thread."""
AHEAD_S: Final = 0.05
"""Work that is accepted beyond the free slots, so that no slot idles while the worker fetches more."""
AHEAD_JOBS: Final = 1024
"""Most jobs accepted beyond the slots."""
GIVE_WAY_S: Final = 1.0
"""Time that a task has after its interruption when the pool stops."""


class ThreadsPool(Reporting, Striking):
    """Runs jobs on ``concurrency`` threads.

    Each accepted job is reported exactly once: by ``finished`` or ``crashed``, by ``returned`` when it was cancelled or
    the pool stopped before it started, or in what ``take_back`` or ``stop`` return.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError(
                f"The threads pool was asked for a concurrency of {config.concurrency}; it needs at least 1 thread."
            )
        Reporting.__init__(self)
        Striking.__init__(self)
        self._name = config.name
        self._slots = config.concurrency
        self._execute: Callable[[Job], Outcome]
        self._ready: deque[Job] = deque()
        self._idle: deque[PoolThread] = deque()  # a stack: the thread that slept least has the warmest caches
        self._popped = 0.0  # when a thread last took a job; 0 after one went to rest
        self._change = threading.Lock()  # guards what follows, the set of threads, and the order of _ready
        self._surplus = 0  # threads that are to end
        self._number = 0
        self._accepting = False
        self._stopping = False
        self._unfinished: list[int] = []
        self._watcher: threading.Thread | None = None
        self._watching = False
        self._alarm = threading.Event()
        self._end = threading.Event()

    # ---------------------------------------------------------------------------------------------- the worker's side

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start the threads. Errors: WorkerError when started before, or when the system gives no more threads."""
        with self._change:
            if self._watcher is not None or self._stopping:
                raise WorkerError("The threads pool was started twice; make a new pool for a new start.")
            self._runtime, self._execute = runtime, runtime.execute
            self._sink = sink
            self._watcher = threading.Thread(target=self._watch, name=f"{self._name}-pool-watcher", daemon=True)
            try:
                self._watcher.start()
                self._grow(self._slots)
            except RuntimeError as error:
                self._stopping = True
                self._end.set()
                self._alarm.set()
                self._wake(len(self._threads))
                raise WorkerError(
                    f"The threads pool could start {len(self._threads)} of {self._slots} threads: {error}. "
                    "Lower the concurrency, or raise the system's limit of threads."
                ) from error
            self._accepting = True

    def free(self) -> int:
        """Return the slots less the accepted jobs that have not been reported."""
        return self._slots - len(self._held) if self._accepting else 0

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept as many jobs as there are free slots, and some 50 ms of work more by the run times seen."""
        with self._change:
            if not self._accepting:
                return 0
            typical = self._typical
            ahead = min(AHEAD_JOBS, int(self._slots * AHEAD_S / typical)) if typical else self._slots
            count = min(len(jobs), self._slots + ahead - len(self._held))
            if count <= 0:
                return 0
            taken = jobs if count == len(jobs) else list(islice(jobs, count))
            self._held.update([job.key for job in taken])
            self._ready.extend(taken)
        self._wake_some()
        return count

    def take_back(self, limit: int) -> Sequence[int]:
        """Give up to ``limit`` unstarted jobs, last accepted first."""
        keys: list[int] = []
        with self._change:
            try:
                while len(keys) < limit:
                    keys.append(self._ready.pop().key)
            except IndexError:
                pass
            self._held.difference_update(keys)
        return keys

    def resize(self, concurrency: int) -> int:
        """Change the number of threads, at least 1; a thread too many ends after its job."""
        with self._change:
            if not self._accepting:
                return self._slots
            wanted = max(1, concurrency)
            more = wanted - self._slots
            self._slots = wanted
            if more > 0:
                reprieved = min(more, self._surplus)
                self._surplus -= reprieved
                try:
                    self._grow(more - reprieved)
                except RuntimeError as error:
                    self._slots = len(self._threads) - self._surplus
                    log.error("could not start more than %d threads: %s", self._slots, error)
            else:
                self._surplus -= more
        self._wake(self._surplus)
        self._wake_some()
        return self._slots

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Take unstarted jobs out and report them as returned; raise TaskCancelled in running ones, once.

        ``hard`` makes no difference: a task may catch it.
        """
        wanted = set(keys)
        with self._change:
            kept, cancelled = [], []
            for job in self._drain():
                if job.key in wanted:
                    cancelled.append(job.key)
                else:
                    kept.append(job)
            self._ready.extend(kept)
            self._held.difference_update(cancelled)
        self._wake_some()  # a thread may have looked while the deque was empty
        if cancelled:
            self._tell(self._sink.returned, cancelled)
        for thread in list(self._threads):
            running = thread.job
            if running is not None and running.key in wanted and self._strike(thread, running, TaskCancelled):
                cancelled.append(running.key)
        return cancelled

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return the jobs that run now, the oldest first."""
        frames = sys._current_frames() if stacks else {}
        offset = monotonic() - perf_counter()
        found = []
        for thread in list(self._threads):
            job = thread.job
            if job is None:
                continue
            since, frame = thread.since + offset, frames.get(thread.ident or 0)
            stack = None if frame is None else "".join(traceback.format_stack(frame))
            if thread.job is job:
                found.append(Running(job.key, since, thread.name, stack))
        return sorted(found, key=lambda one: one.since)

    def stop(self, deadline: float) -> Sequence[int]:
        """Return unstarted jobs to the sink at once, wait for the running ones, interrupt them at the deadline.

        Return the keys of those that have not given way a second later.
        """
        with self._change:
            self._accepting = False
            self._stopping = True
            unstarted = [job.key for job in self._drain()]
            self._held.difference_update(unstarted)
        if unstarted:
            self._tell(self._sink.returned, unstarted)
        self._wake(len(self._threads))
        self._join(deadline)
        for thread in list(self._threads):
            running = thread.job
            if running is not None:
                self._strike(thread, running, TaskInterrupted)
        self._join(max(deadline, monotonic()) + GIVE_WAY_S)
        patience = max(1.0, deadline - monotonic())  # a sink that hangs must not keep the worker from stopping
        reporting = self._report.acquire(timeout=patience)
        if reporting:
            self._deliver()
        self._closed = True  # from here on nothing is reported: what is held now is what did not end
        self._unfinished += self._held
        self._held.clear()
        if reporting:
            self._report.release()
        self._end.set()
        self._alarm.set()
        if self._watcher is not None:
            self._watcher.join(1.0)
        return self._unfinished

    def _join(self, deadline: float) -> None:
        for thread in list(self._threads):
            thread.join(max(0.0, deadline - monotonic()))

    # --------------------------------------------------------------------------------------------- the threads' side

    def _work(self, me: PoolThread) -> None:
        ready, done = self._ready, self._done
        pop, begin, end = ready.popleft, self._begun.append, done.append
        execute, clock = self._execute, perf_counter
        now = clock()
        while True:
            if (self._surplus or self._stopping) and self._leaves(me):
                return
            try:
                job = pop()
            except IndexError:
                self._flush()
                self._rest(me)
                now = clock()
                continue
            self._popped = now
            begin(job.key)
            if now - self._flushed >= FLUSH_S or len(done) >= FLUSH_JOBS:
                self._flush()
                now = clock()
            me.since = before = now
            outcome = None
            try:
                me.job = job  # before the watcher is called, who looks here; from now on it may be struck
                outcome = execute(job) if self._watching else self._execute_watched(job)
                me.job = None
                if me.struck:
                    raise Struck
            except BaseException as error:  # SystemExit, too: the thread must go on
                me.job = None  # nobody strikes any more; what is under way can hit in at most two more places
                try:
                    self._calm(me)
                except BaseException:
                    try:
                        self._calm(me)
                    except BaseException:
                        self._calm(me)
                if outcome is None and (outcome := self._verdict(job, error)) is None:
                    now = clock()
                    continue
            now = clock()  # one look at the clock per job: the end of one is the start of the next
            end(Finished(job.key, outcome, now - before))

    def _execute_watched(self, job: Job) -> Outcome:
        self._call_watcher()
        return self._execute(job)

    def _verdict(self, job: Job, error: BaseException) -> Outcome | None:
        """Return the outcome of a job that an exception ended outside its task, or report it and return None."""
        if isinstance(error, TaskInterrupted):
            return Outcome(RELEASED, "QUEUED", terminal=False)
        if isinstance(error, TaskCancelled):
            self._aborted(job, TaskRevoked(f"task {job.task} was cancelled while it ran"))
        elif isinstance(error, SoftTimeLimitExceeded):
            self._aborted(job, SoftTimeLimitExceeded(f"task {job.task} ran past its soft limit"))
        else:
            self._broken_runtime(job, error)
        return None

    def _rest(self, me: PoolThread) -> None:
        """Sleep until woken. Whoever adds jobs looks at the idle stack after that, hence this order here."""
        self._popped = 0.0  # this thread, at least, takes no jobs from now on
        self._idle.append(me)
        if self._ready or self._surplus or self._stopping:
            try:
                self._idle.remove(me)
            except ValueError:  # taken off already, so the gate is or will be opened: go through it
                me.sleep()
        else:
            me.sleep()

    def _leaves(self, me: PoolThread) -> bool:
        self._flush()
        with self._change:
            if self._stopping:
                return True
            if not self._surplus:
                return False
            self._surplus -= 1
            self._threads.discard(me)
            return True

    def _grow(self, count: int) -> None:
        for _ in range(count):
            self._number += 1
            thread = PoolThread(self._work, f"{self._name}-pool-{self._number}")
            thread.start()
            self._threads.add(thread)

    def _drain(self) -> list[Job]:
        """Take all unstarted jobs out, in order; threads may take some at the same time."""
        jobs = []
        try:
            while True:
                jobs.append(self._ready.popleft())
        except IndexError:
            return jobs

    # ---------------------------------------------------------------------------------------------- waking

    def _wake_some(self) -> None:
        """Wake as many threads as the unstarted jobs are worth: two threads on tiny jobs only fight for the GIL."""
        ready, idle = len(self._ready), len(self._idle)
        if not ready or not idle:
            return
        typical = self._typical
        wanted = ready
        if 0.0 < typical < CHUNK_S / 2:
            wanted = -(-ready // min(FLUSH_JOBS, int(CHUNK_S / typical)))
            if perf_counter() - self._popped < CHUNK_S / 4:
                wanted -= 1  # somebody is taking jobs right now
        if wanted < min(ready, idle) and not self._watching:
            self._call_watcher()  # the estimate may be wrong
        self._wake(wanted)

    def _wake(self, count: int) -> None:
        try:
            for _ in range(count):
                self._idle.pop().wake()
        except IndexError:
            pass

    def _call_watcher(self) -> None:
        self._watching = True
        self._alarm.set()

    def _watch(self) -> None:
        """Look after the pool every 5 ms while somebody may be waiting: for a report, or for a thread to be woken.

        In between, sleep until a time limit passes.
        """
        while not self._end.is_set():
            self._alarm.wait(self._keep_limits())
            self._alarm.clear()
            while not self._end.wait(FLUSH_S):
                self._flush()
                if self._ready and self._idle and perf_counter() - self._popped > FLUSH_S / 2:
                    self._wake(len(self._ready))  # those awake are stuck in long jobs
                self._keep_limits()
                if not self._unattended():
                    self._watching = False
                    if not self._unattended():  # else: it came while nobody could call
                        break
                    self._watching = True

    def _unattended(self) -> bool:
        return bool(self._done or self._begun or self._again or (self._ready and self._idle))

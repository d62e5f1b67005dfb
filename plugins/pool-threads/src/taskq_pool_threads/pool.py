"""The threads pool.

One deque holds what has not started; every thread takes one job at a time from its left, which is atomic and needs no
lock. So nothing ever waits behind a slow job while a thread is free, and what is unstarted can be taken back from the
right at any moment. What goes in batches is the rest: waking threads (as many as the work is worth, by the run times
seen) and reporting to the sink. A watcher thread, which sleeps unless needed, reports for threads that got stuck in a
long job, wakes further threads when the estimate was too low, and looks after time limits.

A running task is ended by an exception that the interpreter raises on its thread. That a strike never hits the next job
is ensured without a lock per job: who strikes notes so on the thread and then looks whether the job is still there; who
ends a job takes it off the thread and then looks for the note. One of the two sees the other.
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
from typing import Any, Final, TypeVar

from taskq.errors import (
    ConfigError,
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskInterrupted,
    TaskQError,
    TaskRevoked,
    WorkerError,
)
from taskq.spi import RELEASED, Finished, Job, Outcome, PoolConfig, PoolSink, Running, Runtime
from taskq_pool_threads.striking import raise_in

T = TypeVar("T")
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


class _Struck(BaseException):
    """The job has ended by itself, but somebody was about to end it."""


class _Thread(threading.Thread):
    """A thread of the pool and the gate it sleeps at; whoever takes it off the idle stack opens the gate, once."""

    def __init__(self, body: Callable[[_Thread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)  # daemon: a stuck task must not keep the process from ending
        self._body = body
        gate = threading.Lock()
        gate.acquire()
        self.sleep = gate.acquire
        self.wake = gate.release
        self.job: Job | None = None
        """What runs here now, and may be struck."""
        self.since = 0.0
        self.struck = False
        """Whether somebody strikes, or has struck, since this was last looked at."""
        self.told: tuple[Job | None, set[type[BaseException]]] = (None, set())
        """What a job was struck with: once with each error."""

    def run(self) -> None:
        self._body(self)


class ThreadsPool:
    """Runs jobs on ``concurrency`` threads.

    Each accepted job is reported exactly once: by ``finished`` or ``crashed``, by ``returned`` when it was cancelled or
    the pool stopped before it started, or in what ``take_back`` or ``stop`` return.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError(
                f"The threads pool was asked for a concurrency of {config.concurrency}; it needs at least 1 thread."
            )
        self._name = config.name
        self._slots = config.concurrency
        self._runtime: Runtime
        self._execute: Callable[[Job], Outcome]
        self._sink: PoolSink
        self._ready: deque[Job] = deque()
        self._held: set[int] = set()  # keys accepted and not yet reported; its length is exact without a lock
        self._begun: deque[int] = deque()
        self._done: deque[Finished] = deque()
        self._idle: deque[_Thread] = deque()  # a stack: the thread that slept least has the warmest caches
        self._typical = 0.0  # seconds that a job takes; 0 while nothing is known
        self._popped = 0.0  # when a thread last took a job; 0 after one went to rest
        self._flushed = 0.0
        self._report = threading.Lock()  # held while the sink is called, so that "started" comes before "finished"
        self._change = threading.Lock()  # guards what follows, and the order of _ready
        self._threads: set[_Thread] = set()
        self._strikes = threading.Lock()  # held while a thread is struck, and while it calms down
        self._again: deque[tuple[_Thread, Job, type[BaseException]]] = deque()
        self._soft: dict[str, float | None] = {}
        self._surplus = 0  # threads that are to end
        self._number = 0
        self._accepting = False
        self._stopping = False
        self._closed = False
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

    def _work(self, me: _Thread) -> None:
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
                    raise _Struck
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

    def _calm(self, me: _Thread) -> None:
        """Make sure that nothing is raised on this thread any more that was meant for the job before."""
        with self._strikes:
            raise_in(me.ident, None)
            me.struck = False

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

    def _rest(self, me: _Thread) -> None:
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

    def _leaves(self, me: _Thread) -> bool:
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
            thread = _Thread(self._work, f"{self._name}-pool-{self._number}")
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

    # ---------------------------------------------------------------------------------------------- striking

    def _strike(self, thread: _Thread, job: Job, error: type[BaseException]) -> bool:
        """Raise an error in a job, once; whether it still ran."""
        with self._strikes:
            if thread.told[0] is not job:
                thread.told = (job, set())
            elif error in thread.told[1]:
                return thread.job is job
            thread.struck = True
            if thread.job is not job:
                return False
            if self._runtime.is_async(job.task):
                # never by an exception out of the blue: it could leave the thread's event loop in any state
                text = f"task {job.task} ran past its soft limit" if error is SoftTimeLimitExceeded else ""
                if not self._runtime.interrupt(error(text), thread.ident):
                    self._again.append((thread, job, error))  # its coroutine is not yet there, or has just ended
                    self._call_watcher()
                    return True
            else:
                raise_in(thread.ident, error)
            thread.told[1].add(error)
        self._call_watcher()  # the job may have been calling it when it was struck
        return True

    def _soft_limit(self, task: str) -> float | None:
        try:
            return self._soft[task]
        except KeyError:
            soft = self._soft[task] = self._runtime.limits(task).soft
            return soft

    def _keep_limits(self) -> float | None:
        """Strike what runs past its soft limit, and what could not be struck before.

        Return the seconds until the next limit passes, None without any.
        """
        nearest = None
        for _ in range(len(self._again)):
            self._strike(*self._again.popleft())
        for thread in list(self._threads):
            job = thread.job
            if job is None or (soft := self._soft_limit(job.task)) is None:
                continue
            left = thread.since + soft - perf_counter()
            if left <= 0.0:
                self._strike(thread, job, SoftTimeLimitExceeded)
            elif nearest is None or left < nearest:
                nearest = left
        return nearest

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

    # ---------------------------------------------------------------------------------------------- reporting

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

"""The asyncio pool.

One deque holds what has not started. The loops take from its left, the worker takes back from its right, both without
a lock. Going to a loop and being reported happen in batches: a loop is woken once for whatever was submitted, and tells
what has ended once a turn.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import copy_context
from itertools import islice
from time import monotonic
from typing import Final

from taskq.errors import ConfigError, WorkerError
from taskq.spi import Job, PoolConfig, PoolSink, Running, Runtime
from taskq_lib_pool.reports import Reports
from taskq_lib_pool.runs import Plan
from taskq_lib_pool.stacks import stack_of, stack_of_thread
from taskq_pool_asyncio.crew import Crew
from taskq_pool_asyncio.lane import Lane, log
from taskq_pool_asyncio.watch import Watchdog

GIVE_WAY_S: Final = 1.0
"""Time that interrupted jobs have when the pool stops."""


class AsyncioPool:
    """Runs ``concurrency`` jobs at a time: coroutines on event loops, functions on threads.

    Each accepted job is reported exactly once: by ``finished``, ``aborted`` or ``crashed``, by ``returned`` when it was
    cancelled or the pool stopped before it started, or in what ``take_back`` or ``stop`` return.
    """

    def __init__(self, config: PoolConfig) -> None:
        if config.concurrency < 1:
            raise ConfigError(
                f"The asyncio pool was asked for a concurrency of {config.concurrency}; it needs at least 1 slot."
            )
        self.ready: deque[Job] = deque()
        self.reports = Reports(log)
        self.plans: dict[str, Plan] = {}
        self.runtime: Runtime
        self.context = copy_context()
        self.crew = Crew(self, f"{config.name}-pool-thread")
        self.lanes: list[Lane] = []
        self._name = config.name
        self._slots = config.concurrency
        self._options = config.options
        self._new_loop = _loop_maker(config.options.loop)
        self._change = threading.Lock()  # guards the order of ``ready`` against whoever puts jobs back into it
        self._watchdog: Watchdog | None = None
        self._accepting = False
        self._stopped = False
        self._unfinished: list[int] = []

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Start the loops. Errors: WorkerError when started before, or when the system gives no more threads."""
        with self._change:
            if self.lanes or self._stopped:
                raise WorkerError("The asyncio pool was started twice; make a new pool for a new start.")
            self.runtime = runtime
            self.reports.open(sink)
            try:
                for number in range(1, self._options.loops + 1):
                    lane = Lane(self, f"{self._name}-loop-{number}", self._new_loop)
                    self.lanes.append(lane)
                    lane.thread.start()
                self._share()
                self._watchdog = Watchdog(self, f"{self._name}-loop-watchdog", self._options.block_warning_s)
                self._watchdog.start()
            except (RuntimeError, OSError) as error:
                self._end_loops()
                self._stopped = True
                raise WorkerError(
                    f"The asyncio pool could not start {self._options.loops} event loops: {error}. "
                    "Raise the system's limit of threads or open files."
                ) from error
            self._accepting = True

    def free(self) -> int:
        """Return the slots less the accepted jobs that have not been reported."""
        return self._slots - len(self.reports.held) if self._accepting else 0

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept as many jobs as there are free slots, and some 50 ms of work more by the run times seen."""
        with self._change:
            if not self._accepting:
                return 0
            count = min(len(jobs), self.reports.room(self._slots))
            if count <= 0:
                return 0
            taken = jobs if count == len(jobs) else list(islice(jobs, count))
            self.reports.held.update({job.key: job for job in taken})
            self.ready.extend(taken)
        self._wake()
        if self._watchdog is not None and self._watchdog.resting:
            self._watchdog.call()
        return count

    def take_back(self, limit: int) -> Sequence[int]:
        """Give up to ``limit`` unstarted jobs, last accepted first."""
        keys: list[int] = []
        with self._change:
            try:
                while len(keys) < limit:
                    key = self.ready.pop().key
                    self.reports.held.pop(key, None)
                    keys.append(key)
            except IndexError:
                pass
        return keys

    def resize(self, concurrency: int) -> int:
        """Change the number of slots, at least 1."""
        with self._change:
            if self._accepting:
                self._slots = max(1, concurrency)
                self._share()
            return self._slots

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Report unstarted jobs as returned; cancel coroutines that run, ``hard`` ones until they give way."""
        wanted = set(keys)
        with self._change:
            kept, returned = [], []
            for job in self._drain():
                if job.key in wanted:
                    returned.append(job.key)
                    self.reports.held.pop(job.key, None)
                else:
                    kept.append(job)
            self.ready.extend(kept)
            # what is held and does not wait runs, and what runs as a coroutine can be cancelled
            rest = [(key, self.reports.held.get(key)) for key in wanted.difference(returned)]
        self._wake()  # a loop may have looked while the deque was empty
        running = [key for key, job in rest if job is not None and self.plan(job.task).is_async]
        if running:
            for lane in self.lanes:
                lane.call(lane.cancel, running, hard)
        self.reports.returned(returned)
        return [*returned, *running]

    def stop(self, deadline: float) -> Sequence[int]:
        """Return unstarted jobs at once, wait for the running ones, interrupt coroutines, give the keys of the rest."""
        with self._change:
            self._accepting = False
            if self._stopped:
                return self._unfinished
            self._stopped = True
            unstarted = [job.key for job in self._drain()]
            for key in unstarted:
                self.reports.held.pop(key, None)
        if not self.lanes:
            return self._unfinished
        self.reports.returned(unstarted)
        self._wait(deadline)
        if self.reports.held:
            for lane in self.lanes:
                lane.call(lane.interrupt)
            self._wait(monotonic() + GIVE_WAY_S, self._has_coroutines)
        self._unfinished = self.reports.close(max(1.0, deadline - monotonic()))
        self._end_loops()
        self.crew.stop(monotonic() + (0.0 if self._unfinished else 1.0))
        return self._unfinished

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return the jobs that run now, the oldest first."""
        found = []
        for lane in self.lanes:
            where = lane.thread.name
            current = lane.current
            for run in list(lane.active.values()):
                job = run.job
                stack = None
                if stacks:
                    stack = stack_of_thread(lane.thread.ident) if job is current else stack_of(run.handle.coroutine)
                found.append(Running(job.key, run.since, f"coroutine on {where}", stack))
            if current is not None and current.key not in lane.active:
                stack = stack_of_thread(lane.thread.ident) if stacks else None
                found.append(Running(current.key, monotonic(), f"coroutine on {where}", stack))
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, (job, since) in list(self.crew.running.items()):
            stack = stack_of_thread(ident) if stacks else None
            found.append(Running(job.key, since, f"thread {names.get(ident, ident)}", stack))
        found.sort(key=lambda running: running.since)
        return found

    # ------------------------------------------------------------------------------------------ for loops and threads

    def plan(self, task: str) -> Plan:
        """Return what is to be known of a task."""
        found = self.plans.get(task)
        if found is None:
            found = self.plans[task] = Plan.of(task, self.runtime)
        return found

    # ------------------------------------------------------------------------------------------------------ helpers

    def _wake(self) -> None:
        for lane in self.lanes:
            lane.wake()

    def _share(self) -> None:
        """Divide the slots among the loops."""
        for number, lane in enumerate(self.lanes):
            lane.resize((self._slots + number) // len(self.lanes))

    def _drain(self) -> list[Job]:
        """Take all unstarted jobs out, in order; loops may take some at the same time."""
        jobs = []
        try:
            while True:
                jobs.append(self.ready.popleft())
        except IndexError:
            return jobs

    def _has_coroutines(self) -> bool:
        return any(lane.active or lane.current is not None for lane in self.lanes)

    def _wait(self, deadline: float, also: Callable[[], bool] = lambda: True) -> None:
        """Wait until nothing is held."""
        empty = self.reports.empty
        while self.reports.held and (left := deadline - monotonic()) > 0 and also():
            empty.clear()
            if self.reports.held:
                empty.wait(min(left, 0.05))

    def _end_loops(self) -> None:
        if self._watchdog is not None:
            self._watchdog.stop()
        for lane in self.lanes:
            lane.call(lane.loop.stop)
        for lane in self.lanes:
            if lane.thread.ident is not None:
                lane.thread.join(2.0)


def _loop_maker(kind: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if kind != "asyncio":
        try:
            import uvloop
        except ImportError:
            if kind == "uvloop":
                raise ConfigError(
                    "The asyncio pool was told to use uvloop, which is not installed: pip install uvloop, or choose "
                    "loop=auto."
                ) from None
        else:
            return uvloop.new_event_loop
    return asyncio.new_event_loop

"""A pool of greenlets, for whichever library makes them.

In a process that gevent or eventlet has patched, threads are greenlets and locks never block the process: the worker's
own threads and this pool's greenlets take turns on one thread of the system. So nothing here needs a lock, but nothing
may assume that time has not passed where a greenlet may have yielded.
"""

from __future__ import annotations

import logging
import traceback
from abc import ABC, abstractmethod
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final, TypeVar

from taskq.errors import ConfigError, TaskInterrupted, WorkerError
from taskq.spi import Job, Outcome, PoolConfig, PoolSink, Running, Runtime
from taskq_lib_pool.coroutines import Call, Coroutines
from taskq_lib_pool.reports import FLUSH_JOBS, FLUSH_S, Reports
from taskq_lib_pool.runs import Plan, Run, Runs, Timer, cancelled_by_itself
from taskq_lib_pool.stacks import stack_of

T = TypeVar("T")

GIVE_WAY_S: Final = 1.0
"""Time that interrupted jobs have when the pool stops."""


class Backend(ABC):
    """The library that makes the greenlets."""

    name: str

    @abstractmethod
    def current(self) -> Any:
        """Return the greenlet that runs."""

    @abstractmethod
    def spawn(self, function: Callable[[], None]) -> Any:
        """Have a new greenlet run a function, soon."""

    @abstractmethod
    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Timer:
        """Call a function later, in the hub: it must not wait for anything."""

    @abstractmethod
    def pause(self) -> None:
        """Let the other greenlets run."""

    @abstractmethod
    def in_thread(self, function: Callable[[], T]) -> T:
        """Return what a function returns on a thread of the system; other greenlets run meanwhile."""


class Handle:
    """What a job is struck by: its greenlet, or its coroutine."""

    __slots__ = ("call", "greenlet", "thrown")

    def __init__(self, greenlet: Any, call: Call | None) -> None:
        self.greenlet = greenlet
        self.call = call
        self.thrown: BaseException | None = None
        """The last error that was raised in the job."""


class _Greenlets(Runs[Handle]):
    def __init__(self, pool: GreenPool) -> None:
        super().__init__(pool.reports, pool.log)
        self._pool = pool

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Timer:
        return self._pool.backend.later(seconds, function, *arguments)

    def strike(self, run: Run[Handle], error: BaseException) -> None:
        handle = run.handle
        handle.thrown = error
        if handle.call is None:
            # We are in the hub, so the greenlet waits somewhere, in the task's code: it is still its job's.
            handle.greenlet.throw(error)
        elif self._pool.coroutines is not None:
            self._pool.coroutines.cancel(handle.call, str(error))

    def stack(self, run: Run[Handle]) -> str:
        if run.handle.call is not None:
            return stack_of(run.handle.call.coroutine)
        frame = getattr(run.handle.greenlet, "gr_frame", None)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""

    def gave_up(self, run: Run[Handle]) -> None:
        self._pool.freed()
        self._pool.backend.spawn(lambda: self.report_left(run))  # we are in the hub, which may wait for nothing


class GreenPool:
    """Runs ``concurrency`` jobs at a time, each on a greenlet.

    Each accepted job is reported exactly once: by ``finished``, ``aborted`` or ``crashed``, by ``returned`` when it was
    cancelled or the pool stopped before it started, or in what ``take_back`` or ``stop`` return.
    """

    def __init__(self, config: PoolConfig, backend: Backend) -> None:
        if config.concurrency < 1:
            raise ConfigError(
                f"The {backend.name} pool was asked for a concurrency of {config.concurrency}; it needs at least 1."
            )
        self.backend = backend
        self.log = logging.getLogger(f"taskq.pool.{backend.name}")
        self.reports = Reports(self.log)
        self.runtime: Runtime
        self.coroutines: Coroutines | None = None
        """The event loop for ``async def`` tasks, made when the first one comes."""
        self._runs = _Greenlets(self)
        self._ready: deque[Job] = deque()
        self._plans: dict[str, Plan] = {}
        self._slots = config.concurrency
        self._hands = 0
        """Greenlets that run jobs, or are about to."""
        self._flushing = False
        self._turn = 0
        self._started = False
        self._accepting = False
        self._stopped = False
        self._unfinished: list[int] = []

    # ---------------------------------------------------------------------------------------------- the worker's side

    def start(self, runtime: Runtime, sink: PoolSink) -> None:
        """Take jobs from now on. Errors: WorkerError when started before."""
        if self._started or self._stopped:
            raise WorkerError(f"The {self.backend.name} pool was started twice; make a new pool for a new start.")
        self.runtime = runtime
        self.reports.open(sink)
        self._started = self._accepting = True

    def free(self) -> int:
        """Return the slots less the accepted jobs that have not been reported."""
        return self._slots - len(self.reports.held) if self._accepting else 0

    def submit(self, jobs: Sequence[Job]) -> int:
        """Accept as many jobs as there are free slots, and some 50 ms of work more by the run times seen."""
        if not self._accepting:
            return 0
        count = max(0, min(len(jobs), self.reports.room(self._slots)))
        for job in jobs[:count]:
            self.reports.held[job.key] = job
            self._ready.append(job)
        self._spawn()
        return count

    def take_back(self, limit: int) -> Sequence[int]:
        """Give up to ``limit`` unstarted jobs, last accepted first."""
        keys: list[int] = []
        while self._ready and len(keys) < limit:
            keys.append(self._ready.pop().key)
            del self.reports.held[keys[-1]]
        return keys

    def resize(self, concurrency: int) -> int:
        """Change the number of slots, at least 1."""
        if self._accepting:
            self._slots = max(1, concurrency)
            self._spawn()
        return self._slots

    def cancel(self, keys: Sequence[int], *, hard: bool = False) -> Sequence[int]:
        """Report unstarted jobs as returned; end running ones by TaskCancelled, ``hard`` ones by TaskInterrupted."""
        wanted = set(keys)
        returned = [job.key for job in self._ready if job.key in wanted]
        if returned:
            kept = [job for job in self._ready if job.key not in wanted]
            self._ready.clear()
            self._ready.extend(kept)
            for key in returned:
                del self.reports.held[key]
        running = [key for key in keys if key in self._runs.active]
        if running:
            self.backend.later(0.0, self._runs.cancel, running, hard)
        self.reports.returned(returned)
        return [*returned, *running]

    def stop(self, deadline: float) -> Sequence[int]:
        """Return unstarted jobs at once, wait for the running ones, interrupt them, give the keys of the rest."""
        self._accepting = False
        if self._stopped or not self._started:
            self._stopped = True
            return self._unfinished
        self._stopped = True
        self.reports.returned(self.take_back(len(self._ready))[::-1])
        self._wait(deadline)
        if self.reports.held:
            self.backend.later(0.0, self._runs.interrupt)
            self._wait(monotonic() + GIVE_WAY_S)
        self._unfinished = self.reports.close(max(1.0, deadline - monotonic()))
        if self.coroutines is not None:
            self.coroutines.stop()
        return self._unfinished

    def running(self, *, stacks: bool = False) -> Sequence[Running]:
        """Return the jobs that run now, the oldest first."""
        found = []
        for run in sorted(self._runs.active.values(), key=lambda run: run.since):
            where = f"greenlet {id(run.handle.greenlet):#x}" if run.handle.call is None else "coroutine"
            found.append(Running(run.job.key, run.since, where, self._runs.stack(run) if stacks else None))
        return found

    # ------------------------------------------------------------------------------------------------------- running

    def freed(self) -> None:
        """Let another greenlet have the slot of one that was given up."""
        self._hands -= 1
        self._spawn()

    def _spawn(self) -> None:
        idle = self._hands - len(self._runs.active)
        for _ in range(min(self._slots - self._hands, len(self._ready) - idle)):
            self._hands += 1
            self.backend.spawn(self._work)

    def _work(self) -> None:
        """Run jobs until none is left; none of them may notice that others ran on this greenlet."""
        reports, ready = self.reports, self._ready
        me = self.backend.current()
        turn, pause = self._turn, monotonic() + FLUSH_S
        while ready and self._hands <= self._slots:
            job = ready.popleft()
            if not self._run(job, me):
                return  # it was given up, and so was this greenlet
            now = monotonic()
            if turn != self._turn:  # others have run meanwhile
                turn, pause = self._turn, now + FLUSH_S
            elif now >= pause:
                self.backend.pause()
            if len(reports.done) >= FLUSH_JOBS:
                reports.flush()
            else:
                self._flush_soon()
        self._hands -= 1
        self._flush_soon()
        self._spawn()

    def _run(self, job: Job, me: Any) -> bool:
        runs = self._runs
        try:
            plan = self._plans.get(job.task) or self._plan(job.task)
        except Exception as error:
            self.reports.broken(job.key, error)
            return True
        call = Call(job) if plan.is_async else None
        handle = Handle(me, call)
        run = Run(job, handle, monotonic())
        self.reports.begun.append(job.key)
        self._flush_soon()
        runs.keep(run, plan)
        try:
            outcome = self.runtime.execute(job) if call is None else self._await(run, call)
        except BaseException as error:
            if not runs.let_go(run):
                return False
            if isinstance(error, TaskInterrupted) or error is handle.thrown:
                runs.struck(run)
            elif isinstance(error, CancelledError):
                runs.struck(run, cancelled_by_itself(job))
            else:
                self.reports.broken(job.key, error)
            return True
        if not runs.let_go(run):
            return False
        runs.returned(run, outcome)
        return True

    def _await(self, run: Run[Handle], call: Call) -> Outcome:
        if self.coroutines is None:
            self.coroutines = Coroutines(self.runtime, self.backend.in_thread, self.backend.spawn)
        self.coroutines.ready()
        if run.handle.thrown is not None:  # it was struck meanwhile
            raise run.handle.thrown
        return self.coroutines.run(call)

    def _plan(self, task: str) -> Plan:
        plan = self._plans[task] = Plan.of(task, self.runtime)
        return plan

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.backend.spawn(self._flush)

    def _flush(self) -> None:
        """Report what has ended in one turn of the hub."""
        self._flushing = False
        self._turn += 1
        self.reports.flush()

    def _wait(self, deadline: float) -> None:
        empty = self.reports.empty
        while self.reports.held and (left := deadline - monotonic()) > 0:
            empty.clear()
            if self.reports.held:
                empty.wait(min(left, 0.05))


def refuse_unpatched(name: str, how: str) -> None:
    """Say how to get a patched process. Raises ConfigError."""
    raise ConfigError(
        f"Pool {name} needs a process that {name} has patched before anything else was imported: start the worker by "
        f"`taskq worker -P {name}` (or TASKQ_WORKER__POOL={name}, or the configuration file; settings in the "
        f"application's code come too late), or in a program of your own begin with `{how}`."
    )


__all__ = ["Backend", "GreenPool", "refuse_unpatched"]

"""Jobs that run: their limits, their cancellation, and how they end by it.

What differs between coroutines and greenlets is how one is struck (a cancellation, an exception raised in it) and how
time passes; everything else is here. All methods are called on the thread of the loop or hub.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any, Final, Generic, Protocol, TypeVar

from msgspec import Struct

from taskq.errors import (
    SoftTimeLimitExceeded,
    TaskCancelled,
    TaskFailure,
    TaskInterrupted,
    TaskQError,
    TaskRevoked,
    TimeLimitExceeded,
)
from taskq.spi import RELEASED, Finished, Job, Outcome, Runtime
from taskq_lib_pool.reports import Reports

H = TypeVar("H")

PRESS_S: Final = 0.1
"""Time between two strikes at a job that must end."""
PRESSES: Final = 10
"""Strikes after which a job is given up."""


class Timer(Protocol):
    """What has been asked to happen later."""

    def cancel(self) -> Any:
        """Have it not happen."""
        ...


class Plan(Struct, frozen=True):
    """What a pool must know of a task."""

    is_async: bool
    soft: float | None = None
    hard: float | None = None

    @classmethod
    def of(cls, task: str, runtime: Runtime) -> Plan:
        """Ask the runtime."""
        limits = runtime.limits(task)
        return cls(runtime.is_async(task), limits.soft, limits.hard)


class Run(Generic[H]):
    """A job that runs; ``handle`` is what the pool strikes it by."""

    __slots__ = ("due", "handle", "job", "left", "presses", "reason", "since", "stopping", "timer")

    def __init__(self, job: Job, handle: H, since: float) -> None:
        self.job = job
        self.handle = handle
        self.since = since
        self.reason: TaskQError | None = None
        """Why it was struck."""
        self.due = False
        """Whether the reason is its end, however it ends."""
        self.stopping = False
        """Whether it was struck because the pool stops."""
        self.presses = 0
        """How often it was told to end at once."""
        self.left = False
        """Whether it was given up: it has been reported, and what it does no longer counts."""
        self.timer: Timer | None = None


class Runs(ABC, Generic[H]):
    """The jobs that run on one loop or hub."""

    def __init__(self, reports: Reports, log: logging.Logger) -> None:
        self.reports = reports
        self.active: dict[int, Run[H]] = {}
        self.given_up: set[Run[H]] = set()
        self._log = log

    @abstractmethod
    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Timer:
        """Call something later, on this thread."""

    @abstractmethod
    def strike(self, run: Run[H], error: BaseException) -> None:
        """Raise an error in a job that waits, or cancel it for that reason."""

    @abstractmethod
    def stack(self, run: Run[H]) -> str:
        """Return where a job is."""

    @abstractmethod
    def gave_up(self, run: Run[H]) -> None:
        """Take note of the slot that is free now, and have ``report_left`` called, where that may wait."""

    # ------------------------------------------------------------------------------------------------- life of a run

    def keep(self, run: Run[H], plan: Plan) -> None:
        """Remember a job that runs, and set its limits; the time since its start counts."""
        self.active[run.job.key] = run
        if plan.soft is not None or plan.hard is not None:
            self._limit(run, plan)

    def let_go(self, run: Run[H]) -> bool:
        """Forget a job that has ended; False when it was given up before."""
        if run.timer is not None:
            run.timer.cancel()
        if run.left:
            self.given_up.discard(run)
            return False
        del self.active[run.job.key]
        return True

    def returned(self, run: Run[H], outcome: Outcome) -> None:
        """Report a job that has ended with an outcome."""
        if run.due and run.reason is not None:
            self.reports.aborted(run.job.key, run.reason)
        else:
            self.reports.done.append(Finished(run.job.key, outcome, monotonic() - run.since))

    def struck(self, run: Run[H], stray: TaskQError | None = None) -> None:
        """Report a job that a strike has ended; ``stray`` is the reason where nobody struck."""
        error = None if run.stopping and not run.due else run.reason or stray
        if error is None:
            self.returned(run, Outcome(RELEASED, "QUEUED", terminal=False))
        else:
            self.reports.aborted(run.job.key, error)

    # ------------------------------------------------------------------------------------------------------- strikes

    def _limit(self, run: Run[H], plan: Plan) -> None:
        """Set the timer of the limit that is next."""
        past = monotonic() - run.since
        if plan.soft is not None and run.reason is None and (plan.hard is None or plan.soft < plan.hard):
            run.timer = self.later(max(0.0, plan.soft - past), self._soft, run, plan)
        elif plan.hard is not None:
            run.timer = self.later(max(0.0, plan.hard - past), self._hard, run, plan)

    def _soft(self, run: Run[H], plan: Plan) -> None:
        if self._ended(run) or run.due:
            return
        run.reason = SoftTimeLimitExceeded(f"task {run.job.task} ran longer than its soft limit of {plan.soft:g} s")
        if plan.hard is not None:
            self._limit(run, plan)
        self.strike(run, run.reason)

    def _hard(self, run: Run[H], plan: Plan) -> None:
        if not self._ended(run) and not run.due:
            self._end(run, TimeLimitExceeded(f"task {run.job.task} ran longer than its limit of {plan.hard:g} s"))

    def cancel(self, keys: Iterable[int], hard: bool) -> None:
        """Cancel jobs; ``hard``: until they end or are given up."""
        for key in keys:
            run = self.active.get(key)
            if run is None or run.due:
                continue
            text = f"task {run.job.task} was cancelled while it ran"
            if hard:
                self._end(run, TaskRevoked(text))
            elif run.reason is None:
                run.reason = TaskRevoked(text)
                self.strike(run, TaskCancelled(text))

    def interrupt(self) -> None:
        """Interrupt every job: the pool stops."""
        for run in list(self.active.values()):
            if not self._ended(run) and not run.due and not run.stopping:
                run.stopping = True
                self._press(run)

    def _end(self, run: Run[H], reason: TaskQError) -> None:
        """Make a job end, or be given up, within a second or so."""
        run.reason, run.due = reason, True
        self._press(run)

    def _press(self, run: Run[H]) -> None:
        """Strike again and again: a task may swallow one, and a loop in it many."""
        if run.timer is not None:
            run.timer.cancel()
        if self._ended(run):
            return
        if run.presses == PRESSES and run.due and not run.left:
            self._give_up(run)
        run.presses += 1
        run.timer = self.later(PRESS_S * max(1, run.presses - PRESSES), self._press, run)
        self.strike(run, TaskInterrupted("the worker stops now" if run.reason is None else str(run.reason)))

    def _give_up(self, run: Run[H]) -> None:
        run.left = True
        self.given_up.add(run)
        del self.active[run.job.key]
        self.gave_up(run)

    def report_left(self, run: Run[H]) -> None:
        """Report a job that was given up."""
        self._log.error(
            "task %s [%d] did not end when it was told to %d times; it is reported as ended, but still runs:\n%s",
            run.job.task, run.job.key, run.presses, self.stack(run),
        )  # fmt: skip
        assert run.reason is not None
        self.reports.aborted(run.job.key, run.reason)

    def _ended(self, run: Run[H]) -> bool:
        return not run.left and self.active.get(run.job.key) is not run


def cancelled_by_itself(job: Job) -> TaskFailure:
    """Return the reason for a coroutine that was cancelled by nobody who is known."""
    return TaskFailure(f"task {job.task} was cancelled, or something it waited for, and nobody had asked")

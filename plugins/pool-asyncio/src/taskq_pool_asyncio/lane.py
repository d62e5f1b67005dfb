"""One event loop, and the slots that it serves."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct

from taskq.errors import (
    SoftTimeLimitExceeded,
    TaskFailure,
    TaskInterrupted,
    TaskQError,
    TaskRevoked,
    TimeLimitExceeded,
)
from taskq.spi import RELEASED, Finished, Job, Outcome
from taskq_lib_pool.reports import FLUSH_JOBS, FLUSH_S
from taskq_pool_asyncio.crew import SHORT_S
from taskq_pool_asyncio.driver import Driver, Run, steps
from taskq_pool_asyncio.stacks import stack_of

if TYPE_CHECKING:
    from taskq_pool_asyncio.pool import AsyncioPool

log = logging.getLogger("taskq.pool.asyncio")

BURST: Final = 64
"""Most drivers that start in one turn of the loop, where jobs wait."""
PRESS_S: Final = 0.1
"""Time between two cancellations of a job that must end."""
PRESSES: Final = 10
"""Cancellations after which a job is given up."""


class Plan(Struct, frozen=True):
    """What the pool must know of a task."""

    is_async: bool
    soft: float | None = None
    hard: float | None = None


class Lane:
    """One event loop on a thread of its own. Its attributes are changed on that thread, unless told otherwise."""

    def __init__(self, pool: AsyncioPool, name: str, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.pool = pool
        self.slots = 0
        self.busy = 0
        """Slots taken by jobs that wait, or run on a thread."""
        self.drivers = 0
        """Drivers that look for jobs, or are about to. While there is one, nobody needs to wake the loop."""
        self.kicked = False
        """Whether a kick is under way; set by any thread."""
        self.current: Job | None = None
        """The job whose code the loop's thread is in."""
        self.runs: dict[int, Run] = {}
        self.given_up: set[Run] = set()
        self.loop = new_loop()
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._burst = 1
        self._flushing = False
        self._asked = False
        self._delayed = False  # threads are at what is next
        self._released = 0  # slots given back by threads; each adds under the lock
        self._lock = threading.Lock()
        self._executor = ThreadPoolExecutor(thread_name_prefix=f"{name}-helper")  # of the tasks' own to_thread

    # ------------------------------------------------------------------------------------------------- any thread

    def call(self, function: Callable[..., Any], *arguments: Any) -> bool:
        """Have the loop call something; False when it has ended."""
        try:
            self.loop.call_soon_threadsafe(function, *arguments)
        except RuntimeError:
            return False
        return True

    def wake(self) -> None:
        """Have the loop look for jobs, unless it does already."""
        if self.drivers == 0 and not self.kicked and self.busy < self.slots:
            self.kicked = True
            self.call(self._kick)

    def release(self) -> None:
        """Give back the slot of a job that a thread has run."""
        with self._lock:
            self._released += 1
        if not self.kicked:
            self.kicked = True
            self.call(self._kick)

    def report_soon(self) -> None:
        """Have the reports flushed within their time."""
        if not self._asked:
            self._asked = True
            self.call(self.loop.call_later, FLUSH_S, self._flush_asked)

    def resize(self, slots: int) -> None:
        """Change the number of slots."""
        self.slots = slots
        self.call(self._spawn)

    # ---------------------------------------------------------------------------------------------- finding jobs

    def _kick(self) -> None:
        self.kicked = self._delayed = False
        if self._released:
            with self._lock:
                self.busy -= self._released
                self._released = 0
        self._spawn()

    def _spawn(self) -> None:
        """Start as many drivers as there is work for: one where jobs end without waiting, else one for each."""
        if self._delayed:
            return
        wanted = min(len(self.pool.ready), self.slots - self.busy, self._burst) - self.drivers
        for _ in range(wanted):
            self.drivers += 1
            box: list[Driver] = []  # asyncio.current_task() is slow before Python 3.12
            driver = Driver(self._drive(box), loop=self.loop, context=self.pool.context.copy())
            driver.spoilt = False
            box.append(driver)

    async def _drive(self, box: list[Driver]) -> None:
        """Run jobs until none is left, or one waits: then that one to its end."""
        pool, reports = self.pool, self.pool.reports
        take, begin, done = pool.ready.popleft, reports.begun.append, reports.done
        plans, execute, clock = pool.plans, pool.runtime.execute_async, monotonic
        me = box.pop()
        references = me.references()
        now = clock()
        pause = now + FLUSH_S
        while self.busy < self.slots:
            try:
                job = take()
            except IndexError:
                break
            try:
                plan = plans.get(job.task) or pool.plan(job.task)
            except Exception as error:
                reports.broken(job.key, error)
                continue
            if not plan.is_async:
                if pool.crew.enough():
                    pool.ready.appendleft(job)
                    self._delayed = True
                    self.loop.call_later(SHORT_S, self._kick)
                    break
                self.busy += 1
                pool.crew.give(self, job)
                continue
            begin(job.key)
            self.current = job
            since = now
            context = copy_context()
            coroutine = execute(job)
            try:
                waiting = context.run(coroutine.send, None)
            except StopIteration as stop:
                now = clock()
                done.append(Finished(job.key, stop.value, now - since))
                if me.spoilt or me.references() > references:
                    break
                if now >= pause:
                    self.current = None
                    reports.flush()
                    await asyncio.sleep(0)
                    references = me.references()
                    now = clock()
                    pause = now + FLUSH_S
                elif len(done) >= FLUSH_JOBS:
                    reports.flush()
                continue
            except BaseException as error:
                self.current = None
                self._raised(Run(job, me, coroutine, since), error)
                break
            self.current = None
            run = Run(job, me, coroutine, since)
            self._keep(run, plan)
            try:
                outcome = await steps(self, run, context, waiting)
            except GeneratorExit:
                raise
            except BaseException as error:
                self._let_go(run)
                self._raised(run, error)
            else:
                self._let_go(run)
                self._returned(run, outcome)
            self._flush_soon()
            self._spawn()
            return
        self.current = None
        self._burst = 1
        self.drivers -= 1
        reports.flush()
        self._spawn()  # whoever adds jobs looks at ``drivers`` after that, hence this order

    def _keep(self, run: Run, plan: Plan) -> None:
        """Remember a job that waits, with its limits, and have another driver look for jobs."""
        self.runs[run.job.key] = run
        if plan.soft is not None or plan.hard is not None:
            self._limit(run, plan)
        self.busy += 1
        self.drivers -= 1
        self._burst = BURST
        self._flush_soon()
        self._spawn()

    def _let_go(self, run: Run) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if run.left:
            self.given_up.discard(run)
        else:
            del self.runs[run.job.key]
            self.busy -= 1

    # ------------------------------------------------------------------------------------------------------- ends

    def _returned(self, run: Run, outcome: Outcome) -> None:
        if run.left:
            return
        if run.due and run.reason is not None:
            self.pool.reports.aborted(run.job.key, run.reason)
        else:
            self.pool.reports.done.append(Finished(run.job.key, outcome, monotonic() - run.since))

    def _raised(self, run: Run, error: BaseException) -> None:
        """Report a run that raised; only cancellations and interruptions may."""
        reports, key = self.pool.reports, run.job.key
        if run.left:
            return
        if isinstance(error, TaskInterrupted) or (isinstance(error, asyncio.CancelledError) and run.stopping):
            outcome = Outcome(RELEASED, "QUEUED", terminal=False)
            reports.done.append(Finished(key, outcome, monotonic() - run.since))
        elif isinstance(error, asyncio.CancelledError) or run.due:
            reports.aborted(
                key,
                run.reason
                or TaskFailure(f"task {run.job.task} was cancelled, or something it waited for, and nobody had asked"),
            )
        else:
            reports.broken(key, error)

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self.loop.call_soon(self._flush)

    def _flush_asked(self) -> None:
        self._asked = False
        self.pool.reports.flush()

    def _flush(self) -> None:
        self._flushing = False
        self.pool.reports.flush()

    # ----------------------------------------------------------------------------------- limits and cancellation

    def _limit(self, run: Run, plan: Plan) -> None:
        """Set the timer of the limit that is next; time spent before the first wait counts."""
        past = monotonic() - run.since
        if plan.soft is not None and run.reason is None and (plan.hard is None or plan.soft < plan.hard):
            run.timer = self.loop.call_later(max(0.0, plan.soft - past), self._soft, run, plan)
        elif plan.hard is not None:
            run.timer = self.loop.call_later(max(0.0, plan.hard - past), self._hard, run, plan)

    def _soft(self, run: Run, plan: Plan) -> None:
        if not run.due:
            run.reason = SoftTimeLimitExceeded(f"task {run.job.task} ran longer than its soft limit of {plan.soft:g} s")
            run.driver.cancel(str(run.reason))
            if plan.hard is not None:
                self._limit(run, plan)

    def _hard(self, run: Run, plan: Plan) -> None:
        if not run.due:
            self._end(run, TimeLimitExceeded(f"task {run.job.task} ran longer than its limit of {plan.hard:g} s"))

    def cancel(self, keys: list[int], hard: bool) -> None:
        """Cancel jobs that have begun."""
        for key in keys:
            run = self.runs.get(key)
            if run is None or run.due:
                continue
            reason = TaskRevoked(f"task {run.job.task} was cancelled while it ran")
            if hard:
                self._end(run, reason)
            elif run.reason is None:
                run.reason = reason
                run.driver.cancel(str(reason))

    def interrupt(self) -> None:
        """Cancel every job that waits: the pool stops."""
        for run in list(self.runs.values()):
            if not run.due and not run.stopping:
                run.stopping = True
                self._press(run)

    def _end(self, run: Run, reason: TaskQError) -> None:
        """Make a job end, or be given up, within a second or so."""
        run.reason, run.due = reason, True
        self._press(run)

    def _press(self, run: Run) -> None:
        """Cancel again and again: a task may swallow a cancellation, and a loop in it many."""
        if run.timer is not None:
            run.timer.cancel()
        if run.presses == PRESSES and run.due and not run.left:
            self._give_up(run)
        run.presses += 1
        run.driver.cancel(None if run.reason is None else str(run.reason))
        run.timer = self.loop.call_later(PRESS_S * max(1, run.presses - PRESSES), self._press, run)

    def _give_up(self, run: Run) -> None:
        log.error(
            "task %s [%d] did not end when it was cancelled %d times; it is reported as ended, but still runs:\n%s",
            run.job.task, run.job.key, run.presses, stack_of(run.coroutine),
        )  # fmt: skip
        run.left = True
        self.given_up.add(run)
        del self.runs[run.job.key]
        self.busy -= 1
        assert run.reason is not None
        self.pool.reports.aborted(run.job.key, run.reason)
        self._spawn()

    # ------------------------------------------------------------------------------------------------- the thread

    def _live(self) -> None:
        loop = self.loop
        asyncio.set_event_loop(loop)
        loop.set_default_executor(self._executor)
        try:
            loop.run_forever()
        finally:
            self._executor.shutdown(wait=False, cancel_futures=True)
            with suppress(RuntimeError):
                self._clear(loop)
                loop.close()
            asyncio.set_event_loop(None)

    @staticmethod
    def _clear(loop: asyncio.AbstractEventLoop) -> None:
        """End what tasks have left on the loop."""
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=0.5))
        for task in left:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]  # it was reported already
        loop.run_until_complete(loop.shutdown_asyncgens())

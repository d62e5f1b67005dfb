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

from taskq.errors import TaskInterrupted
from taskq.spi import Finished, Job
from taskq_lib_pool.reports import FLUSH_JOBS, FLUSH_S
from taskq_lib_pool.runs import Plan, Run, Runs, Timer, cancelled_by_itself
from taskq_lib_pool.stacks import stack_of
from taskq_pool_asyncio.crew import SHORT_S
from taskq_pool_asyncio.driver import Driver, Waiting, steps

if TYPE_CHECKING:
    from taskq_pool_asyncio.pool import AsyncioPool

log = logging.getLogger("taskq.pool.asyncio")

BURST: Final = 64
"""Most drivers that start in one turn of the loop, where jobs wait."""


class Lane(Runs[Waiting]):
    """One event loop on a thread of its own. Its attributes are changed on that thread, unless told otherwise."""

    def __init__(self, pool: AsyncioPool, name: str, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        super().__init__(pool.reports, log)
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
                self._raised(Run(job, Waiting(me, coroutine), since), error)
                break
            self.current = None
            run = Run(job, Waiting(me, coroutine), since)
            self._waits(run, plan)
            try:
                outcome = await steps(self, run, context, waiting)
            except GeneratorExit:
                raise
            except BaseException as error:
                if self._over(run):
                    self._raised(run, error)
            else:
                if self._over(run):
                    self.returned(run, outcome)
            self._flush_soon()
            self._spawn()
            return
        self.current = None
        self._burst = 1
        self.drivers -= 1
        reports.flush()
        self._spawn()  # whoever adds jobs looks at ``drivers`` after that, hence this order

    def _waits(self, run: Run[Waiting], plan: Plan) -> None:
        """Remember a job that waits, and have another driver look for jobs."""
        self.keep(run, plan)
        self.busy += 1
        self.drivers -= 1
        self._burst = BURST
        self._flush_soon()
        self._spawn()

    def _over(self, run: Run[Waiting]) -> bool:
        mine = self.let_go(run)
        self.busy -= mine
        return mine

    def _raised(self, run: Run[Waiting], error: BaseException) -> None:
        """Report a run that raised; only cancellations and interruptions may."""
        if isinstance(error, TaskInterrupted):
            self.struck(run)
        elif isinstance(error, asyncio.CancelledError) or run.due:
            self.struck(run, cancelled_by_itself(run.job))
        else:
            self.reports.broken(run.job.key, error)

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

    # ------------------------------------------------------------------------------------- limits and cancellation

    def later(self, seconds: float, function: Callable[..., Any], *arguments: Any) -> Timer:
        return self.loop.call_later(seconds, function, *arguments)

    def strike(self, run: Run[Waiting], error: BaseException) -> None:
        run.handle.driver.cancel(str(error))

    def stack(self, run: Run[Waiting]) -> str:
        return stack_of(run.handle.coroutine)

    def gave_up(self, run: Run[Waiting]) -> None:
        self.busy -= 1
        self.report_left(run)
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

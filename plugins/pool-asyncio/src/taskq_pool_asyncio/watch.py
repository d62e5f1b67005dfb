"""The watchdog: warns of a task that keeps its event loop from running others."""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Final

from taskq_lib_pool.stacks import stack_of_thread
from taskq_pool_asyncio.lane import Lane, log

if TYPE_CHECKING:
    from taskq_pool_asyncio.pool import AsyncioPool

PERIOD_S: Final = 0.25


class _Pulse:
    """What is known of one loop: since when it has not answered."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.asked: float | None = None
        self.warned = False

    def ask(self, now: float) -> None:
        self.asked = now
        self.lane.call(self._answer)

    def _answer(self) -> None:
        self.asked, self.warned = None, False


class Watchdog:
    """A thread that asks each loop for a sign of life while there are jobs, and sleeps while there are none."""

    def __init__(self, pool: AsyncioPool, name: str, warn_after: float) -> None:
        self._pool = pool
        self._warn_after = warn_after
        self._period = min(PERIOD_S, warn_after / 4) if warn_after else PERIOD_S
        self._pulses = [_Pulse(lane) for lane in pool.lanes]
        self._alarm = threading.Event()
        self._end = threading.Event()
        self.resting = False
        """Whether it must be called when there are jobs; read by any thread."""
        self._thread = threading.Thread(target=self._watch, name=name, daemon=True)
        self.start = self._thread.start

    def call(self) -> None:
        """Say that there are jobs."""
        self.resting = False
        self._alarm.set()

    def stop(self) -> None:
        """End the thread."""
        self._end.set()
        self._alarm.set()
        if self._thread.ident is not None:
            self._thread.join(1.0)

    def _watch(self) -> None:
        reports = self._pool.reports
        while not self._end.wait(self._period):
            if not reports.held:
                self.resting = True
                if not reports.held:  # else: it came while nobody could call
                    self._alarm.wait()
                    self._alarm.clear()
                self.resting = False
                continue
            if reports.pending():
                reports.flush()  # what ended before a job that blocks the loop
            if self._warn_after:
                now = monotonic()
                for pulse in self._pulses:
                    self._look(pulse, now)

    def _look(self, pulse: _Pulse, now: float) -> None:
        asked = pulse.asked
        if asked is None:
            pulse.ask(now)
        elif now - asked >= self._warn_after and not pulse.warned:
            pulse.warned = True
            lane = pulse.lane
            job = lane.current
            run = None if job is None else lane.active.get(job.key)
            log.warning(
                "%s blocks the event loop %s since %.1f s: no other task runs there. Wait with await, give computing "
                "to asyncio.to_thread, or make it a def task. It is here:\n%s",
                "something" if job is None else f"task {job.task} [{job.key}]"
                + ("" if run is None else f", which began {now - run.since:.1f} s ago,"),
                lane.thread.name, now - asked, stack_of_thread(lane.thread.ident),
            )  # fmt: skip

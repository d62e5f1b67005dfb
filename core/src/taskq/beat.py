"""Beat: sends tasks by the clock, from whatever keeps the schedules.

A firing is named by its schedule and its nominal time, and so is the message that it sends; where two beats share one
scheduler, the scheduler's lease lets one of them send.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import TYPE_CHECKING

from taskq.errors import SendFailed, StoreError, TaskQError, TransportError
from taskq.spi.clock import Clock
from taskq.spi.scheduling import Fire, Schedule, Scheduler

if TYPE_CHECKING:
    from taskq.app import TaskQ

logger = logging.getLogger("taskq.beat")
_LEASE = 30.0
_LONGEST_WAIT = 30.0
_LOOK = 1.0
"""Longest wait in seconds without a look at ``stop``."""
_RETRY = 2.0
_BATCH = 100


class Beat:
    """Runs the schedules of one application: those of the setting ``schedules``, and those added to its scheduler."""

    def __init__(self, app: TaskQ, scheduler: Scheduler | None = None, clock: Clock | None = None) -> None:
        self._app = app
        self._clock = clock or app.clock
        self.scheduler: Scheduler = scheduler or app.component("scheduler", app.settings.scheduler)
        self._owner = f"{socket.gethostname()}-{os.getpid()}"
        self._stop = threading.Event()

    def open(self) -> None:
        """Open the scheduler and bring the configured schedules into it.

        Raises:
            NotSupported: the scheduler cannot keep a rule.
        """
        self._app.import_tasks()
        self.scheduler.open()
        now = self._clock.now()
        for name, entry in self._app.settings.schedules.items():
            schedule = Schedule(
                id=name, task=entry.task, rule=entry.rule, args=list(entry.args), kwargs=dict(entry.kwargs),
                options=dict(entry.options), enabled=entry.enabled,
            )  # fmt: skip
            self.scheduler.upsert(schedule, now=now)

    def run(self) -> None:
        """Send what is due until ``stop``."""
        self.open()
        logger.info("beat started: %d schedules", len(self.scheduler.list(limit=10_000)))
        try:
            while not self._stop.is_set():
                self.scheduler.wake(min(_LOOK, self.fire_due()))
        finally:
            self.scheduler.close()

    def fire_due(self) -> float:
        """Send what is due now; return seconds until the next is."""
        now = self._clock.now()
        for fire in self.scheduler.lease(self._owner, now, limit=_BATCH, ttl=_LEASE):
            try:
                self._send(fire)
            except (TransportError, SendFailed, StoreError) as error:
                # not settled: it is leased again, and the message's fixed id names the same firing
                logger.error("schedule %s could not be sent and is tried again: %s", fire.schedule.id, error)
                return _RETRY
            except TaskQError as error:
                # wrong arguments, an unknown option: no repeat would help, and the other schedules go on
                logger.error("schedule %s cannot be sent: %s", fire.schedule.id, error)
            self.scheduler.settle([fire], now=self._clock.now())
        due = self.scheduler.next_due()
        return _LONGEST_WAIT if due is None else max(0.0, min(_LONGEST_WAIT, due - self._clock.now()))

    def _send(self, fire: Fire) -> None:
        schedule = fire.schedule
        options = {"task_id": f"{schedule.id}@{fire.due:.3f}", **schedule.options}
        sent = self._app.send_task(schedule.task, schedule.args, schedule.kwargs, **options)
        logger.info("schedule %s: task %s [%s] sent", schedule.id, schedule.task, sent.id)

    def stop(self) -> None:
        """End ``run`` soon; any thread may call it."""
        self._stop.set()

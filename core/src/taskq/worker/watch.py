"""The watch: is this worker healthy, what does it run, and does it get on with its work?

Health is judged by progress, not by the process being there. A worker with free slots and a backlog that ends nothing
subscribes again after ``worker.stall_timeout``, and exits after twice that time, so that its supervisor starts a new
one.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

from msgspec import Struct

from taskq.errors import TransportError, WorkerError
from taskq.spi.pool import Running, SupportsInspect
from taskq.spi.transport import SupportsStats
from taskq.worker.inline import InlineEngine

if TYPE_CHECKING:
    from taskq.worker.lane import Lane
    from taskq.worker.worker import Worker

logger = logging.getLogger("taskq.worker")
_PERIOD = 1.0
_TICK, _IDLE_TICK = 0.1, 0.5
_SILENCE = 60.0
"""Seconds without a turn of the intake, which turns every few seconds at the latest, after which it counts as stuck."""
_WAITING = 5.0
"""Seconds for which a start that had to wait for the result store counts: it tries again more often than that."""
_LAST_RESORT = 30.0
"""Seconds after the grace in which a worker that stands still must have ended by itself."""


class RunningTask(Struct, frozen=True):
    """A task that runs now: ``age`` in seconds, ``where`` the thread, process or coroutine, ``stack`` if asked for."""

    task: str
    id: str
    queue: str
    attempt: int
    age: float
    where: str
    stack: str | None = None


class Health(Struct, frozen=True):
    """How a worker is. ``live``: restarting would not help; ready: it takes and ends work; ``reasons`` say why not.

    Times in seconds; ``idle_for`` since something last ended, ``oldest_task`` the age of the task that runs longest.
    """

    live: bool
    ready: bool
    reasons: tuple[str, ...]
    worker: str
    pid: int
    pools: tuple[str, ...]
    queues: tuple[str, ...]
    slots: int
    held: int
    ended: int
    failed: int
    uptime: float
    idle_for: float
    oldest_task: float | None = None
    wanted_slots: int | None = None
    """What the autoscaler would like, beyond its bounds, too; for scalers outside."""


class _Progress:
    """Whether one lane gets on with its work."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._since = self.moved = time.monotonic()
        self._turns = -1
        self._warned = False
        self.stalled = False

    def tick(self, now: float) -> None:
        """Look whether work goes on; ``now`` is monotonic."""
        lane, worker, engine = self._lane, self._lane.worker, self._lane.engine
        turns = lane.settler.turns
        if turns != self._turns:
            self._turns, self.moved = turns, now
            self._since, self._warned, self.stalled = now, False, False
            return
        limit = lane.settings.stall_timeout
        waits = lane.broker_down or lane.settler.blocked or now - lane.waits_for_store < _WAITING
        if worker.stopping or waits or engine.full():
            self._since = now
            return
        if now - self._since < limit:
            return
        backlog = self._backlog()
        if not backlog:
            self._since = now
            return
        self.stalled = True
        if not self._warned:
            self._warned, self._since = True, now
            logger.error(
                "no progress for %.0f s although %d message(s) wait and slots are free; subscribing again",
                limit,
                backlog,
            )
            engine.resubscribe()
            return
        worker.fail(
            WorkerError(
                f"no progress for {2 * limit:.0f} s although {backlog} message(s) wait and slots are free, and "
                "subscribing again did not help; this worker ends, so that its supervisor starts a new one"
            )
        )
        self._since = now + _LAST_RESORT
        if worker.has_process:  # whatever hangs here must not keep the process; a good end needs no wait for this
            last = threading.Timer(worker.settings.grace + _LAST_RESORT, os._exit, (1,))
            last.daemon = True
            last.start()

    def _backlog(self) -> int:
        """Return how many messages this worker could take now; unordered queues only, others may wait for a group."""
        lane = self._lane
        if not isinstance(lane.transport, SupportsStats):
            return 0
        queues = [q.queue for q in lane.queues if not lane.app.queue_spec(q.queue).ordered]
        try:
            return sum(counts.ready or 0 for counts in lane.transport.stats(queues).values())
        except TransportError as error:
            logger.debug("watch: no counts this time: %s", error)
            return 0


class Watch:
    """Watches one worker; everything but its own thread may be called by any thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._next = 0.0
        self._started = time.monotonic()
        self._progress: dict[Lane, _Progress] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="taskq-watch", daemon=True)

    def start(self) -> None:
        """Start the thread that looks; it asks brokers for counts, which leases must not wait for."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=5)

    def _run(self) -> None:
        worker = self._worker
        while not self._stop.wait(_TICK if worker.autoscale is not None else _IDLE_TICK):
            try:
                worker.tick(time.monotonic())
            except Exception:
                logger.exception("the worker's watch met an unexpected error; it goes on")

    def tick(self, now: float) -> None:
        """Look whether work goes on, once a second; ``now`` is monotonic."""
        if now < self._next:
            return
        self._next = now + _PERIOD
        for lane in self._worker.lanes:
            if lane.up:
                self._of(lane).tick(now)

    def _of(self, lane: Lane) -> _Progress:
        return self._progress.setdefault(lane, _Progress(lane))

    # ------------------------------------------------------------------------------------------------------ health

    def health(self) -> Health:
        """Return how the worker is."""
        worker, now = self._worker, time.monotonic()
        dead: list[str] = []
        unready: list[str] = []
        if not worker.ready.is_set():
            unready.append("it is not started, or has stopped")
        if worker.stopping:
            unready.append("it is stopping")
        up = [lane for lane in worker.lanes if lane.up]
        for lane in worker.lanes:
            which = f" {lane.broker or lane.label}" if len(worker.lanes) > 1 else ""
            if not lane.up or lane.broker_down:
                unready.append(f"the broker{which} is not available")
            if not lane.up:
                continue
            if now - lane.engine.turned > _SILENCE and not lane.engine.full() and not worker.stopping:
                dead.append(f"the intake{which} has not turned for {now - lane.engine.turned:.0f} s")
            if lane.settler.fatal is not None:
                dead.append(f"it ends: {lane.settler.fatal}")
            if lane.settler.blocked:
                unready.append(f"finished tasks cannot be settled: broker{which} or result store is not available")
            if now - lane.waits_for_store < _WAITING:
                unready.append("tasks cannot be started: the result store is not available")
            if self._of(lane).stalled:
                unready.append(f"there is a backlog{which and ' on' + which}, slots are free, and nothing ends")
        running = self.running()
        return Health(
            live=not dead, ready=not dead and not unready, reasons=(*dead, *unready), worker=worker.name,
            pid=os.getpid(), pools=tuple(p.spec.name for p in worker.pools),
            queues=tuple(q.queue for lane in worker.lanes for q in lane.queues), slots=worker.slots,
            held=worker.held_count(), ended=sum(lane.settler.ended for lane in up),
            failed=sum(lane.settler.failed for lane in up), uptime=now - self._started,
            idle_for=now - max((self._of(lane).moved for lane in up), default=self._started),
            oldest_task=max((r.age for r in running), default=None), wanted_slots=worker.wanted_slots,
        )  # fmt: skip

    def running(self, *, stacks: bool = False) -> list[RunningTask]:
        """Return the tasks that run now, the oldest first, as far as the pool can tell."""
        worker, now, found = self._worker, time.monotonic(), []
        pool = worker.pool
        for entry in pool.running(stacks=stacks) if isinstance(pool, SupportsInspect) else self._inline(stacks):
            job = worker.find_held(entry.key)
            if job is not None and job.header is not None:
                header = job.header
                age = max(0.0, now - entry.since)
                found.append(RunningTask(job.task, header.id, job.queue, header.attempt, age, entry.where, entry.stack))
        return found

    def _inline(self, stacks: bool) -> list[Running]:
        """Say what can be said of a pool that does not tell."""
        lane = self._worker.lanes[0]
        engine = lane.engine
        if not isinstance(engine, InlineEngine) or not engine.running or engine.thread is None:
            return []
        frame = sys._current_frames().get(engine.thread) if stacks else None
        stack = None if frame is None else "".join(traceback.format_stack(frame))
        # which of the batch it is, only the pool knows: the first one held that has not ended
        key = next(iter(lane.held), None)
        return [] if key is None else [Running(key, engine.turned, "the worker's own thread", stack)]

    def dump(self) -> None:
        """Log what runs where, with stacks."""
        tasks = self.running(stacks=True)
        health = self.health()
        logger.warning(
            "dump: worker %s, %s, %d slot(s), %d message(s) held, %d ended, %d task(s) running%s",
            health.worker, "+".join(health.pools), health.slots, health.held, health.ended, len(tasks),
            "" if health.ready else "; not ready: " + "; ".join(health.reasons),
        )  # fmt: skip
        for task in tasks:
            stack = "\n" + task.stack.rstrip() if task.stack else ""
            logger.warning(
                "dump: task %s [%s] for %.1f s in %s, from %s, attempt %d%s",
                task.task, task.id, task.age, task.where, task.queue, task.attempt, stack,
            )  # fmt: skip

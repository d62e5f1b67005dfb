"""An application's broker, results, worker and time inside one test: no server, no file, nothing left behind.

    with in_memory(app):                     # the application's own settings otherwise
        order.delay(17)
        run_until_idle(app)                  # the worker runs here, on this thread, and stops when nothing is left
        assert order_was_shipped(17)

``taskq.testing.app`` has the same as pytest fixtures.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec

from taskq import shared
from taskq.app import TaskQ
from taskq.errors import NotSupported, TaskQError, TaskTimeout
from taskq.message import QueueStats
from taskq.spi.clock import Clock
from taskq.spi.pool import TaskLimits
from taskq.spi.transport import SupportsPeek, SupportsStats
from taskq.testing.clock import VirtualClock
from taskq.worker import Worker
from taskq.worker.plan import PlannedPool

_LOOK_EVERY = 0.001
_LEASE = 1e9
"""Seconds; a test that moves its clock by a day must not take messages away from a task that runs."""


@contextmanager
def in_memory(app: TaskQ | None = None, *, clock: Clock | None = None, **settings: Any) -> Iterator[TaskQ]:
    """Give an application a broker and a result store of its own in this process, for the time of a block.

    Needs the plugins taskq-transport-memory and taskq-store-memory. What the application had open is closed first;
    afterwards it has its own settings again.

    Args:
        app: the application; None for a new one that ignores files and environment.
        clock: a ``VirtualClock`` to move by hand; tasks with a countdown, eta or back-off wait for it.
        settings: further settings for the block, as on the command line (``max_retries=0``, …).
    """
    current = shared._current
    if app is None:
        app = TaskQ("test", isolated=True)
    config, cli, own_clock = app.config, app.cli_settings, app.clock
    changes = {"broker": "memory://", "lease": _LEASE, **settings}
    if app.settings.result_store not in (None, ()) and "result_store" not in changes:
        changes["result_store"] = "memory://"
    app.close()
    try:
        app.cli_settings = {**cli, **changes}
        app.config = config.reloaded(cli=app.cli_settings)
        app.clock = own_clock if clock is None else clock
        yield app
    finally:
        app.close()
        app.config, app.cli_settings, app.clock = config, cli, own_clock
        shared._current = current


@contextmanager
def running_worker(app: TaskQ, **options: Any) -> Iterator[Worker]:
    """Run a worker on a thread for the time of a block; what ended it is raised at the end.

    Its tasks must be declared before. ``options`` are the settings under ``worker``; without a ``pool`` it is solo, and
    time limits and recycling are not kept.
    """
    worker = _worker(app, options)
    with worker:
        yield worker
    if worker._failure is not None:
        raise worker._failure


def run_until_idle(
    app: TaskQ, *, delayed: bool = False, timeout: float = 30.0, queues: Sequence[str] = (), **options: Any
) -> int:
    """Run what waits in the application's queues, and what that sends, on this thread; return how many runs ended.

    A failed task raises nothing here: ask its result, or look at the dead letters. Time limits are not kept.

    Args:
        delayed: run tasks with a countdown, eta or back-off as well, by moving the application's ``VirtualClock`` from
            one to the next; otherwise they are left where they are.
        timeout: seconds after which the worker is stopped, once the task that runs has ended.
        queues: queues to serve; default: all that the application names.
        options: further settings of the worker.

    Raises:
        TaskTimeout: work was left after ``timeout`` seconds.
        NotSupported: ``delayed`` without a virtual clock, or a broker that cannot be looked into.
        TaskQError: what ended the worker.
    """
    clock = app.clock
    if delayed and not isinstance(clock, VirtualClock):
        raise NotSupported(
            "delayed=True moves the clock: use in_memory(app, clock=VirtualClock()) or the taskq_clock fixture"
        )
    names = list(queues) or app.queue_names()
    watch = _Watch(app, names, clock if delayed and isinstance(clock, VirtualClock) else None, timeout)
    worker = _worker(app, {"queues": names, **options})
    watcher = threading.Thread(target=watch.run, args=(worker,), name="taskq-until-idle", daemon=True)
    watcher.start()
    try:
        worker.run(signals=False)
    finally:
        watch.over.set()
        watcher.join()
    if watch.error is not None:
        raise watch.error
    return sum(lane.settler.ended for lane in worker.lanes_up)


def _worker(app: TaskQ, options: Mapping[str, Any]) -> Worker:
    """Return a worker that ignores what the application's settings ask of a pool in production."""
    if "pool" in options:
        return app.worker(**{"grace": 5.0, **options})
    return _SoloWorker(app, **{"pool": "solo", "concurrency": 1, "grace": 5.0, **options})


class _SoloWorker(Worker):
    """Runs any task on one thread, its limits or no."""

    def __init__(self, app: TaskQ, **options: Any) -> None:
        super().__init__(app, **options)
        unset = {"autoscale": None, "max_tasks_per_child": None, "max_memory_per_child": None}
        self.settings = msgspec.structs.replace(self.settings, **unset)

    def _prepare(self) -> None:
        super()._prepare()
        self.runtime.limits = lambda task: TaskLimits()  # type: ignore[method-assign]  # signals need the main thread

    def _plan(self) -> list[PlannedPool]:
        return [PlannedPool(self.app.plugins.select("pool", "solo"), 1, set(self.app.tasks))]


class _Watch:
    """Looks at the queues beside a worker, and stops it when they are empty."""

    def __init__(self, app: TaskQ, names: Sequence[str], clock: VirtualClock | None, timeout: float) -> None:
        transport: Any = app.transport
        if not isinstance(transport, SupportsStats) or not isinstance(transport, SupportsPeek):
            raise NotSupported(f"{app.broker_name} cannot be looked into; use in_memory(app)")
        self._transport: Any = transport
        self._names = names
        self._clock = clock
        self._timeout = timeout
        self.over = threading.Event()
        self.error: TaskQError | None = None

    def run(self, worker: Worker) -> None:
        """Return when the worker is to stop, or has ended by itself."""
        deadline = time.monotonic() + self._timeout
        try:
            while not self.over.wait(_LOOK_EVERY):
                if worker.ready.is_set() and self._idle(worker):
                    return
                if time.monotonic() > deadline:
                    left = ", ".join(f"{name}: {count}" for name, count in self._transport.stats(self._names).items())
                    self.error = TaskTimeout(f"the queues were not empty after {self._timeout:g} s: {left}")
                    return
        except TaskQError as error:
            self.error = error
        finally:
            worker.stop()

    def _idle(self, worker: Worker) -> bool:
        counts: Sequence[QueueStats] = list(self._transport.stats(self._names).values())
        if (
            any(c.ready or c.in_flight for c in counts)
            or worker.held_count()
            or any(lane.settler.waiting for lane in worker.lanes_up)
        ):
            return False
        if self._clock is None or not any(c.delayed for c in counts):
            return True
        waiting = [peeked.delay for name in self._names for peeked in self._transport.peek(name, limit=10_000)]
        self._clock.advance(max(0.0, min(waiting, default=0.0)))
        return False


__all__ = ["in_memory", "run_until_idle", "running_worker"]

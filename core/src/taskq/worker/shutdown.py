"""Signals of a worker process.

TERM and INT stop it warmly (at once while it starts), a second one interrupts, QUIT is cold; HUP stops it warmly and
starts it anew; USR1 logs what runs where.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from taskq.errors import TaskInterrupted
from taskq.worker.inline import InlineEngine

if TYPE_CHECKING:
    from taskq.worker.worker import Worker

logger = logging.getLogger("taskq.worker")
EXIT_COLD = 4
_LAST_RESORT = 5.0
"""Seconds after an interrupt in which the running task must give way before the process ends without it."""


class StartStopped(BaseException):
    """A worker that was still being prepared, or waited for a server, was told to stop."""


class Signals:
    """Installs a worker's signal handlers; a handler only records, wakes, and interrupts a task on this thread."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._previous: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def install(self) -> None:
        """Take the signals; nothing happens off the main thread, where Python cannot."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._warm)
        if hasattr(signal, "SIGQUIT"):
            self._previous[signal.SIGQUIT] = signal.signal(signal.SIGQUIT, self._cold)
        if hasattr(signal, "SIGHUP"):
            self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._restart)
        if hasattr(signal, "SIGUSR1"):
            self._previous[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, self._dump)
        if hasattr(signal, "SIGALRM"):
            self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._grace_over)

    def restore(self) -> None:
        """Give the signals back."""
        if self._timer is not None:
            self._timer.cancel()
        if self._previous and hasattr(signal, "SIGALRM"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _warm(self, number: int, frame: FrameType | None) -> None:
        worker = self._worker
        if worker.starting:
            worker.starting = False  # once: what ends it must not be ended in turn
            worker.stop()
            raise StartStopped  # out of whatever waits for a server; nothing is held yet
        if worker.stopping and worker._stop_event.is_set():
            self._interrupt()
            return
        worker.stop()
        if hasattr(signal, "SIGALRM") and worker.inline:
            # a task on this very thread can only be stopped from here
            signal.setitimer(signal.ITIMER_REAL, max(0.001, worker.settings.grace))

    def _restart(self, number: int, frame: FrameType | None) -> None:
        """Stop warmly; who started the process then starts it anew. A terminal that closes wants no new one."""
        self._worker.restart_wanted = not os.isatty(2)
        self._warm(number, frame)

    def _dump(self, number: int, frame: FrameType | None) -> None:
        self._worker.dump_wanted = True

    def _grace_over(self, number: int, frame: FrameType | None) -> None:
        self._interrupt()

    def _interrupt(self) -> None:
        worker = self._worker
        worker.stop(interrupt=True)
        if self._timer is None:
            self._timer = threading.Timer(_LAST_RESORT, self._give_up)
            self._timer.daemon = True
            self._timer.start()
        engines = [lane.engine for lane in worker.lanes_up]
        if any(isinstance(engine, InlineEngine) and engine.running for engine in engines):
            raise TaskInterrupted("the worker stops now")

    def _cold(self, number: int, frame: FrameType | None) -> None:
        """End at once; what is held comes back when its lease ends."""
        os.write(2, b"taskq worker: cold shutdown, unfinished messages come back when their leases end\n")
        os._exit(EXIT_COLD)

    def _give_up(self) -> None:
        """The task does not give way: hand its message back and end the process around it."""
        worker = self._worker
        logger.error(
            "a task did not give way within %.0f s of its interruption; the process ends around it", _LAST_RESORT
        )
        deadline = time.monotonic() + 2.0
        try:
            for lane in worker.lanes_up:
                lane.engine.give_back(list(lane.held.values()), started=True)
            while sum(lane.settler.pump() for lane in worker.lanes_up) and time.monotonic() < deadline:
                time.sleep(0.1)
        finally:
            os._exit(3)

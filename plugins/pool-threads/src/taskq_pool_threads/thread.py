"""A thread of the pool."""

from __future__ import annotations

import threading
from collections.abc import Callable

from taskq.spi import Job


class Struck(BaseException):
    """The job has ended by itself, but somebody was about to end it."""


class PoolThread(threading.Thread):
    """A thread of the pool and the gate it sleeps at; whoever takes it off the idle stack opens the gate, once."""

    def __init__(self, body: Callable[[PoolThread], None], name: str) -> None:
        super().__init__(name=name, daemon=True)  # daemon: a stuck task must not keep the process from ending
        self._body = body
        gate = threading.Lock()
        gate.acquire()
        self.sleep = gate.acquire
        self.wake = gate.release
        self.job: Job | None = None
        """What runs here now, and may be struck."""
        self.since = 0.0
        self.struck = False
        """Whether somebody strikes, or has struck, since this was last looked at."""
        self.told: tuple[Job | None, set[type[BaseException]]] = (None, set())
        """What a job was struck with: once with each error."""

    def run(self) -> None:
        self._body(self)

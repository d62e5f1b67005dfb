"""A sticky wake-up that any thread, and a signal handler, may ring."""

from __future__ import annotations

import threading


class Bell:
    """A binary semaphore: a ring before the wait is not lost, several rings are one.

    It is a bare lock that the ringer releases. A condition variable would not do: ringing one takes its mutex, and a
    signal handler runs on a thread that may hold that mutex already.
    """

    __slots__ = ("__weakref__", "_lock")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake the waiting thread, or else the next to wait. Never blocks."""
        try:
            self._lock.release()
        except RuntimeError:  # rung already
            pass

    def wait(self, timeout: float) -> bool:
        """Wait for a ring, at most ``timeout`` seconds; whether there was one."""
        if timeout <= 0:
            return self._lock.acquire(False)
        return self._lock.acquire(timeout=min(timeout, threading.TIMEOUT_MAX))

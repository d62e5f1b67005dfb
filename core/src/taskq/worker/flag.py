"""A flag that a signal handler may set."""

from __future__ import annotations

import queue


class Flag:
    """As ``threading.Event``, whose lock a signal handler would wait for forever where its own thread holds it."""

    def __init__(self) -> None:
        self._set = False
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()  # the one queue whose put may be interrupted by put

    def is_set(self) -> bool:
        """Whether it is set."""
        return self._set

    def set(self) -> None:
        """Set it and wake who waits; any thread or signal handler."""
        if not self._set:
            self._set = True
            self._wakes.put(None)

    def clear(self) -> None:
        """Unset it."""
        self._set = False
        try:
            while True:
                self._wakes.get_nowait()
        except queue.Empty:
            pass

    def wait(self, timeout: float) -> bool:
        """Wait for at most ``timeout`` seconds until it is set; it may return sooner. Return whether it is set."""
        if self.is_set():
            return True
        try:
            self._wakes.get(timeout=timeout)
        except queue.Empty:
            return self.is_set()
        if self.is_set():
            self._wakes.put(None)  # for whoever else waits
        return self.is_set()

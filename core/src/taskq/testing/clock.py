"""A clock that a test moves by hand."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable


class VirtualClock:
    """Stands still until it is moved; passes for ``taskq.spi.Clock``.

    Components that wait for a time to come register with ``on_advance`` and are called each time it moves. Any thread
    may use it.

    Args:
        now: seconds since the epoch to start from.
    """

    def __init__(self, now: float = 1_750_000_000.0) -> None:
        self._lock = threading.Lock()
        self._now = now
        self._elapsed = 0.0
        self._callbacks: list[Callable[[], Callable[[], None] | None]] = []

    def now(self) -> float:
        """Return seconds since the epoch."""
        return self._now + self._elapsed

    def monotonic(self) -> float:
        """Return seconds moved so far."""
        return self._elapsed

    def advance(self, seconds: float) -> None:
        """Move forward, then tell whoever waits.

        Raises:
            ValueError: ``seconds`` is negative; time never goes back.
        """
        if seconds < 0:
            raise ValueError(f"a clock cannot be moved back (by {seconds} s)")
        with self._lock:
            self._elapsed += seconds
            callbacks = [callback for ref in self._callbacks if (callback := ref()) is not None]
        for callback in callbacks:
            callback()

    def on_advance(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call ``callback`` after every move; return a function that stops it. A bound method is not kept alive."""
        bound = hasattr(callback, "__self__")
        ref: Callable[[], Callable[[], None] | None] = weakref.WeakMethod(callback) if bound else lambda: callback
        with self._lock:
            self._callbacks = [r for r in self._callbacks if r() is not None]
            self._callbacks.append(ref)

        def stop() -> None:
            with self._lock:
                if ref in self._callbacks:
                    self._callbacks.remove(ref)

        return stop

"""A few threads that make calls side by side, each with a connection of its own from the client's pool."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


class Hands:
    """Up to a number of daemon threads, started when there is something to do for them.

    Daemons, because a long poll must not hold up the end of the process; what it would bring returns with its lease.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most = most
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._busy = 0
        """What is waiting or being done."""
        self._closed = False

    def submit(self, job: Callable[[], None]) -> None:
        """Have a job done soon; it must not raise."""
        with self._lock:
            self._busy += 1
            if self._busy > len(self._threads) and len(self._threads) < self._most and not self._closed:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._threads.append(thread)
                thread.start()
        self._work.put(job)

    def resize(self, most: int) -> None:
        """Allow more threads."""
        self._most = max(self._most, most)

    def each(self, call: Callable[[T], Any], items: Sequence[T]) -> None:
        """Call for each item, one of them on this thread, and wait for all; the calls must not raise."""
        if len(items) == 1:
            call(items[0])
            return
        left = threading.Semaphore(0)
        todo: queue.SimpleQueue[T] = queue.SimpleQueue()
        for item in items:
            todo.put(item)

        def work() -> None:
            while True:
                try:
                    item = todo.get_nowait()
                except queue.Empty:
                    return
                try:
                    call(item)
                finally:
                    left.release()

        for _ in range(min(len(items), self._most) - 1):
            self.submit(work)
        work()
        for _ in items:
            left.acquire()

    def close(self, timeout: float) -> None:
        """End the threads once what was submitted is done; wait for that up to ``timeout`` seconds in all."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            threads = list(self._threads)
        for _ in threads:
            self._work.put(None)
        share = timeout / max(1, len(threads))
        for thread in threads:
            thread.join(share)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            try:
                job()
            finally:
                with self._lock:
                    self._busy -= 1
            del job

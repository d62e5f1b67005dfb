"""What happens in this process is known in this process at once, also on databases that cannot notify."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Collection, Iterable
from typing import Protocol


class Consumer(Protocol):
    """Somebody who waits for messages of queues."""

    @property
    def queues(self) -> Collection[str]:
        """Names of the queues."""
        ...

    def look(self) -> None:
        """Look for messages soon. Any thread; never blocks."""
        ...


class Waiter(Protocol):
    """Somebody who waits for results."""

    def look(self) -> None:
        """Look for results soon. Any thread; never blocks."""
        ...


class Neighbours:
    """Consumers and waiters of this process on one set of tables."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
        self._waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()

    def add_consumer(self, consumer: Consumer) -> None:
        """Tell this consumer from now on."""
        with self._lock:
            self._consumers.add(consumer)

    def drop_consumer(self, consumer: Consumer) -> None:
        """Tell it no more."""
        with self._lock:
            self._consumers.discard(consumer)

    def add_waiter(self, waiter: Waiter) -> None:
        """Tell this waiter, as long as it lives."""
        with self._lock:
            self._waiters.add(waiter)

    def sent(self, queues: Iterable[str]) -> None:
        """Wake the consumers of queues that have got messages."""
        with self._lock:
            consumers = list(self._consumers)
        if consumers:
            names = set(queues)
            for consumer in consumers:
                if not names.isdisjoint(consumer.queues):
                    consumer.look()

    def stored(self) -> None:
        """Wake whoever waits for results."""
        with self._lock:
            waiters = list(self._waiters)
        for waiter in waiters:
            waiter.look()


_neighbours: dict[int, Neighbours] = {}
os.register_at_fork(after_in_child=_neighbours.clear)


def neighbours(instance: int) -> Neighbours:
    """Return the neighbours of the tables with this instance number (see ``schema``)."""
    return _neighbours.setdefault(instance, Neighbours())

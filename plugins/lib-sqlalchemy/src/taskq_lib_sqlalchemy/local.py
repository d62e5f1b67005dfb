"""What happens in this process is known in this process at once, also on databases that cannot notify."""

from __future__ import annotations

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
        self.consumers: weakref.WeakSet[Consumer] = weakref.WeakSet()
        self.waiters: weakref.WeakSet[Waiter] = weakref.WeakSet()

    def sent(self, queues: Iterable[str]) -> None:
        """Wake the consumers of queues that have got messages."""
        if self.consumers:
            names = set(queues)
            for consumer in list(self.consumers):
                if not names.isdisjoint(consumer.queues):
                    consumer.look()

    def stored(self) -> None:
        """Wake whoever waits for results."""
        for waiter in list(self.waiters):
            waiter.look()


_neighbours: dict[int, Neighbours] = {}


def neighbours(instance: int) -> Neighbours:
    """Return the neighbours of the tables with this instance number (see ``schema``)."""
    return _neighbours.setdefault(instance, Neighbours())

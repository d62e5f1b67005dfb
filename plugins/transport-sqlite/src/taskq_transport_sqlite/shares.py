"""How one fetch is shared among the subscribed queues."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain, zip_longest
from typing import TypeVar

from taskq.spi import SubscribeOrder

T = TypeVar("T")


class Shares:
    """The subscribed queues by number, with their weights and what they are owed from earlier fetches.

    A fetch of one message cannot be divided, so each fetch credits every waiting queue with its part, and whoever is
    owed most comes first.
    """

    def __init__(self, queues: Sequence[tuple[int, int]], order: SubscribeOrder) -> None:
        self.numbers = [number for number, _ in queues]
        self.strict = order == "strict"
        self._weights = {number: float(max(1, weight)) if order == "weighted" else 1.0 for number, weight in queues}
        self._owed = dict.fromkeys(self.numbers, 0.0)

    def take(self, n: int, waiting: Collection[int], claim: Callable[[int, int], Sequence[T]]) -> list[T]:
        """Claim up to ``n`` messages of the waiting queues with ``claim(queue, limit)``; in the order to start them."""
        if self.strict or len(self.numbers) == 1:
            taken: list[T] = []
            for number in self.numbers:
                if number in waiting and n > len(taken):
                    taken.extend(claim(number, n - len(taken)))
            return taken
        owed = self._owed
        candidates = []
        for number in self.numbers:
            if number in waiting:
                candidates.append(number)
            else:
                owed[number] = 0.0  # nothing is saved up while there is nothing to take
        whole = sum(self._weights[number] for number in candidates)
        for number in candidates:
            owed[number] += n * self._weights[number] / whole
        candidates.sort(key=lambda number: -owed[number])
        parts: dict[int, list[T]] = {}
        # Everybody's claim first, then what is left over to whoever still has messages.
        for rounded in (True, False):
            for number in candidates:
                want = min(n, int(owed[number])) if rounded else n
                if want > 0:
                    got = claim(number, want)
                    owed[number] -= len(got)
                    n -= len(got)
                    parts.setdefault(number, []).extend(got)
        lines = list(parts.values())
        if len(lines) < 2:
            return lines[0] if lines else []
        return [item for item in chain.from_iterable(zip_longest(*lines)) if item is not None]

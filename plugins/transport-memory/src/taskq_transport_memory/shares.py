"""How one fetch is shared among the subscribed queues."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskq.spi import SubscribeOrder
    from taskq_lib_memory import Entry, Queue


class Shares:
    """The subscribed queues, each with its weight and with what it is owed from earlier fetches.

    A fetch of one message cannot be split, so a queue's claim is carried over: each fetch adds to every waiting queue
    its part of the fetch, and the queue that is owed most comes first.
    """

    __slots__ = ("_only", "_owed", "_queues", "_strict")

    def __init__(self, queues: Sequence[tuple[Queue, int]], order: SubscribeOrder = "fair") -> None:
        self._strict = order == "strict"
        self._queues = [(queue, float(max(1, weight)) if order == "weighted" else 1.0) for queue, weight in queues]
        self._owed = [0.0] * len(queues)
        self._only = queues[0][0] if len(queues) == 1 else None

    def take(self, n: int) -> list[Entry]:
        """Take up to ``n`` messages."""
        taken: list[Entry] = []
        if self._only is not None:
            self._only.take(n, taken)
        elif self._strict:
            for queue, _ in self._queues:
                n = queue.take(n, taken)
                if not n:
                    break
        else:
            self._take_shares(n, taken)
        return taken

    def _take_shares(self, n: int, taken: list[Entry]) -> None:
        owed = self._owed
        waiting = []
        for i, (queue, weight) in enumerate(self._queues):
            if any(queue.levels.values()):
                waiting.append((i, queue, weight))
            else:
                owed[i] = 0.0  # nothing is saved up while there is nothing to take
        if not waiting:
            return
        whole = sum(weight for _, _, weight in waiting)
        for i, _, weight in waiting:
            owed[i] += n * weight / whole
        waiting.sort(key=lambda w: -owed[w[0]])
        # First everybody's claim, then what is left over to whoever still has messages.
        for rounded in (True, False):
            for i, queue, _ in waiting:
                want = min(n, int(owed[i])) if rounded else n
                if want > 0:
                    before = len(taken)
                    queue.take(want, taken)
                    got = len(taken) - before
                    owed[i] -= got
                    n -= got

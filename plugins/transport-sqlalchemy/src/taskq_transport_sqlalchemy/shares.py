"""How one fetch is shared among the subscribed queues."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from taskq.spi import SubscribeOrder, Subscription


class Shares:
    """Says which queue to look at first and how much to take from it, by what each has got so far.

    Every queue has a clock that runs by ``1 / weight`` for each message taken; the queue whose clock is behind comes
    first. A queue that had nothing cannot save up: its clock is set forward to the slowest of those that had.
    """

    def __init__(self, queues: Sequence[Subscription] = (), order: SubscribeOrder = "fair") -> None:
        self.names = [subscription.queue for subscription in queues]
        self._strict = order == "strict"
        self._weights = {s.queue: float(max(1, s.weight)) if order == "weighted" else 1.0 for s in queues}
        self._clocks = dict.fromkeys(self.names, 0.0)

    def plan(self, n: int) -> list[tuple[str, int]]:
        """Return (queue, most to take of it), in the order to look."""
        if self._strict or len(self.names) < 2:
            return [(name, n) for name in self.names]
        whole = sum(self._weights.values())
        names = sorted(self.names, key=self._clocks.__getitem__)
        return [(name, max(1, round(n * self._weights[name] / whole))) for name in names]

    def took(self, counts: Mapping[str, int]) -> None:
        """Account for what a plan brought."""
        if not counts or self._strict or len(self.names) < 2:
            return
        clocks = self._clocks
        for name, count in counts.items():
            if name in clocks:
                clocks[name] += count / self._weights[name]
        slowest = min(clocks[name] for name in counts if name in clocks)
        for name in self.names:
            if name not in counts:
                clocks[name] = max(clocks[name], slowest - 1.0)

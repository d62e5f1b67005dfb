"""Which consumers to wake for new messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

from taskq_lib_sqlite import Database

Waiter = tuple[int | None, str]


class Ringer:
    """Rings waiting consumers; knows who subscribes to what as long as the board does not say that it changed."""

    def __init__(self, database: Database, *, enabled: bool) -> None:
        self._database = database
        self._enabled = enabled
        self._seen = b""
        self._by_queue: dict[int, list[Waiter]] = {}
        self._turn = count()

    def ring(self, counts: Mapping[int, int]) -> None:
        """Wake up to as many waiting consumers of each queue (by number) as it has new messages."""
        if not self._enabled or not counts:
            return
        board = self._board()
        if not board:
            return
        bells = self._database.bells
        rung = set()
        for queue, n in counts.items():
            waiters = self._by_queue.get(queue)
            if not waiters:
                continue
            start = next(self._turn) % len(waiters)
            for waiter in waiters[start:] + waiters[:start]:
                slot, bell = waiter
                if waiter in rung or not (slot is None or board[8 + slot]):
                    continue
                # Taken off the board first: the next sender wakes another one, as this one will look anyway.
                bells.set_waiting(slot, False)
                if bells.ring(bell):
                    rung.add(waiter)
                    n -= 1
                    if n <= 0:
                        break

    def announce(self) -> None:
        """Tell the others, after the commit, that consumers or subscriptions changed."""
        if self._enabled:
            self._database.bells.announce()

    def anyone(self, queues: Iterable[int]) -> bool:
        """Whether a consumer waits for one of the queues."""
        if not self._enabled or not (board := self._board()):
            return False
        by_queue = self._by_queue
        return any(slot is None or board[8 + slot] for q in queues for slot, _ in by_queue.get(q, ()))

    def _board(self) -> bytes:
        board = self._database.bells.board()
        if board[:8] != self._seen:
            by_queue: dict[int, list[Waiter]] = {}
            for slot, bell, queues in self._database.read("SELECT slot, bell, queues FROM taskq_consumer"):
                if bell is not None:
                    for queue in str(queues).split(","):
                        if queue.isdigit():
                            known = isinstance(slot, int) and 0 <= slot < len(board) - 8
                            by_queue.setdefault(int(queue), []).append((slot if known else None, bell))
            self._by_queue = by_queue
            self._seen = board[:8]
        return board

"""Threads that send at the same moment share one transaction, so the disk is waited for once for all of them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from taskq.message import Outbound

Write = Callable[[Sequence[Outbound]], None]

_AT_ONCE = 10_000


class _Turn:
    """One thread's batch. ``signal`` is released when it is done, or when it is this thread's turn to write."""

    __slots__ = ("batch", "done", "error", "signal")

    def __init__(self, batch: Sequence[Outbound]) -> None:
        self.batch = batch
        self.done = False
        self.error: Exception | None = None
        self.signal = threading.Lock()
        self.signal.acquire()


class Line:
    """One thread writes for all who wait; when it is done, the next in line writes for those who came meanwhile."""

    def __init__(self) -> None:
        self._busy = threading.Lock()
        self._waiting: deque[_Turn] = deque()

    def pass_through(self, batch: Sequence[Outbound], write: Write) -> None:
        """Return when the batch is written, or raise what ``write`` raised for it."""
        if self._busy.acquire(blocking=False):
            try:
                write(batch)
            finally:
                self._next()
            return
        mine = _Turn(batch)
        self._waiting.append(mine)
        # Whoever was busy may have gone before it could see this one.
        if self._busy.acquire(blocking=False):
            self._next()
        mine.signal.acquire()
        if not mine.done:
            try:
                self._write_all(mine, write)
            finally:
                self._next()
        if mine.error is not None:
            raise mine.error

    def _next(self) -> None:
        """Hand ``_busy``, which the caller has, to the first in line, or free it where nobody waits."""
        while True:
            try:
                turn = self._waiting.popleft()
            except IndexError:
                self._busy.release()
                if not self._waiting or not self._busy.acquire(blocking=False):
                    return
                continue
            turn.signal.release()
            return

    def _write_all(self, mine: _Turn, write: Write) -> None:
        turns = [mine]
        size = len(mine.batch)
        while self._waiting and size + len(self._waiting[0].batch) <= _AT_ONCE:
            turns.append(self._waiting.popleft())
            size += len(turns[-1].batch)
        try:
            try:
                write([o for turn in turns for o in turn.batch] if len(turns) > 1 else mine.batch)
            except Exception as exc:
                if len(turns) == 1:
                    mine.error = exc
                else:
                    self._write_each(turns, write)
            for turn in turns:
                turn.done = True
        finally:
            # After an interrupt the others are not done: each finds that out and writes for itself.
            for turn in turns[1:]:
                if turn.done:
                    turn.signal.release()
                else:
                    self._waiting.appendleft(turn)

    @staticmethod
    def _write_each(turns: Sequence[_Turn], write: Write) -> None:
        """What spoils one batch must not spoil the others."""
        for turn in turns:
            try:
                write(turn.batch)
            except Exception as exc:
                turn.error = exc

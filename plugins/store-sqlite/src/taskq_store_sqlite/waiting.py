"""How one process waits for any number of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from taskq.message import Record
from taskq_lib_sqlite import Bells, Nudge, wait_readable


class Waiter:
    """This process's bell for results, and which ids need no second look.

    A worker rings with the ids that it has stored, so an id that was looked for once need not be looked for again until
    it is rung; all are looked at now and then, for what a lost ring or a client without a bell did not announce.
    """

    def __init__(self, bells: Bells, *, push: bool, poll_s: float) -> None:
        self._bells = bells
        self._bell = bells.hang("w") if push else None
        self._nudge = Nudge()
        self._poll_s = poll_s
        self._woken = False
        self._absent: set[str] = set()
        self._look_at_all = 0.0

    @property
    def address(self) -> str | None:
        """What to put into messages, for results to be announced here."""
        return self._bell.address if self._bell is not None else None

    def wait(self, ids: Sequence[str], timeout: float, look: Callable[[Sequence[str]], list[Record]]) -> list[Record]:
        """Return what ``look`` finds among the ids as soon as there is something, or nothing after ``timeout``."""
        end = time.monotonic() + timeout
        while True:
            self._listen()
            now = time.monotonic()
            if now >= self._look_at_all:
                self._absent.clear()
            todo = [i for i in ids if i not in self._absent]
            found = look(todo) if todo else []
            took = time.monotonic() - now
            if now >= self._look_at_all:
                # Looking at many takes long: it may take a twentieth of the time.
                self._look_at_all = now + max(self._poll_s, 20 * took)
                if self._bell is not None and not self._bell.in_place():
                    self._absent.clear()
            self._absent.update(todo)
            self._absent.difference_update([r.id for r in found])
            left = end - time.monotonic()
            if found or self._woken or left <= 0:
                self._woken = False
                return found
            pause = min(left, max(0.0, self._look_at_all - time.monotonic()))
            wait_readable([self._nudge.reader] + ([self._bell.socket] if self._bell else []), pause)
            self._nudge.drain()

    def _listen(self) -> None:
        """Take note of which ids were rung."""
        if self._bell is not None:
            for heard in self._bell.drain():
                self._absent.difference_update(i.decode("utf-8", "replace") for i in heard.split(b"\n"))

    def wake(self) -> None:
        self._woken = True
        self._nudge.ring()

    def close(self) -> None:
        if self._bell is not None:
            self._bells.take_down(self._bell)
        self._nudge.close()

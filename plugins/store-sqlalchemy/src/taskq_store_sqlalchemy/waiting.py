"""Waiting for results: told by PostgreSQL, or looking ever more rarely."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from time import monotonic

from taskq.message import Record
from taskq_lib_sqlalchemy.bell import Bell, Ears
from taskq_lib_sqlalchemy.database import Link

_SHARE = 20
"""Looking at everything takes at most one part in so many of the time."""


class ResultWait:
    """The one wait of a process.

    Results that were asked for with this process's reply address are announced on ``channel``. Others (of a task that
    another process has sent) are not, so everything is also looked at now and then.
    """

    def __init__(
        self, link: Link, channel: str | None, read: Callable[[Sequence[str]], list[Record]], poll: tuple[float, float]
    ) -> None:
        self._link = link
        self._channel = channel
        self._ears = Ears(link)
        if channel is not None:
            self._ears.listen([channel])
        self._read = read
        self._poll_min, self._poll_max = poll
        self._interval = self._poll_min
        self._look_at = 0.0
        self._bell = Bell()
        self._woken = False
        self._closed = False
        self._turn = threading.Lock()
        self._absent: set[str] = set()
        self._known: set[str] = set()

    def wait(self, ids: Collection[str], timeout: float) -> list[Record]:
        """Return the terminal records among ``ids`` as soon as there is one."""
        deadline = monotonic() + timeout
        wanted = set(ids)
        with self._turn:
            try:
                self._absent &= wanted
                if not wanted <= self._known:
                    self._look_often()  # what is new may come soon
                self._known = wanted
                while not self._closed:
                    if self._channel is not None and self._ears.refresh():
                        self._absent.clear()  # something may have been announced while nobody listened
                    if found := self._look(wanted - self._absent):
                        self._look_often()
                        return found
                    left = deadline - monotonic()
                    if self._woken or left <= 0:
                        return []
                    self._pause(left)
            finally:
                self._woken = False
        return []

    def _look_often(self) -> None:
        self._interval = self._poll_min
        self._look_at = min(self._look_at, monotonic() + self._poll_min)

    def _look(self, ids: set[str]) -> list[Record]:
        if not ids:
            return []
        started = monotonic()
        found = [record for record in self._read(sorted(ids)) if record.terminal]
        self._absent |= ids.difference(record.id for record in found)
        now = monotonic()
        if started >= self._look_at:
            self._look_at = now + max(self._interval, _SHARE * (now - started))
            self._interval = min(self._poll_max, self._interval * 1.5)
        return found

    def _pause(self, left: float) -> None:
        left = min(left, max(0.0, self._look_at - monotonic()))
        if self._channel is None:
            self._bell.wait(left)
        else:
            self._bell.wait(left, self._ears.fileno())
            for _, told in self._ears.heard():
                if told:
                    self._absent.difference_update(told.split(" "))
                else:
                    self._absent.clear()
        if monotonic() >= self._look_at:
            self._absent.clear()

    def look(self) -> None:
        """Look soon: this process has stored a result."""
        self._interval = self._poll_min
        self._look_at = 0.0
        self._bell.ring()

    def wake(self) -> None:
        """End the running wait, or else the next."""
        self._woken = True
        self._bell.ring()

    def close(self, timeout: float) -> None:
        """End the running wait and close the connection."""
        self._closed = True
        self._bell.ring()
        if self._turn.acquire(timeout=timeout):
            self._turn.release()
            self._link.close()

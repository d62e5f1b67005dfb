"""Named servers, their clock, and what a fork does to them."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from taskq.errors import ConfigError, UrlError
from taskq_lib_memory.queues import Queues
from taskq_lib_memory.records import Records

if TYPE_CHECKING:
    from collections.abc import Callable

    from taskq.spi import Clock, Url
    from taskq_lib_memory.bell import Bell

log = logging.getLogger("taskq.memory")


@runtime_checkable
class SupportsAdvance(Protocol):
    """A clock that a test moves by hand, and that tells when it was moved (``taskq.testing.VirtualClock``)."""

    def on_advance(self, callback: Callable[[], None]) -> Callable[[], None]: ...


class Listener(Protocol):
    """A transport, as broadcasts see it."""

    def heard(self, channel: str, payload: bytes) -> None: ...


class MemoryServer:
    """What would be a server elsewhere: the queues and the records, changed under one lock.

    ``lock`` guards everything; it is held for microseconds and never while waiting.
    """

    def __init__(self, name: str, clock: Clock) -> None:
        self.name = name
        self.clock = clock
        self.pid = os.getpid()
        self.lock = threading.Lock()
        self.queues = Queues()
        self.records = Records()
        self.bells: weakref.WeakSet[Bell] = weakref.WeakSet()
        """Whoever may be waiting until a point of this server's clock."""
        self.audience: weakref.WeakSet[Listener] = weakref.WeakSet()
        """The transports that hear broadcasts."""
        self.virtual = isinstance(clock, SupportsAdvance)
        """The clock stands still between moves: nothing can be gained by sleeping until something is due."""
        if isinstance(clock, SupportsAdvance):
            clock.on_advance(self._clock_moved)

    def _clock_moved(self) -> None:
        for bell in list(self.bells):
            bell.ring()

    def inherited(self) -> bool:
        """Whether a parent process made this server: its locks may be held for ever here, nothing may touch it."""
        return self.pid != os.getpid()


class Patience:
    """How long a waiting call still waits, in real seconds.

    A virtual clock ends the wait early when it is moved past it, and never makes it longer.
    """

    __slots__ = ("_clock", "_end", "_real_end", "_virtual")

    def __init__(self, server: MemoryServer, wait: float) -> None:
        self._clock = server.clock
        self._virtual = server.virtual
        self._end = self._clock.monotonic() + wait
        self._real_end = time.monotonic() + wait if self._virtual else 0.0

    def left(self) -> float:
        """Seconds until the wait is over."""
        left = self._end - self._clock.monotonic()
        return min(left, self._real_end - time.monotonic()) if self._virtual else left

    def until(self, due: float, left: float) -> float:
        """Seconds to sleep where something is due at ``due`` on the clock's monotonic scale."""
        if self._virtual:  # it rings when it is moved
            return left
        return max(0.0, min(left, due - self._clock.monotonic()))


_servers: dict[str, MemoryServer] = {}
_private = count(1)
_lost_in_fork: set[str] = set()


def server_for(urls: Sequence[Url], clock: Clock) -> MemoryServer:
    """Return the server that a URL names: a new one for ``memory://``, the process's one for ``memory://NAME``.

    Raises:
        UrlError: more than one URL, or parts that mean nothing here.
        ConfigError: the name is in use with another clock.
    """
    if len(urls) != 1:
        raise UrlError(f"memory:// has no fail-over: {len(urls)} URLs were given, give one")
    url = urls[0]
    if url.port is not None or url.username is not None or url.password is not None or url.path not in ("", "/"):
        raise UrlError(f"cannot read {url} as a memory URL: write memory:// or memory://NAME")
    if not url.host:
        return MemoryServer(f"#{next(_private)}", clock)
    server = _servers.get(url.host)
    if server is None:
        if url.host in _lost_in_fork:
            _lost_in_fork.discard(url.host)
            log.warning(
                "memory://%s starts empty in process %d: the parent process's messages and results stayed there; "
                "use a transport that several processes can reach, such as sqlite://", url.host, os.getpid(),
            )  # fmt: skip
        server = _servers.setdefault(url.host, MemoryServer(url.host, clock))
    if server.clock is not clock:
        raise ConfigError(
            f"memory://{url.host} is in use in this process with another clock ({type(server.clock).__name__}); "
            f"use another name, or call taskq_lib_memory.forget({url.host!r}) first"
        )
    return server


def forget(name: str) -> None:
    """Drop a named server with all it holds; who still has it open keeps the old one."""
    _servers.pop(name, None)


def _after_fork() -> None:
    # The locks may be held by threads that do not exist here, so the old servers are never touched again.
    _lost_in_fork.update(_servers)
    _servers.clear()


os.register_at_fork(after_in_child=_after_fork)

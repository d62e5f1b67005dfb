"""A result store without its server.

Results are pushed to the process that waits for them, over a channel that only the waiting thread reads. A push may be
missed: by a result that was there before, when the channel breaks, or because nobody knew the address. So ids are
asked for once, shortly after the wait for them began, again after the channel was made anew, and now and then.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from taskq.errors import ResultTooLarge, StoreError, StoreUnavailable
from taskq.message import Record
from taskq_lib_client.bell import Bell, ready

_CHUNK = 500
_CHUNK_BYTES = 8 << 20
_FIRST_LOOK = 0.005
"""Seconds to wait for a push before the server is asked: what was sent from here is nearly always pushed."""
_LOOK = 1.0
_RECONNECT_PAUSE = 0.1
_KEPT_PUSHES = 10_000


class StoreClosed(StoreError):
    """The store was used before ``open()``, after ``close()``, or in another process than it was opened in."""

    retryable = False


class Channel(Protocol):
    """A connection that results are pushed to."""

    @property
    def connected(self) -> bool:
        """Whether the connection stands, as far as known."""
        ...

    def close(self) -> None:
        """Close the connection; it can be made again."""
        ...


C = TypeVar("C", bound=Channel)


class PushedResults(Generic[C]):
    """Keeps the rules of a result store; a server's own store fills in the methods that raise NotImplementedError."""

    max_record_bytes: int
    """Most bytes of one record, known once the store is open."""
    address: str
    """Where results for this process are pushed."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._open = False
        self._opening = threading.Lock()
        self._listening = threading.Lock()
        """Held while the channel is made or dropped, not while it is waited on."""
        self._turn = threading.Lock()
        """Held by the thread that waits."""
        self._channel: C | None = None
        self._pushed: OrderedDict[str, Record] = OrderedDict()
        self._looked: set[str] = set()
        """Ids that the server has been asked for once: what comes now is pushed."""
        self._next_look = 0.0
        self._bell: Bell | None = None
        self._woken = False

    # ------------------------------------------------------------------------------------------- the server's part

    def _connect(self) -> None:
        """Connect and look what the server can do. Raises: StoreError."""
        raise NotImplementedError

    def _disconnect(self) -> None:
        """Undo ``_connect``, also one that failed half-way."""
        raise NotImplementedError

    def _store(self, records: Sequence[Record]) -> Sequence[str]:
        """Store records and push them; return the ids of those superseded. Raises: StoreError."""
        raise NotImplementedError

    def _load(self, ids: Sequence[str]) -> Sequence[Record | None]:
        """Return records, in order. Raises: StoreError."""
        raise NotImplementedError

    def _forget(self, ids: Sequence[str]) -> None:
        """Delete records. Raises: StoreError."""
        raise NotImplementedError

    def _subscribe(self, channel: C | None, bell: Bell) -> C:
        """Have results for our address pushed to this channel, which broke, or to a new one. Raises: StoreError."""
        raise NotImplementedError

    def _hear(self, channel: C, pause: float, bell: Bell) -> Iterable[Record]:
        """Yield what is pushed, waiting up to ``pause`` seconds for it or the bell.

        Raises:
            StoreUnavailable: the channel broke.
        """
        raise NotImplementedError

    # --------------------------------------------------------------------------------------------------- opening

    def open(self) -> None:
        self._check_process()
        with self._opening:
            if self._open:
                return
            try:
                self._connect()
            except BaseException:
                self._disconnect()
                raise
            self._bell = Bell()
            self._open = True

    def close(self, *, timeout: float = 5.0) -> None:
        if self._pid != os.getpid():
            return
        with self._opening:
            if not self._open:
                return
            self._open = False
            self.wake()
            waited = self._turn.acquire(timeout=timeout)
            try:
                with self._listening:
                    if self._channel is not None:
                        self._channel.close()
                        self._channel = None
                self._disconnect()
                if self._bell is not None:
                    self._bell.close()
                    self._bell = None
            finally:
                if waited:
                    self._turn.release()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise StoreClosed(f"this store belongs to process {self._pid}; open a new one in process {os.getpid()}")

    def _check(self) -> None:
        self._check_process()
        if not self._open:
            raise StoreClosed("the result store is not open; call open() first")

    # --------------------------------------------------------------------------------------------------- records

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        most = self.max_record_bytes
        for record in records:
            size = len(record.payload) + (len(record.follow_ups) if record.follow_ups else 0)
            if size > most:
                raise ResultTooLarge(
                    f"the record of task [{record.id}] takes {size} bytes and the server keeps at most {most} of one; "
                    "store large results elsewhere and return their address"
                )

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        self._check()
        self.check_records(records)
        return [i for part in _portions(records) for i in self._store(part)]

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self._check()
        return [r for start in range(0, len(ids), _CHUNK) for r in self._load(ids[start : start + _CHUNK])]

    def delete(self, ids: Sequence[str]) -> None:
        self._check()
        for start in range(0, len(ids), _CHUNK):
            self._forget(ids[start : start + _CHUNK])

    # --------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        self._check()
        if self._channel is None:
            self._listen()
        return self.address

    def _listen(self) -> tuple[C, Bell]:
        """Return the channel, making it where there is none or it broke."""
        with self._listening:
            self._check()
            assert self._bell is not None
            channel = self._channel
            if channel is None or not channel.connected:
                self._channel = channel = self._subscribe(channel, self._bell)
                self._looked.clear()  # what was pushed meanwhile has gone to nobody
            return channel, self._bell

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        self._check()
        with self._turn:
            try:
                return self._wait(ids, time.monotonic() + timeout)
            except StoreError:
                if self._open:
                    raise
                return ()  # closed meanwhile

    def _wait(self, ids: Sequence[str], end: float) -> Sequence[Record]:
        wanted = set(ids)
        looked = self._looked
        looked &= wanted
        first_look = time.monotonic() + _FIRST_LOOK
        while self._open:
            channel, bell = self._listen()
            found = self._take_pushed(wanted)
            if found:
                return found
            now = time.monotonic()
            new = now >= min(first_look, end) and len(looked) < len(wanted)
            if new or now >= self._next_look:
                ask = list(wanted - looked if new else wanted)
                if not new or not looked:
                    self._next_look = now + _LOOK
                looked |= wanted
                found = [r for r in self.get(ask) if r is not None and r.terminal]
                if found:
                    return found
            if self._woken or now >= end:
                break
            pause = min(end, self._next_look, first_look if len(looked) < len(wanted) else end) - time.monotonic()
            self._keep_pushes(channel, max(0.0, pause), bell)
        self._woken = False
        if self._bell is not None:
            self._bell.hush()
        return ()

    def _take_pushed(self, wanted: set[str]) -> list[Record]:
        pushed = self._pushed
        if not pushed:
            return []
        hits = [i for i in wanted if i in pushed] if len(wanted) < len(pushed) else [i for i in pushed if i in wanted]
        return [pushed.pop(i) for i in hits]

    def _keep_pushes(self, channel: C, pause: float, bell: Bell) -> None:
        """Wait for pushed results and keep them. A broken channel is made again, and the server is asked meanwhile."""
        pushed = self._pushed
        try:
            for record in self._hear(channel, pause, bell):
                pushed[record.id] = record
        except StoreUnavailable:
            channel.close()
            ready((bell,), _RECONNECT_PAUSE)
        while len(pushed) > _KEPT_PUSHES:
            pushed.popitem(last=False)

    def wake(self) -> None:
        self._woken = True
        if self._bell is not None:
            self._bell.ring()


def _portions(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Split a batch so that no request to the server is out of all proportion."""
    portions: list[Sequence[Record]] = []
    start = size = 0
    for i, record in enumerate(records):
        if i > start and (size + len(record.payload) > _CHUNK_BYTES or i - start >= _CHUNK):
            portions.append(records[start:i])
            start, size = i, 0
        size += len(record.payload)
    if start < len(records):
        portions.append(records[start:])
    return portions

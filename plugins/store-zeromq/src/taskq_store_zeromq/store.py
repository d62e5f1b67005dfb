"""The ZeroMQ result store: records in the hub, pushed to the process that waits for them."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from taskq.errors import ResultTooLarge, StoreError, StoreSchemaMismatch, StoreUnavailable
from taskq.message import Record
from taskq.spi import Durable, StoreCapabilities, StoreConfig
from taskq_lib_zeromq import protocol
from taskq_lib_zeromq.embed import embedded
from taskq_lib_zeromq.link import Broken, Errors, Link, Links, make_target
from taskq_store_zeromq.coordination import HubCoordination
from taskq_store_zeromq.errors import AnswerLost, StoreClosed, StoreFull, StoreRefused
from taskq_store_zeromq.options import ZeroMQStoreOptions, capabilities

ERRORS = Errors(StoreUnavailable, AnswerLost, StoreRefused, StoreSchemaMismatch, StoreFull, StoreError)
_CHUNK = 500
_CHUNK_BYTES = 8 << 20
_FIRST_LOOK = 0.005
"""Seconds to wait for a push before the hub is asked: what was sent from here is nearly always pushed."""
_LOOK = 1.0
_RECONNECT_PAUSE = 0.1
_KEPT_PUSHES = 10_000

_ids = msgspec.msgpack.Decoder(list[str]).decode
_records = msgspec.msgpack.Decoder(list[Record | None]).decode


class ZeroMQStore(HubCoordination):
    """Results in one hub, or its fail-over hubs in order."""

    def __init__(self, config: StoreConfig) -> None:
        self.options: ZeroMQStoreOptions = config.options
        target = make_target(config.urls, self.options, ERRORS)
        self._embedded = embedded(target, self.options) if self.options.hub == "embed" else None
        self._target = target if self._embedded is None else self._embedded.reviving(target)
        self._capabilities = capabilities(self.options)
        self._max_record = 0
        self._links = Links(self._target)
        self._pid = os.getpid()
        self._open = False
        self._opening = threading.Lock()
        self._listening = threading.Lock()
        """Held while the channel is made, not while it is waited on."""
        self._turn = threading.Lock()
        """Held by the thread that waits."""
        self._channel: Link | None = None
        self._address = uuid.uuid4().hex
        self._pushed: OrderedDict[str, Record] = OrderedDict()
        self._looked: set[str] = set()
        """Ids that the hub has been asked for once: what comes now is pushed."""
        self._next_look = 0.0
        self._pipe: socket.socket | None = None
        self._bell: socket.socket | None = None
        self._woken = False

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_place(self) -> tuple[str, ...]:
        return self._target.addresses

    def open(self) -> None:
        self._check_process()
        with self._opening:
            if self._open:
                return
            if self._embedded is not None:
                self._embedded.start()
            try:
                welcome = self._links.open()
            except BaseException:
                self._links.close()
                if self._embedded is not None:
                    self._embedded.release()
                raise
            self._max_record = welcome.max_record
            self._capabilities = msgspec.structs.replace(
                self._capabilities,
                keeps=Durable.EVICTABLE if welcome.evicts else Durable.DURABLE,
                max_record_bytes=min(welcome.max_record, 1 << 30),
            )
            self._pipe, self._bell = socket.socketpair()
            self._pipe.setblocking(False)
            self._bell.setblocking(False)
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
                self._links.close()
                for end in (self._pipe, self._bell):
                    if end is not None:
                        end.close()
                self._pipe = self._bell = None
            finally:
                if waited:
                    self._turn.release()
        if self._embedded is not None:
            self._embedded.release()

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise StoreClosed(f"this store belongs to process {self._pid}; open a new one in process {os.getpid()}")

    def _check(self) -> None:
        self._check_process()
        if not self._open:
            raise StoreClosed("the result store is not open; call open() first")

    def ask(self, make: Callable[[int], Any]) -> msgspec.Raw:
        """Carry out a request. Raises: StoreError."""
        self._check()
        return self._links.request(make)

    # -------------------------------------------------------------------------------------------------- records

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        for record in records:
            size = len(record.payload) + (len(record.follow_ups) if record.follow_ups else 0)
            if size > self._max_record:
                raise ResultTooLarge(
                    f"the record of task [{record.id}] takes {size} bytes and the hub keeps at most {self._max_record} "
                    "of one; store large results elsewhere and return their address"
                )

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        self._check()
        self.check_records(records)
        superseded: list[str] = []
        for part in _portions(records):
            superseded += _ids(self.ask(lambda n, part=part: protocol.Put(n, list(part))))  # type: ignore[misc]
        return superseded

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self._check()
        found: list[Record | None] = []
        for start in range(0, len(ids), _CHUNK):
            part = list(ids[start : start + _CHUNK])
            found += _records(self.ask(lambda n, part=part: protocol.Get(n, part)))  # type: ignore[misc]
        return found

    def delete(self, ids: Sequence[str]) -> None:
        self._check()
        for start in range(0, len(ids), _CHUNK):
            part = list(ids[start : start + _CHUNK])
            self.ask(lambda n, part=part: protocol.Delete(n, part))  # type: ignore[misc]

    # -------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        self._check()
        if self._channel is None:
            self._listen()
        return self._address

    def _listen(self) -> Link:
        """Return the connection that results are pushed to, making it where there is none or it broke."""
        with self._listening:
            self._check()
            channel = self._channel
            if channel is None:
                assert self._pipe is not None
                channel = Link(self._target, self._pipe.fileno())
            if not channel.connected:
                address = self._address
                channel.request(lambda n: protocol.Watch(n, address))
                self._looked.clear()  # what was pushed meanwhile has gone to nobody
                self._channel = channel
            return channel

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        self._check()
        with self._turn:
            return self._wait(ids, time.monotonic() + timeout)

    def _wait(self, ids: Sequence[str], end: float) -> Sequence[Record]:
        wanted = set(ids)
        looked = self._looked
        looked &= wanted
        first_look = time.monotonic() + _FIRST_LOOK
        while self._open:
            channel = self._listen()
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
            self._read_pushes(channel, max(0.0, pause))
        self._woken = False
        self._drain()
        return ()

    def _take_pushed(self, wanted: set[str]) -> list[Record]:
        pushed = self._pushed
        if not pushed:
            return []
        hits = [i for i in wanted if i in pushed] if len(wanted) < len(pushed) else [i for i in pushed if i in wanted]
        return [pushed.pop(i) for i in hits]

    def _read_pushes(self, channel: Link, pause: float) -> None:
        """Wait for pushed results and keep them. A broken channel is made again, and the hub is asked meanwhile."""
        pushed = self._pushed
        try:
            if not channel.poll(pause):
                return
            while (frame := channel.receive()) is not None:
                if type(frame) is protocol.Push:
                    for record in frame.records:
                        pushed[record.id] = record
                elif type(frame) is protocol.Reset:
                    raise Broken("the hub does not know this connection any more")
        except Broken:
            channel.close()
            if not self._woken:
                time.sleep(_RECONNECT_PAUSE)
        while len(pushed) > _KEPT_PUSHES:
            pushed.popitem(last=False)

    def wake(self) -> None:
        self._woken = True
        with contextlib.suppress(OSError):  # full: it is woken already; or closed meanwhile
            if self._bell is not None:
                self._bell.send(b"1")

    def _drain(self) -> None:
        try:
            while self._pipe is not None and len(self._pipe.recv(4096)) == 4096:
                continue
        except OSError:
            return


def _portions(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Split a batch so that no request is out of all proportion."""
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

"""The Redis result store: one key per task, and one channel per waiting process that results are pushed to."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from taskq.errors import ResultTooLarge, StoreError, StoreUnavailable
from taskq.message import Record
from taskq.spi import Durable, StoreCapabilities, StoreConfig
from taskq_lib_redis.connection import Links, RedisLink, Script, ServerError, Target, make_target, ready
from taskq_lib_redis.records import (
    PUSH_LUA,
    PUT_LUA,
    decode_record,
    push_arguments,
    pushed_records,
    record_arguments,
)
from taskq_store_redis.coordination import RedisCoordination
from taskq_store_redis.errors import ERRORS, StoreClosed, StoreRefused
from taskq_store_redis.options import MAX_RECORD_BYTES, RedisStoreOptions, capabilities

PUT = Script(
    PUT_LUA
    + PUSH_LUA
    + """
local out = {}
for i = 1, #KEYS do
  if not put(KEYS[i], ARGV[i], ARGV[#KEYS + i]) then out[#out + 1] = i end
end
for i = 2 * #KEYS + 1, #ARGV, 4 do push(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), ARGV[i + 3]) end
return out
"""
)
"""KEYS: of the records. ARGV: their values, their times to live in ms, then of each push the channel, the first and
last value that goes there, or 0, and what goes before them. Returns the places, from 1, of the records that were not
stored because a better one is there."""

_CHUNK = 500
_CHUNK_BYTES = 8 << 20
_FIRST_LOOK = 0.005
"""Seconds to wait for a push before the keys are asked: what was sent from here is nearly always pushed."""
_LOOK = 1.0
_RECONNECT_PAUSE = 0.1
_KEPT_PUSHES = 10_000


class RedisStore(RedisCoordination):
    """Results on one Redis or Valkey server, or its fail-over servers in order."""

    def __init__(self, config: StoreConfig) -> None:
        self.options: RedisStoreOptions = config.options
        self.prefix = self.options.key_prefix
        self._target = make_target(config.urls, self.options, ERRORS)
        self._capabilities = capabilities(self.options)
        self._links = Links(lambda: RedisLink(self._target))
        self._pid = os.getpid()
        self._open = False
        self._opening = threading.Lock()
        self._listening = threading.Lock()
        """Held while the channel is made or dropped, not while it is waited on."""
        self._turn = threading.Lock()
        """Held by the thread that waits."""
        self._channel: RedisLink | None = None
        self._address = f"{self.prefix}a:{os.urandom(8).hex()}"
        self._pushed: OrderedDict[str, Record] = OrderedDict()
        self._looked: set[str] = set()
        """Ids whose keys have been asked once: what comes now is pushed."""
        self._next_look = 0.0
        self._pipe: socket.socket | None = None
        self._bell: socket.socket | None = None
        self._woken = False

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_place(self) -> tuple[Any, ...]:
        return self._target.place, self.prefix

    def open(self) -> None:
        self._check_process()
        with self._opening:
            if self._open:
                return
            self._links.open()
            try:
                self._meet()
            except ServerError as error:
                self._links.close()
                raise StoreError(f"{self._target.name} cannot be a result store: {error}") from error
            except BaseException:
                self._links.close()
                raise
            self._pipe, self._bell = socket.socketpair()
            self._pipe.setblocking(False)
            self._bell.setblocking(False)
            self._open = True

    def _meet(self) -> None:
        self._links.run(lambda link: link.call(b"MGET", f"{self.prefix}r:"))
        self._links.run(self._greet)

    def _greet(self, link: RedisLink) -> None:
        """Look whether the server keeps what it has."""
        try:
            flat = link.call(b"CONFIG", b"GET", b"maxmemory*")
        except (ServerError, StoreRefused):
            return  # the user may not ask
        settings = {flat[i]: flat[i + 1] for i in range(0, len(flat), 2)}
        if settings.get(b"maxmemory", b"0") != b"0" and settings.get(b"maxmemory-policy") != b"noeviction":
            self._capabilities = msgspec.structs.replace(self._capabilities, keeps=Durable.EVICTABLE)

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

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            raise StoreClosed(f"this store belongs to process {self._pid}; open a new one in process {os.getpid()}")

    def _check(self) -> None:
        self._check_process()
        if not self._open:
            raise StoreClosed("the result store is not open; call open() first")

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Run a call with a borrowed connection; an error answer becomes a StoreError."""
        self._check()
        try:
            return self._links.run(call)
        except ServerError as error:
            raise StoreError(f"{self._target.name} refused a command: {error}") from error

    # -------------------------------------------------------------------------------------------------- records

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        for record in records:
            if len(record.payload) + (len(record.follow_ups) if record.follow_ups else 0) > MAX_RECORD_BYTES:
                raise ResultTooLarge(
                    f"the record of task [{record.id}] takes {len(record.payload)} bytes, Redis keeps at most "
                    f"{MAX_RECORD_BYTES} in one key; store large results elsewhere and return their address"
                )

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        self._check()
        self.check_records(records)
        superseded: list[str] = []
        for part in _portions(records):
            superseded += self._store(part)
        return superseded

    def _store(self, part: Sequence[Record]) -> list[str]:
        """Store some records and push those that somebody waits for; return the ids of those superseded."""
        keys, values, ttls = record_arguments(part, self.prefix)
        pushes, heads = push_arguments(part, values)
        args: list[Any] = [*values, *ttls]
        for i, head in enumerate(heads):
            args += (*pushes[3 * i : 3 * i + 3], head)
        worse = self.run(lambda link: link.script(PUT, keys, args))
        return [part[i - 1].id for i in worse]

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        self._check()
        found: list[Record | None] = []
        for start in range(0, len(ids), _CHUNK):
            values = self._values([f"{self.prefix}r:{i}" for i in ids[start : start + _CHUNK]])
            found += [None if value is None else self._decoded(value) for value in values]
        return found

    def _values(self, keys: Sequence[str]) -> Sequence[bytes | None]:
        values: Sequence[bytes | None] = self.run(lambda link: link.call(b"MGET", *keys))
        return values

    def _decoded(self, value: bytes) -> Record:
        try:
            return decode_record(value)
        except (msgspec.MsgspecError, TypeError, UnicodeDecodeError) as error:
            foreign = StoreError(
                f"a record on {self._target.name} cannot be read ({error}); is another program using keys that begin "
                f"with {self.prefix}r: ?"
            )
            foreign.retryable = False
            raise foreign from error

    def delete(self, ids: Sequence[str]) -> None:
        self._check()
        for start in range(0, len(ids), _CHUNK):
            self._forget([f"{self.prefix}r:{i}" for i in ids[start : start + _CHUNK]])

    def _forget(self, keys: Sequence[str]) -> None:
        self.run(lambda link: link.call(b"DEL", *keys))

    # -------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        self._check()
        if self._channel is None:
            self._listen()
        return self._address

    def _listen(self) -> RedisLink:
        """Return the subscribed connection, making it where there is none or it broke."""
        with self._listening:
            self._check()
            channel = self._channel
            if channel is None or not channel.connected:
                channel = channel or RedisLink(self._anywhere())
                try:
                    channel.call(b"SUBSCRIBE", self._address)
                except ServerError as error:
                    channel.close()
                    raise StoreError(f"{self._target.name} refused SUBSCRIBE: {error}") from error
                self._channel = channel
                self._looked.clear()  # what was pushed meanwhile has gone to nobody
            return channel

    def _anywhere(self) -> Target:
        return self._target

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
            self._read_pushes(channel, pause)
        self._woken = False
        self._drain()
        return ()

    def _take_pushed(self, wanted: set[str]) -> list[Record]:
        pushed = self._pushed
        if not pushed:
            return []
        hits = [i for i in wanted if i in pushed] if len(wanted) < len(pushed) else [i for i in pushed if i in wanted]
        return [pushed.pop(i) for i in hits]

    def _read_pushes(self, channel: RedisLink, pause: float) -> None:
        """Wait for pushed results and keep them. A broken channel is made again, and the keys are asked meanwhile."""
        pushed = self._pushed
        try:
            if not channel.readable(pause, self._pipe):
                return
            while True:
                kind, _, data = channel.receive()
                if kind == b"message":
                    for record in pushed_records(data):
                        pushed[record.id] = record
                if not channel.readable(0.0):
                    break
        except (ServerError, ValueError, TypeError, msgspec.MsgspecError):
            channel.close()  # not ours: somebody else publishes there
        except StoreUnavailable:
            channel.close()
            if self._pipe is not None:
                ready((self._pipe,), _RECONNECT_PAUSE)
        while len(pushed) > _KEPT_PUSHES:
            pushed.popitem(last=False)

    def wake(self) -> None:
        self._woken = True
        try:
            if self._bell is not None:
                self._bell.send(b"1")
        except OSError:
            return  # full: it is woken already; or closed meanwhile

    def _drain(self) -> None:
        try:
            while self._pipe is not None and len(self._pipe.recv(4096)) == 4096:
                continue
        except OSError:
            return


def _portions(records: Sequence[Record]) -> list[Sequence[Record]]:
    """Split a batch so that no command to the server is out of all proportion."""
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

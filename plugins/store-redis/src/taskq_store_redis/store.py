"""The Redis result store: one key per task, and one channel per waiting process that results are pushed to."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from taskq.errors import ResultTooLarge, StoreError, StoreUnavailable
from taskq.message import Record
from taskq.spi import StoreCapabilities, StoreConfig
from taskq_lib_redis import (
    PUT_LUA,
    Errors,
    Links,
    RedisLink,
    Script,
    ServerError,
    Target,
    decode_pairs,
    decode_record,
    record_arguments,
)
from taskq_store_redis.coordination import RedisCoordination
from taskq_store_redis.options import MAX_RECORD_BYTES, RedisStoreOptions, capabilities


class StoreRefused(StoreError):
    """The server refuses the credentials or a command; repeating is pointless."""

    retryable = False


ERRORS = Errors(StoreUnavailable, StoreUnavailable, StoreRefused, StoreUnavailable, StoreError)
_PUT = Script(
    PUT_LUA
    + """
local out = {}
local n = tonumber(ARGV[1])
for i = 1, n do
  if not put(KEYS[i], ARGV[2 * i], ARGV[2 * i + 1]) then out[#out + 1] = i end
end
for i = 2 * n + 2, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end
return out
"""
)
_CHUNK = 500
_FIRST_LOOK = 0.005
"""Seconds to wait for a push before the keys are asked: what was sent from here is nearly always pushed."""
_LOOK = 1.0
_KEPT_PUSHES = 10_000


class RedisStore(RedisCoordination):
    """Results on one Redis or Valkey server, or its fail-over servers in order."""

    def __init__(self, config: StoreConfig) -> None:
        self.options: RedisStoreOptions = config.options
        self._urls = config.urls
        self.prefix = self.options.key_prefix
        self._target = Target(config.urls, self.options.connect_timeout, self.options.timeout, ERRORS)
        self._capabilities = capabilities(self.options)
        self._links = Links(self._target)
        self._pid = os.getpid()
        self._channel_lock = threading.Lock()
        self._channel: RedisLink | None = None
        self._address = f"{self.prefix}a:{os.urandom(8).hex()}"
        self._pushed: OrderedDict[str, Record] = OrderedDict()
        self._pipe, self._bell = socket.socketpair()
        self._pipe.setblocking(False)
        self._bell.setblocking(False)
        self._woken = False
        self._closed = True

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_place(self) -> tuple[Any, ...]:
        return tuple((u.host, u.port, u.path.strip("/") or "0") for u in self._urls), self.prefix

    def open(self) -> None:
        if self._closed:
            self.run(lambda link: link.call(b"PING"))
            self._closed = False

    def close(self, *, timeout: float = 5.0) -> None:
        if self._pid != os.getpid():
            return
        self._closed = True
        self.wake()
        with self._channel_lock:
            if self._channel is not None:
                self._channel.close()
                self._channel = None
        self._links.close()

    def run(self, call: Any) -> Any:
        """Run a call with a borrowed connection; an error answer becomes a StoreError."""
        if self._pid != os.getpid():
            error = StoreError(f"this store belongs to process {self._pid}; open a new one in process {os.getpid()}")
            error.retryable = False
            raise error
        try:
            return self._links.run(call)
        except ServerError as error:
            raise StoreError(f"{self._target.name} refused a command: {error}") from error

    # -------------------------------------------------------------------------------------------------- records

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        for record in records:
            if len(record.payload) + len(record.follow_ups or b"") > MAX_RECORD_BYTES:
                raise ResultTooLarge(
                    f"the record of task [{record.id}] takes {len(record.payload)} bytes, Redis keeps at most "
                    f"{MAX_RECORD_BYTES} in one key"
                )

    def put(self, records: Sequence[Record]) -> Sequence[str]:
        self.check_records(records)
        superseded: list[str] = []
        for start in range(0, len(records), _CHUNK):
            part = records[start : start + _CHUNK]
            stored, published = record_arguments(part, self.prefix)
            keys = stored[0::3]
            values = [value for i in range(0, len(stored), 3) for value in (stored[i + 1], stored[i + 2])]
            args = [len(keys), *values, *published]
            worse = self.run(lambda link, keys=keys, args=args: link.script(_PUT, keys, args))
            superseded += [part[i - 1].id for i in worse]
        return superseded

    def get(self, ids: Sequence[str]) -> Sequence[Record | None]:
        found: list[Record | None] = []
        for start in range(0, len(ids), _CHUNK):
            keys = [f"{self.prefix}r:{i}" for i in ids[start : start + _CHUNK]]
            values = self.run(lambda link, keys=keys: link.call(b"MGET", *keys))
            found += [None if value is None else decode_record(value) for value in values]
        return found

    def delete(self, ids: Sequence[str]) -> None:
        for start in range(0, len(ids), _CHUNK):
            keys = [f"{self.prefix}r:{i}" for i in ids[start : start + _CHUNK]]
            self.run(lambda link, keys=keys: link.call(b"DEL", *keys))

    # -------------------------------------------------------------------------------------------------- waiting

    def reply_address(self) -> str | None:
        with self._channel_lock:
            self._listen()
        return self._address

    def _listen(self) -> RedisLink:
        """Return the subscribed connection, making it where there is none or it broke; the lock is held."""
        if self._channel is None or not self._channel.connected:
            channel = RedisLink(self._target)
            channel.call(b"SUBSCRIBE", self._address)
            self._channel = channel
        return self._channel

    def wait(self, ids: Sequence[str], timeout: float) -> Sequence[Record]:
        end = time.monotonic() + timeout
        wanted = set(ids)
        next_look = time.monotonic() + _FIRST_LOOK
        while True:
            found = self._take_pushed(wanted)
            if found:
                return found
            now = time.monotonic()
            if now >= next_look or now >= end:
                next_look = now + _LOOK
                found = [r for r in self.get(ids) if r is not None and r.terminal]
                if found:
                    return found
            if self._woken or self._closed or now >= end:
                self._woken = False
                self._drain()
                return ()
            self._read_pushes(min(end, next_look) - now)

    def _take_pushed(self, wanted: set[str]) -> list[Record]:
        pushed = self._pushed
        if len(wanted) < len(pushed):
            hits = [i for i in wanted if i in pushed]
        else:
            hits = [i for i in pushed if i in wanted]
        return [pushed.pop(i) for i in hits]

    def _read_pushes(self, pause: float) -> None:
        """Wait for pushed results and keep them; a broken channel is made again, and the keys are asked meanwhile."""
        with self._channel_lock:
            channel = self._listen()
            if not channel.readable(pause, [self._pipe]):
                self._drain()
                return
            while True:
                kind, _, data = channel.receive()
                if kind == b"message":
                    for value in decode_pairs(data):
                        record = decode_record(value)
                        self._pushed[record.id] = record
                if not channel.readable(0.0):
                    break
        while len(self._pushed) > _KEPT_PUSHES:
            self._pushed.popitem(last=False)

    def wake(self) -> None:
        self._woken = True
        try:
            self._bell.send(b"1")
        except OSError:
            return  # full: it is woken already

    def _drain(self) -> None:
        try:
            while self._pipe.recv(4096):
                continue
        except OSError:
            return

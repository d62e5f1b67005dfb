"""The Redis result store: one key per task, and one channel per waiting process that results are pushed to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from taskq.errors import StoreError
from taskq.message import Record
from taskq.spi import Durable, StoreCapabilities, StoreConfig
from taskq_lib_client.bell import Bell
from taskq_lib_client.results import PushedResults
from taskq_lib_redis.connection import Links, RedisLink, Script, ServerError, Target, make_target
from taskq_lib_redis.records import (
    PUSH_LUA,
    PUT_LUA,
    decode_record,
    push_arguments,
    pushed_records,
    record_arguments,
)
from taskq_store_redis.coordination import RedisCoordination
from taskq_store_redis.errors import ERRORS, StoreRefused
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


class RedisStore(PushedResults[RedisLink], RedisCoordination):
    """Results on one Redis or Valkey server, or its fail-over servers in order."""

    max_record_bytes = MAX_RECORD_BYTES

    def __init__(self, config: StoreConfig) -> None:
        super().__init__()
        self.options: RedisStoreOptions = config.options
        self.prefix = self.options.key_prefix
        self.address = f"{self.prefix}a:{os.urandom(8).hex()}"
        self._target = make_target(config.urls, self.options, ERRORS)
        self._capabilities = capabilities(self.options)
        self._links = Links(lambda: RedisLink(self._target))

    @property
    def capabilities(self) -> StoreCapabilities:
        return self._capabilities

    @property
    def results_place(self) -> tuple[Any, ...]:
        return self._target.place, self.prefix

    def _connect(self) -> None:
        self._links.open()
        try:
            self._meet()
        except ServerError as error:
            raise StoreError(f"{self._target.name} cannot be a result store: {error}") from error

    def _disconnect(self) -> None:
        self._links.close()

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

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Run a call with a borrowed connection; an error answer becomes a StoreError."""
        self._check()
        try:
            return self._links.run(call)
        except ServerError as error:
            raise StoreError(f"{self._target.name} refused a command: {error}") from error

    # -------------------------------------------------------------------------------------------------- records

    def _store(self, part: Sequence[Record]) -> list[str]:
        """Store some records and push those that somebody waits for; return the ids of those superseded."""
        keys, values, ttls = record_arguments(part, self.prefix)
        pushes, heads = push_arguments(part, values)
        args: list[Any] = [*values, *ttls]
        for i, head in enumerate(heads):
            args += (*pushes[3 * i : 3 * i + 3], head)
        worse = self.run(lambda link: link.script(PUT, keys, args))
        return [part[i - 1].id for i in worse]

    def _load(self, ids: Sequence[str]) -> list[Record | None]:
        return [None if value is None else self._decoded(value) for value in self._values(self._keys(ids))]

    def _keys(self, ids: Sequence[str]) -> list[str]:
        return [f"{self.prefix}r:{i}" for i in ids]

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

    def _forget(self, ids: Sequence[str]) -> None:
        self.run(lambda link: link.call(b"DEL", *self._keys(ids)))

    # -------------------------------------------------------------------------------------------------- waiting

    def _subscribe(self, channel: RedisLink | None, bell: Bell) -> RedisLink:
        channel = channel or RedisLink(self._anywhere())
        try:
            channel.call(b"SUBSCRIBE", self.address)
        except ServerError as error:
            channel.close()
            raise StoreError(f"{self._target.name} refused SUBSCRIBE: {error}") from error
        return channel

    def _anywhere(self) -> Target:
        return self._target

    def _hear(self, channel: RedisLink, pause: float, bell: Bell) -> Iterator[Record]:
        try:
            more = channel.readable(pause, bell)
            while more:
                kind, _, data = channel.receive()
                if kind == b"message":
                    yield from pushed_records(data)
                more = channel.has_input()
        except (ServerError, ValueError, TypeError, msgspec.MsgspecError):
            channel.close()  # not ours: somebody else publishes there

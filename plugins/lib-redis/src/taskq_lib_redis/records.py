"""Results in Redis: one string per task, and the rule about which record replaces which, in Lua and in Python.

A value is a rank of 17 ASCII characters (epoch and attempt in hexadecimal, 1 for terminal), then the record in
MessagePack. Ranks compare as strings, so a script decides without decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol, runtime_checkable

import msgspec

from taskq.message import Record

RANK = 17
PUT_LUA = """
local ends = {}
local function put(key, value, ttl)
  -- as a time, not from now: that the server would work out again for its log, for each key
  local at = ends[ttl]
  if not at then
    local t = redis.call('TIME')
    at = string.format('%.0f', t[1] * 1000 + math.floor(t[2] / 1000) + ttl)
    ends[ttl] = at
  end
  if redis.call('SET', key, value, 'PXAT', at, 'NX') then return true end
  local old = redis.pcall('GETRANGE', key, 0, 16)
  if type(old) == 'string' and old ~= '' then
    local new = string.sub(value, 1, 17)
    if new < old or (new == old and string.sub(new, 17) == '1')
       or (string.sub(new, 1, 16) == string.sub(old, 1, 16) and string.sub(old, 17) == '1') then
      return false
    end
  end
  redis.call('SET', key, value, 'PXAT', at)
  return true
end
"""

PUSH_LUA = """
local function push(channel, first, last, head)
  -- nobody there any more: the values need not be put together
  if redis.call('PUBSUB', 'NUMSUB', channel)[2] > 0 then
    if first > 0 then head = head .. table.concat(ARGV, '', first, last) end
    redis.call('PUBLISH', channel, head)
  end
end
"""
"""Where values stand one after the other in ARGV."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, str, bytes, bool, int, int, float, str | None, bytes | None]).decode
_encode_values = msgspec.msgpack.Encoder().encode
_decode_lengths = msgspec.msgpack.Decoder(list[int]).decode


def encode_record(record: Record) -> bytes:
    """Return a record's value."""
    body = _encode((
        record.id, record.state, record.payload, record.terminal, record.attempt, record.epoch, record.ttl,
        record.reply, record.follow_ups,
    ))  # fmt: skip
    return _rank(record.epoch, record.attempt, record.terminal) + body


@lru_cache(1000)
def _rank(epoch: int, attempt: int, terminal: bool) -> bytes:
    return b"%08x%08x%d" % (epoch, attempt, terminal)


def decode_record(value: bytes) -> Record:
    """Return the record of a value. Raises: ValueError, where another program wrote it."""
    return Record(*_decode(value[RANK:]))


def record_arguments(records: Sequence[Record], prefix: str) -> tuple[list[str], list[bytes], list[int]]:
    """Return what a script needs to store records: keys, values, and times to live in ms."""
    keys = [f"{prefix}r:{record.id}" for record in records]
    return keys, [encode_record(r) for r in records], [max(1, int(r.ttl * 1000)) for r in records]


def push_arguments(records: Sequence[Record], values: Sequence[bytes]) -> tuple[list[Any], list[bytes]]:
    """Return what a script needs to push values to those who wait.

    First a flat list: channel, then the places (from 1) of the first and last value that go there, after what stands in
    the second list for this channel; or 0 and 0, where that is all. One waiting process is the usual case, to which
    everything goes: its values need not be sent to the server twice.
    """
    reply = records[0].reply if records else None
    for record in records:
        if record.reply != reply or not record.terminal:
            break
    else:
        return ([reply, 1, len(values)], [push_head(values)]) if reply else ([], [])
    pushed = pushes(records, values)
    return [v for channel in pushed for v in (channel, 0, 0)], list(pushed.values())


def pushes(records: Sequence[Record], values: Sequence[bytes]) -> dict[str, bytes]:
    """Return what to push to each channel: all values for one waiting process at once."""
    wanted: dict[str, list[bytes]] = {}
    for record, value in zip(records, values, strict=True):
        if record.reply and record.terminal:
            wanted.setdefault(record.reply, []).append(value)
    return {channel: push_head(mine) + b"".join(mine) for channel, mine in wanted.items()}


def push_head(values: Sequence[bytes]) -> bytes:
    """Return what goes before values that are pushed one after the other: their lengths."""
    lengths = _encode_values([*map(len, values)])
    return len(lengths).to_bytes(4, "big") + lengths


def pushed_records(data: bytes) -> list[Record]:
    """Return the records of a push. Raises: ValueError, TypeError or msgspec's, where it is not one."""
    start = 4 + int.from_bytes(data[:4], "big")
    records = []
    for length in _decode_lengths(data[4:start]):
        records.append(decode_record(data[start : start + length]))
        start += length
    return records


@runtime_checkable
class RedisResults(Protocol):
    """The result store of the same server and database, as the transport sees it."""

    @property
    def results_place(self) -> tuple[Any, ...]:
        """Server, database and prefix: equal where a fused commit is possible."""
        ...

    def check_records(self, records: Sequence[Record]) -> None:
        """Refuse what is too large before anything is sent. Raises: ResultTooLarge."""
        ...

"""Coordination in Redis: each operation is one atomic script run, semaphores and time indexes are sorted sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskq.errors import OutcomeUnknown, StoreError
from taskq.spi import Op, OpResult
from taskq_lib_redis.connection import RedisLink, Script
from taskq_store_redis.errors import AnswerLost

APPLY = Script(
    """
local out = {}
local function set(key, value, ttl)
  if ttl == '' then redis.call('SET', key, value) else redis.call('SET', key, value, 'PX', ttl) end
end
for i = 1, #KEYS do
  local key, a = KEYS[i], (i - 1) * 6
  local kind, value, has_expected, expected, amount, ttl =
    ARGV[a + 1], ARGV[a + 2], ARGV[a + 3] == '1', ARGV[a + 4], ARGV[a + 5], ARGV[a + 6]
  local current = redis.call('GET', key)
  local applied = 0
  if kind == 'get' then
    applied = current and 1 or 0
  elseif kind == 'put' then
    set(key, value, ttl) current = value applied = 1
  elseif kind == 'put_if_absent' then
    if not current then set(key, value, ttl) current = value applied = 1 end
  elseif kind == 'compare_and_set' then
    if (has_expected and current == expected) or (not has_expected and not current) then
      set(key, value, ttl) current = value applied = 1
    end
  elseif kind == 'increment' then
    if not current then
      current = amount set(key, current, ttl) applied = 1
    else
      local result = redis.pcall('INCRBY', key, amount)
      if type(result) == 'number' then current = redis.call('GET', key) applied = 1 end
    end
  elseif kind == 'delete' then
    if current and (not has_expected or current == expected) then
      redis.call('DEL', key) current = false applied = 1
    end
  end
  out[2 * i - 1] = applied
  out[2 * i] = current
end
return out
"""
)
_NOW = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)\n"
ACQUIRE = Script(
    _NOW
    + """
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.ceil(last[2])))
return 1
"""
)
RENEW = Script(
    _NOW
    + """
local ends = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not ends or tonumber(ends) <= now then return 0 end
redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])
local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.ceil(last[2])))
return 1
"""
)
_OPS_AT_ONCE = 500
WORDS = 6
"""Arguments of one operation."""


class RedisCoordination:
    """The coordination methods of the store; mixed into it."""

    prefix: str

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Run a call with a borrowed connection."""
        raise NotImplementedError

    def _coordinate(self, call: Callable[[Any], Any]) -> Any:
        try:
            return self.run(call)
        except AnswerLost as error:
            raise OutcomeUnknown(f"whether a coordination operation took effect is not known: {error}") from error

    def _key(self, kind: str, key: str) -> str:
        if not key or len(key) > 200 or not key.isascii() or not key.isprintable():
            error = StoreError(f"coordination key {key[:210]!r} is not 1 to 200 printable ASCII characters")
            error.retryable = False
            raise error
        return f"{self.prefix}{kind}:{key}"

    def apply(self, ops: Sequence[Op]) -> Sequence[OpResult]:
        results: list[OpResult] = []
        for start in range(0, len(ops), _OPS_AT_ONCE):
            part = ops[start : start + _OPS_AT_ONCE]
            keys = [self._key("k", op.key) for op in part]
            args: list[Any] = []
            for op in part:
                ttl = b"" if op.ttl is None else b"%d" % max(1, round(op.ttl * 1000))
                expected = op.expected if op.expected is not None else b""
                args += (op.kind.value, op.value or b"", int(op.expected is not None), expected, op.amount, ttl)
            flat = self._apply(keys, args)
            results += [OpResult(bool(flat[i]), flat[i + 1]) for i in range(0, len(flat), 2)]
        return results

    def _apply(self, keys: Sequence[str], args: Sequence[Any]) -> Sequence[Any]:
        """Run operations; return for each whether it was applied, and the value after it."""
        flat: Sequence[Any] = self._coordinate(lambda link: link.script(APPLY, keys, args))
        return flat

    def acquire(self, key: str, owner: str, *, slots: int = 1, ttl: float) -> bool:
        name = self._key("s", key)
        ms = max(1, round(ttl * 1000))
        return bool(self._coordinate(lambda link: link.script(ACQUIRE, (name,), (owner, slots, ms))))

    def renew(self, key: str, owner: str, *, ttl: float) -> bool:
        name = self._key("s", key)
        ms = max(1, round(ttl * 1000))
        return bool(self._coordinate(lambda link: link.script(RENEW, (name,), (owner, ms))))

    def release(self, key: str, owner: str) -> None:
        name = self._key("s", key)
        self._coordinate(lambda link: link.call(b"ZREM", name, owner))

    # ---------------------------------------------------------------------------------------------- time index

    def _index(self, index: str) -> str:
        return self._key("t", index)

    def index_put(self, index: str, entries: Mapping[str, float]) -> None:
        if entries:
            pairs = [value for member, at in entries.items() for value in (repr(float(at)), member)]
            self._coordinate(lambda link: link.call(b"ZADD", self._index(index), *pairs))

    def index_due(self, index: str, now: float, limit: int) -> Sequence[tuple[str, float]]:
        command = (b"ZRANGEBYSCORE", self._index(index), b"-inf", repr(float(now)), b"WITHSCORES", b"LIMIT", 0, limit)
        flat = self._coordinate(lambda link: link.call(*command))
        return [(flat[i].decode(), float(flat[i + 1])) for i in range(0, len(flat), 2)]

    def index_remove(self, index: str, members: Sequence[str]) -> Sequence[str]:
        def remove(link: RedisLink) -> list[str]:
            answers = link.pipeline([(b"ZREM", self._index(index), member) for member in members])
            problem = next((a for a in answers if isinstance(a, Exception)), None)
            if problem is not None:
                raise problem
            return [member for member, gone in zip(members, answers, strict=True) if gone]

        return self._coordinate(remove) if members else ()

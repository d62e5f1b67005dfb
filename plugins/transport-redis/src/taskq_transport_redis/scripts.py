"""The transport's Lua scripts. Each is one atomic step on the server; time is the server's.

Layout, under the key prefix: ``q:QUEUE:P`` a list of frames per priority; ``d:QUEUE`` the delayed ones, a sorted set by due
time in ms; ``b:QUEUE`` the bell, a list of at most one element that a waiting consumer pops; ``c`` the consumers, a sorted
set by the end of their lease in ms; ``m:CONSUMER`` its queues by number; ``i:CONSUMER:N`` what it holds of its queue N, a hash
from receipt to frame. A frame is two bytes, deliveries so far and priority, then the payload; a delayed one has eight
random bytes in front, because a sorted set keeps equal members once.
"""

from __future__ import annotations

from taskq_lib_redis import PUT_LUA, Script

BELL_TTL_MS = 60_000

_COMMON = f"""
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function ring(bell)
  if redis.call('LLEN', bell) == 0 then
    redis.call('RPUSH', bell, '1')
    redis.call('PEXPIRE', bell, {BELL_TTL_MS})
  end
end
local function chunks(list, size, call)
  for i = 1, #list, size do call(unpack(list, i, math.min(i + size - 1, #list))) end
end
"""

SEND = Script(
    f"""
redis.call('RPUSH', KEYS[1], unpack(ARGV))
if redis.call('LLEN', KEYS[2]) == 0 then
  redis.call('RPUSH', KEYS[2], '1')
  redis.call('PEXPIRE', KEYS[2], {BELL_TTL_MS})
end
return #ARGV
"""
)
"""KEYS: list, bell. ARGV: frames."""

SEND_DELAYED = Script(
    _COMMON
    + """
local now = now_ms()
for i = 1, #ARGV, 2 do redis.call('ZADD', KEYS[1], now + ARGV[i], ARGV[i + 1]) end
ring(KEYS[2])
return #ARGV / 2
"""
)
"""KEYS: delayed, bell. ARGV: delay in ms, member, … The bell tells a waiting consumer to look when it is due."""

CLAIM = Script(
    _COMMON
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return redis.error_reply('LOST lease') end
local now, left, bytes, one = now_ms(), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4] == '1'
local answer, next_due, queues = {0}, -1, (#KEYS - 1) / 13
for q = 0, queues - 1 do
  local k = 1 + q * 13
  local held, delayed, bell, base = KEYS[k + 1], KEYS[k + 2], KEYS[k + 3], tonumber(ARGV[5 + q])
  local due = redis.call('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)
  if #due > 0 then
    chunks(due, 1000, function(...) redis.call('ZREM', delayed, ...) end)
    for i = 1, #due do
      local frame = string.sub(due[i], 9)
      redis.call('RPUSH', KEYS[k + 13 - string.byte(frame, 2)], frame)
    end
  end
  local first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first[2] then
    local wait = tonumber(first[2]) - now
    if next_due < 0 or wait < next_due then next_due = math.max(0, wait) end
  end
  local taken = {}
  for p = 4, 13 do
    if left <= 0 then break end
    local got = redis.call('LPOP', KEYS[k + p], left)
    if got then
      local keep = #got
      for i = 1, #got do
        bytes = bytes - (#got[i] - 2)
        if bytes < 0 and not one then keep = i - 1 break end
        one = false
        taken[#taken + 1] = got[i]
      end
      left = left - keep
      if keep < #got then
        for i = #got, keep + 1, -1 do redis.call('LPUSH', KEYS[k + p], got[i]) end
        left = 0
      end
    end
  end
  if #taken > 0 then
    local pairs_ = {}
    for i = 1, #taken do
      pairs_[2 * i - 1] = base + i - 1
      pairs_[2 * i] = taken[i]
    end
    chunks(pairs_, 4000, function(...) redis.call('HSET', held, ...) end)
    if left <= 0 then ring(bell) end
  end
  answer[q + 2] = taken
end
answer[1] = next_due
return answer
"""
)
"""KEYS: consumers, then per queue: held, delayed, bell, lists of priority 9 to 0.
ARGV: consumer, limit, bytes, 1 where a first message may be of any size, then per queue the first receipt.
Returns the ms until the next delayed message is due (-1: none), then a list of frames per queue."""

SETTLE = Script(
    _COMMON
    + PUT_LUA
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return redis.error_reply('LOST lease') end
local p, me, batch, now = ARGV[2], ARGV[1], cmsgpack.unpack(ARGV[3]), nil
local records, publish, follow, acks, back = batch[1], batch[2], batch[3], batch[4], batch[5]
for i = 1, #records, 3 do put(records[i], records[i + 1], records[i + 2]) end
for i = 1, #follow, 4 do
  local queue, priority, delay, frame = follow[i], follow[i + 1], follow[i + 2], follow[i + 3]
  if delay > 0 then
    now = now or now_ms()
    redis.call('ZADD', p .. 'd:' .. queue, now + delay, frame)
  else
    redis.call('RPUSH', p .. 'q:' .. queue .. ':' .. priority, frame)
  end
  ring(p .. 'b:' .. queue)
end
for i = 1, #acks, 2 do
  local key = p .. 'i:' .. me .. ':' .. acks[i]
  chunks(acks[i + 1], 4000, function(...) redis.call('HDEL', key, ...) end)
end
for i = #back, 1, -6 do
  local n, queue, receipt, counted, delay, uid = back[i-5], back[i-4], back[i-3], back[i-2], back[i-1], back[i]
  local key = p .. 'i:' .. me .. ':' .. n
  local frame = redis.call('HGET', key, receipt)
  if frame then
    redis.call('HDEL', key, receipt)
    local count = math.min(255, string.byte(frame, 1) + counted)
    local again = string.char(count) .. string.sub(frame, 2)
    if delay > 0 then
      now = now or now_ms()
      redis.call('ZADD', p .. 'd:' .. queue, now + delay, uid .. again)
    else
      redis.call('LPUSH', p .. 'q:' .. queue .. ':' .. string.byte(frame, 2), again)
    end
    ring(p .. 'b:' .. queue)
  end
end
for i = 1, #publish, 2 do redis.call('PUBLISH', publish[i], publish[i + 1]) end
return 1
"""
)
"""KEYS: consumers. ARGV: consumer, prefix, batch in MessagePack: records (key, value, ttl in ms, …), to publish (channel,
data, …), follow-ups (queue, priority, delay in ms, frame, …), acknowledged (queue number, receipts, …), handed back (queue
number, queue, receipt, counted, delay in ms, eight random bytes, …)."""

_GIVE_BACK = """
local function give_back(p, cid, counted)
  local queues, total = redis.call('HGETALL', p .. 'm:' .. cid), 0
  for i = 1, #queues, 2 do
    local key, queue = p .. 'i:' .. cid .. ':' .. queues[i], queues[i + 1]
    local receipts = redis.call('HKEYS', key)
    table.sort(receipts, function(a, b) return tonumber(a) > tonumber(b) end)
    for j = 1, #receipts do
      local frame = redis.call('HGET', key, receipts[j])
      local count = math.min(255, string.byte(frame, 1) + counted)
      redis.call('LPUSH', p .. 'q:' .. queue .. ':' .. string.byte(frame, 2), string.char(count) .. string.sub(frame, 2))
    end
    if #receipts > 0 then
      total = total + #receipts
      ring(p .. 'b:' .. queue)
    end
    redis.call('DEL', key)
  end
  redis.call('DEL', p .. 'm:' .. cid, p .. 'w:' .. cid)
  redis.call('ZREM', p .. 'c', cid)
  return total
end
"""

REGISTER = Script(
    _COMMON
    + """
redis.call('ZADD', KEYS[1], now_ms() + ARGV[2], ARGV[1])
if #ARGV > 2 then redis.call('HSET', KEYS[2], unpack(ARGV, 3)) end
return 1
"""
)
"""KEYS: consumers, its queues. ARGV: consumer, lease in ms, then number and name of each queue."""

BEAT = Script(
    _COMMON
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[1], now_ms() + ARGV[2], ARGV[1])
return 1
"""
)
"""KEYS: consumers. ARGV: consumer, lease in ms. Returns 0 where the lease is lost."""

CLOSE = Script(_COMMON + _GIVE_BACK + "return give_back(ARGV[2], ARGV[1], 0)")
"""ARGV: consumer, prefix. Hands back what it holds, in order, uncounted."""

REAP = Script(
    _COMMON
    + _GIVE_BACK
    + """
local dead = redis.call('ZRANGEBYSCORE', ARGV[1] .. 'c', '-inf', now_ms(), 'LIMIT', 0, 10)
local total = 0
for i = 1, #dead do total = total + give_back(ARGV[1], dead[i], 1) end
local first = redis.call('ZRANGE', ARGV[1] .. 'c', 0, 0, 'WITHSCORES')
return {#dead, total, first[2] and math.max(0, tonumber(first[2]) - now_ms()) or -1}
"""
)
"""ARGV: prefix. Gives back what dead consumers hold, counted; returns how many died, how many messages, and the ms until
the next lease ends (-1: nobody's)."""

PROMOTE = Script(
    _COMMON
    + """
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'LIMIT', 0, 1000)
for i = 1, #due do
  local frame = string.sub(due[i], 9)
  redis.call('ZREM', KEYS[1], due[i])
  redis.call('RPUSH', ARGV[1] .. string.byte(frame, 2), frame)
end
if #due > 0 then ring(KEYS[2]) end
return #due
"""
)
"""KEYS: delayed, bell. ARGV: the lists' common name. Used before counting."""

IN_FLIGHT = Script(
    """
local total = {}
for _, cid in ipairs(redis.call('ZRANGE', ARGV[1] .. 'c', 0, -1)) do
  local queues = redis.call('HGETALL', ARGV[1] .. 'm:' .. cid)
  for i = 1, #queues, 2 do
    total[#total + 1] = queues[i + 1]
    total[#total + 1] = redis.call('HLEN', ARGV[1] .. 'i:' .. cid .. ':' .. queues[i])
  end
end
return total
"""
)
"""ARGV: prefix. Returns queue and number of held messages, per consumer and queue."""

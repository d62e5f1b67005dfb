"""The transport's Lua scripts. Each is one atomic step on the server; time is the server's.

Layout, under the key prefix:

- ``q:QUEUE:P`` a list of frames per priority; ``d:QUEUE`` the delayed ones, a sorted set by due time in ms;
- ``b:QUEUE`` the bell, a list of at most one element that a waiting consumer pops;
- ``n`` the names of queues that hold anything, so that a consumer of many queues need not look at each;
- ``queues`` the names of declared queues;
- ``c`` the consumers, a sorted set by the end of their lease in ms;
- ``m:CONSUMER`` its queues: number to name, and under ``""`` the number of its claims that a broken connection spoilt;
- ``s:CONSUMER`` the queues of a consumer of many, by position or weight;
- ``i:CONSUMER:N`` what it holds of its queue N, a hash from receipt to frame; ``w:CONSUMER`` ends its waiting.

A frame is two bytes, deliveries so far and priority, then the payload; a delayed one has eight random bytes in front,
because a sorted set keeps equal members once. What another program has put there, without such bytes, is a payload.

Redis undoes nothing of a script that fails half-way, so what may fail goes first or through ``pcall``: a key of another
type must not cost a message. The first write of a script is one that a server without memory allows, where the script
gives memory back or keeps a lease.
"""

from __future__ import annotations

from taskq_lib_redis.connection import Script
from taskq_lib_redis.records import PUSH_LUA, PUT_LUA

BELL_TTL_MS = 60_000
REAPED_AT_ONCE = 10
MANY = 16
"""Most queues that a consumer looks at one after the other; from there on it asks which of them hold anything."""

_RUNG = f"redis.call('PEXPIRE', bell, {BELL_TTL_MS})"

_COMMON = f"""
local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function ring(bell)
  if redis.pcall('LLEN', bell) == 0 then
    redis.call('RPUSH', bell, '1')
    {_RUNG}
  end
end
local function chunks(list, size, call)
  for i = 1, #list, size do call(unpack(list, i, math.min(i + size - 1, #list))) end
end
local function framed(frame, priority)
  local own = string.byte(frame, 2)
  if own and own <= 9 and (not priority or own == priority) then return frame end
  return '\\0' .. string.char(priority or 5) .. frame
end
local function due_frame(member)
  local own = string.byte(member, 10)
  if own and own <= 9 then return string.sub(member, 9) end
  return '\\0\\5' .. member
end
local function promote(p, queue, now)
  local delayed = p .. 'd:' .. queue
  local due = redis.pcall('ZRANGEBYSCORE', delayed, '-inf', now, 'LIMIT', 0, 1000)
  for i = 1, #due do
    local frame = due_frame(due[i])
    local done = redis.pcall('RPUSH', p .. 'q:' .. queue .. ':' .. string.byte(frame, 2), frame)
    if type(done) == 'number' then redis.call('ZREM', delayed, due[i]) end
  end
  return #due
end
"""

SEND = Script(
    f"""
local size = redis.call('RPUSH', KEYS[1], unpack(ARGV, 2))
if size == #ARGV - 1 then redis.pcall('SADD', KEYS[3], ARGV[1]) end
local bell = KEYS[2]
if redis.pcall('LLEN', bell) == 0 then
  redis.call('RPUSH', bell, '1')
  {_RUNG}
end
return size
"""
)
"""KEYS: list, bell, names. ARGV: queue, frames."""

SEND_DELAYED = Script(
    _COMMON
    + """
local now = now_ms()
for i = 2, #ARGV, 2 do redis.call('ZADD', KEYS[1], now + ARGV[i], ARGV[i + 1]) end
redis.pcall('SADD', KEYS[3], ARGV[1])
ring(KEYS[2])
return #ARGV / 2
"""
)
"""KEYS: delayed, bell, names. ARGV: queue, then delay in ms, member, … The bell tells a waiting consumer to look when
it is due."""

CLAIM = Script(
    _COMMON
    + """
local p, me, fence, left, bytes, one = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6] == '1'
local receipt, mode, names = tonumber(ARGV[7]), ARGV[8], {}
local mine = p .. 'm:' .. me
if redis.call('HGET', mine, '') ~= fence then return redis.error_reply('LOST lease') end
if mode == 'few' then
  for i = 9, #ARGV, 2 do names[#names + 1] = {ARGV[i + 1], ARGV[i]} end
else
  local found = redis.call('ZINTER', 2, p .. 'n', p .. 's:' .. me, 'WEIGHTS', 0, 1, 'WITHSCORES')
  local turn, seed = tonumber(ARGV[9]), tonumber(ARGV[10])
  math.randomseed(seed)
  for i = 1, #found, 2 do
    local score = tonumber(found[i + 1])
    if mode == 'weighted' then score = -math.pow(math.random(), 1 / score)
    elseif mode == 'fair' and score < turn then score = score + 1e9 end
    names[#names + 1] = {found[i], nil, score}
  end
  table.sort(names, function(a, b) return a[3] < b[3] end)
end
local now, answer, next_due, trouble, blocked = now_ms(), {-1, '', 0}, -1, '', 0
for q = 1, #names do
  if left <= 0 then break end
  local name = names[q][1]
  local number = names[q][2] or redis.call('HGET', mine, 'q:' .. name)
  local delayed, lists = p .. 'd:' .. name, p .. 'q:' .. name .. ':'
  local first = redis.pcall('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if first.err then trouble = delayed end
  if first[2] and tonumber(first[2]) <= now then
    promote(p, name, now)
    first = redis.call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  end
  if first[2] then
    local wait = math.max(0, tonumber(first[2]) - now)
    if next_due < 0 or wait < next_due then next_due = wait end
  end
  local taken, count = {}, 0
  for priority = 9, 0, -1 do
    if left <= 0 then break end
    local got = redis.pcall('LPOP', lists .. priority, left)
    if got and got.err then
      trouble = lists .. priority
    elseif got then
      local keep = #got
      for i = 1, #got do
        local frame = got[i]
        if string.byte(frame, 2) ~= priority then frame = framed(frame, priority) end
        bytes = bytes - (#frame - 2)
        if bytes < 0 and not one then
          keep = i - 1
          blocked = 1
          break
        end
        one = false
        count = count + 1
        taken[count] = frame
      end
      left = left - keep
      if keep < #got then
        for i = #got, keep + 1, -1 do redis.call('LPUSH', lists .. priority, got[i]) end
        left = 0
      end
    end
  end
  if count > 0 then
    local pairs_, n = {}, 0
    for i = 1, count do
      pairs_[n + 1] = receipt + i - 1
      pairs_[n + 2] = taken[i]
      n = n + 2
    end
    local held = p .. 'i:' .. me .. ':' .. number
    chunks(pairs_, 4000, function(...) redis.call('HSET', held, ...) end)
    answer[#answer + 1] = tonumber(number)
    answer[#answer + 1] = receipt
    answer[#answer + 1] = taken
    receipt = receipt + count
  end
  if left > 0 then
    -- all its lists are empty
    redis.call('DEL', p .. 'b:' .. name)
    if not first[2] then redis.call('SREM', p .. 'n', name) end
  else
    ring(p .. 'b:' .. name)
  end
end
answer[1] = next_due
answer[2] = trouble
answer[3] = blocked
return answer
"""
)
"""ARGV: prefix, consumer, its spoilt claims, limit, bytes, 1 where a first message may be of any size, first receipt,
then either ``few`` with number and name of each queue, or ``strict``, ``weighted`` or ``fair`` with the position to
begin at and a seed. Returns the ms until the next delayed message is due (-1: none), the name of a key of another
type or nothing, 1 where the next message is too large for the bytes, then number, first receipt and frames per
queue."""

SETTLE = Script(
    _COMMON
    + PUT_LUA
    + PUSH_LUA
    + """
local me, p, batch, at, now = ARGV[1], ARGV[2], cmsgpack.unpack(ARGV[3]), 4, nil
if not redis.call('ZSCORE', KEYS[1], me) then return redis.error_reply('LOST lease') end
local records, ttls, publish, follow, acks, back = batch[1], batch[2], batch[3], batch[4], batch[5], batch[6]
for i = 1, #follow, 5 do
  local delayed = follow[i + 2] > 0
  local key = delayed and (p .. 'd:' .. follow[i]) or (p .. 'q:' .. follow[i] .. ':' .. follow[i + 1])
  local kind = redis.call('TYPE', key).ok
  if kind ~= 'none' and kind ~= (delayed and 'zset' or 'list') then
    return redis.error_reply('WRONGTYPE ' .. key .. ' is a ' .. kind .. '; it is in the way of messages, delete it')
  end
end
redis.call('ZREM', KEYS[1], '')
for i = 1, #records do put(records[i], ARGV[at + i - 1], ttls[i]) end
at = at + #records
local heads = at
at = at + #publish / 3
for i = 1, #follow, 5 do
  local queue, priority, delay, frame = follow[i], follow[i + 1], follow[i + 2], ARGV[at]
  at = at + 1
  if redis.call('HEXISTS', p .. 'i:' .. me .. ':' .. follow[i + 3], follow[i + 4]) == 1 then
    if delay > 0 then
      now = now or now_ms()
      redis.call('ZADD', p .. 'd:' .. queue, now + delay, frame)
    else
      redis.call('RPUSH', p .. 'q:' .. queue .. ':' .. priority, frame)
    end
    redis.call('SADD', p .. 'n', queue)
    ring(p .. 'b:' .. queue)
  end
end
for i = 1, #acks, 2 do
  local key = p .. 'i:' .. me .. ':' .. acks[i]
  chunks(acks[i + 1], 4000, function(...) redis.call('HDEL', key, ...) end)
end
local trouble = nil
for i = #back, 1, -6 do
  local n, queue, receipt, counted, delay, uid = back[i-5], back[i-4], back[i-3], back[i-2], back[i-1], back[i]
  local key = p .. 'i:' .. me .. ':' .. n
  local frame = redis.call('HGET', key, receipt)
  if frame then
    local again, done = string.char(math.min(255, string.byte(frame, 1) + counted)) .. string.sub(frame, 2), nil
    if delay > 0 then
      now = now or now_ms()
      done = redis.pcall('ZADD', p .. 'd:' .. queue, now + delay, uid .. again)
    else
      done = redis.pcall('LPUSH', p .. 'q:' .. queue .. ':' .. string.byte(frame, 2), again)
    end
    if type(done) == 'number' then
      redis.call('HDEL', key, receipt)
      redis.call('SADD', p .. 'n', queue)
      ring(p .. 'b:' .. queue)
    else
      trouble = 'WRONGTYPE a key of queue ' .. queue .. ' is of another type; it is in the way of messages, delete it'
    end
  end
end
for i = 1, #publish, 3 do
  local first = publish[i + 1]
  -- the values begin at the fourth argument
  push(publish[i], first > 0 and first + 3 or 0, publish[i + 2] + 3, ARGV[heads + (i - 1) / 3])
end
if trouble then return redis.error_reply(trouble) end
return 1
"""
)
"""KEYS: consumers. ARGV: consumer, prefix, batch in MessagePack, blobs. The batch: keys of records, their times to live
in ms, pushes (channel, first and last of the values that go there after its head, 0 for none, …), follow-ups (queue,
priority, delay in ms, number of the queue and receipt that they follow, …), acknowledged (queue number, receipts, …),
handed back (queue number, queue, receipt, counted, delay in ms, eight characters, …). The blobs: values of the records,
heads of the pushes, frames of the follow-ups. Repeating it does nothing twice."""

_GIVE_BACK = """
local function give_back(p, cid, counted, from)
  local queues, total, stuck = redis.call('HGETALL', p .. 'm:' .. cid), 0, false
  for i = 1, #queues, 2 do
    if tonumber(queues[i]) then
      local key, queue = p .. 'i:' .. cid .. ':' .. queues[i], queues[i + 1]
      local receipts = {}
      for _, receipt in ipairs(redis.call('HKEYS', key)) do
        if tonumber(receipt) >= from then receipts[#receipts + 1] = receipt end
      end
      table.sort(receipts, function(a, b) return tonumber(a) > tonumber(b) end)
      for j = 1, #receipts do
        local frame = redis.call('HGET', key, receipts[j])
        redis.call('HDEL', key, receipts[j])
        local count = math.min(255, string.byte(frame, 1) + counted)
        local list = p .. 'q:' .. queue .. ':' .. string.byte(frame, 2)
        local done = redis.pcall('LPUSH', list, string.char(count) .. string.sub(frame, 2))
        if type(done) ~= 'number' then
          redis.call('HSET', key, receipts[j], frame)
          stuck = true
        end
      end
      if #receipts > 0 then
        total = total + #receipts
        redis.call('SADD', p .. 'n', queue)
        ring(p .. 'b:' .. queue)
      end
    end
  end
  return total, stuck
end
local function bury(p, cid, counted)
  local total, stuck = give_back(p, cid, counted, 0)
  redis.call('DEL', p .. 'w:' .. cid, p .. 's:' .. cid)
  redis.call('ZREM', p .. 'c', cid)
  if stuck then
    -- a key of another type is in the way: somebody tries again later
    redis.call('HDEL', p .. 'm:' .. cid, '')
    redis.call('ZADD', p .. 'c', now_ms() + 10000, cid)
  else
    redis.call('DEL', p .. 'm:' .. cid)
  end
  return total
end
"""

SUBSCRIBE = Script(
    _COMMON
    + _GIVE_BACK
    + """
local p, me, fence, spoilt, lease, many = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local mine = p .. 'm:' .. me
redis.call('ZREM', KEYS[1], '')
if lease > 0 then
  redis.call('ZADD', KEYS[1], now_ms() + lease, me)
elseif not redis.call('ZSCORE', KEYS[1], me) or redis.call('HEXISTS', mine, '') == 0 then
  return redis.error_reply('LOST lease')
end
-- a script of a connection that broke may arrive late, when its work has been done again
local known = tonumber(redis.call('HGET', mine, '') or '-1')
if tonumber(fence) < known then return 0 end
redis.call('HSET', mine, '', fence)
if spoilt > 0 and tonumber(fence) > known then give_back(p, me, 0, spoilt) end
redis.call('DEL', p .. 's:' .. me)
for i = 7, #ARGV, 3 do
  local number, name, score = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  redis.call('HSET', mine, number, name)
  if many == '1' then
    redis.call('HSET', mine, 'q:' .. name, number)
    if score ~= '' then redis.call('ZADD', p .. 's:' .. me, score, name) end
  end
end
return 1
"""
)
"""KEYS: consumers. ARGV: prefix, consumer, its spoilt claims, the first receipt to hand back or 0, lease in ms to enter
with or 0 where it must be there, 1 for many queues, then number, name and score of each queue (no score: not
subscribed)."""

BEAT = Script(
    _COMMON
    + """
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then return 0 end
redis.call('ZREM', KEYS[1], '')
redis.call('ZADD', KEYS[1], now_ms() + ARGV[2], ARGV[1])
return 1
"""
)
"""KEYS: consumers. ARGV: consumer, lease in ms. Returns 0 where the lease is lost."""

CLOSE = Script(_COMMON + _GIVE_BACK + "redis.call('ZREM', KEYS[1], '') return bury(ARGV[2], ARGV[1], 0)")
"""KEYS: consumers. ARGV: consumer, prefix. Hands back what it holds, in order, uncounted."""

REAP = Script(
    _COMMON
    + _GIVE_BACK
    + f"""
local p = ARGV[1]
local dead = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms(), 'LIMIT', 0, {REAPED_AT_ONCE})
for i = 1, #dead do
  redis.call('ZREM', KEYS[1], '')
  bury(p, dead[i], 1)
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
return {{#dead, first[2] and math.max(0, tonumber(first[2]) - now_ms()) or -1}}
"""
)
"""KEYS: consumers. ARGV: prefix. Gives back what dead consumers hold, counted; returns how many died, and the ms until
the next lease ends (-1: nobody's)."""

PROMOTE = Script(
    _COMMON
    + """
local count = promote(ARGV[1], ARGV[2], now_ms())
if count > 0 then ring(ARGV[1] .. 'b:' .. ARGV[2]) end
return count
"""
)
"""ARGV: prefix, queue. Makes ready what is due; used before looking."""

STATS = Script(
    _COMMON
    + """
local p, now, held, out = ARGV[1], now_ms(), {}, {}
for i = 2, #ARGV do held[ARGV[i]] = 0 end
for _, cid in ipairs(redis.call('ZRANGE', p .. 'c', 0, -1)) do
  local queues = redis.call('HGETALL', p .. 'm:' .. cid)
  for i = 1, #queues, 2 do
    local name = queues[i + 1]
    if held[name] and tonumber(queues[i]) then
      held[name] = held[name] + redis.call('HLEN', p .. 'i:' .. cid .. ':' .. queues[i])
    end
  end
end
for i = 2, #ARGV do
  local name, waiting = ARGV[i], 0
  for priority = 0, 9 do
    local size = redis.pcall('LLEN', p .. 'q:' .. name .. ':' .. priority)
    if type(size) == 'number' then waiting = waiting + size end
  end
  local delayed, due = redis.pcall('ZCARD', p .. 'd:' .. name), 0
  if type(delayed) ~= 'number' then
    delayed = 0
  elseif delayed > 0 then
    due = redis.call('ZCOUNT', p .. 'd:' .. name, '-inf', now)
  end
  local known = waiting + delayed + held[name] > 0 or redis.call('SISMEMBER', p .. 'queues', name) == 1
  out[#out + 1] = known and 1 or 0
  out[#out + 1] = waiting + due
  out[#out + 1] = held[name]
  out[#out + 1] = delayed - due
end
return out
"""
)
"""ARGV: prefix, queues. Returns per queue whether it is known, and how many messages are ready, held and delayed."""

PURGE = Script(
    """
local p, name, count = ARGV[1], ARGV[2], 0
for priority = 0, 9 do
  local key = p .. 'q:' .. name .. ':' .. priority
  local size = redis.pcall('LLEN', key)
  if type(size) == 'number' then count = count + size end
  redis.call('UNLINK', key)
end
local delayed = redis.pcall('ZCARD', p .. 'd:' .. name)
if type(delayed) == 'number' then count = count + delayed end
redis.call('UNLINK', p .. 'd:' .. name, p .. 'b:' .. name)
redis.call('SREM', p .. 'n', name)
return count
"""
)
"""ARGV: prefix, queue. Drops what is ready or delayed, keys of another type too; returns how many messages."""


def on_cluster(script: Script) -> Script:
    """Return the script for a cluster, where nobody can pop bells of several slots: ringing one publishes, too.

    The bell's key stays until somebody finds the queue empty, so that what is sent meanwhile publishes nothing.
    """
    return _ON_CLUSTER.get(script, script)


_ON_CLUSTER = {
    script: Script(script.text.replace(_RUNG, f"{_RUNG}\nredis.call('SPUBLISH', bell, '')"))
    for script in list(globals().values())
    if isinstance(script, Script) and _RUNG in script.text
}

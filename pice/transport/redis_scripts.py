"""What Redis does as one change for the queue: each script touches one shard of one topic.

All but `PUBLISH` may run when the memory is full, because they are what frees it. Times are milliseconds of Redis's
own clock. A group's consumer `released` owns what nobody works on: the ids in the sorted set `released`, by the time
from which they may be taken. XAUTOCLAIM goes by idle time and cannot tell the dead from the slow, so what the dead
hold is found by consumer and claimed by id.
"""

from pice.redis_client import Script

_FREEING = "#!lua flags=allow-oom\n"
_NOW = """
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
_RING = """
local function ring(bell) redis.call('XADD', bell, 'MAXLEN', 1, '*', 'rung', 1) end
"""
_HAND_BACK = """
local function hand_back(stream, released, group, id, count, due_ms)
  redis.call('XCLAIM', stream, group, 'released', 0, id, 'RETRYCOUNT', count, 'JUSTID')
  redis.call('ZADD', released, due_ms, id)
end
local function held(stream, group, first, last, max, consumer)
  local pending = redis.pcall('XPENDING', stream, group, first, last, max, consumer)
  return pending.err and {} or pending
end
"""

PUBLISH = Script("""#!lua
-- KEYS stream asleep bell; ARGV limit, then the fields: the id, or nil when the stream is at its limit
-- A site may publish, and need not be able to delete what others did (docs/redis-acl.md): GETDEL takes a stream from
-- nobody, and where `asleep` is no string all the same the bell is rung.
if redis.call('XLEN', KEYS[1]) >= tonumber(ARGV[1]) then return false end
local id = redis.call('XADD', KEYS[1], '*', unpack(ARGV, 2))
if redis.pcall('GETDEL', KEYS[2]) then redis.call('XADD', KEYS[3], 'MAXLEN', 1, '*', 'rung', 1) end
return id
""")

JOIN = Script(
    _FREEING
    + """
-- KEYS stream alive; ARGV group, alive ms: makes the group where it is missing
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if made.err and not string.find(made.err, 'BUSYGROUP') then return made end
redis.call('SET', KEYS[2], 1, 'PX', ARGV[2])
"""
)

TAKE = Script(
    _FREEING
    + _NOW
    + """
-- KEYS stream released asleep; ARGV group, consumer, count
-- {{id, deliveries, fields}...} and the ms until more may be due (-1: none); nil when the group is gone
local stream, released, group, consumer, count = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local now, taken = now_ms(), {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', released, '-inf', now, 'LIMIT', 0, count)) do
  local claimed = redis.pcall('XCLAIM', stream, group, consumer, 0, id)
  if claimed.err then return false end
  redis.call('ZREM', released, id)
  if #claimed == 1 then
    local pending = redis.call('XPENDING', stream, group, id, id, 1)
    table.insert(taken, {id, pending[1][4], claimed[1][2]})
  end
end
if #taken < count then
  local read = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count - #taken, 'STREAMS', stream, '>')
  if read and read.err then return false end
  for _, entry in ipairs(read and read[1][2] or {}) do table.insert(taken, {entry[1], 1, entry[2]}) end
end
if #taken < count then redis.call('SET', KEYS[3], 1) end
local first = redis.call('ZRANGE', released, 0, 0, 'WITHSCORES')
return {taken, first[2] and math.max(0, tonumber(first[2]) - now) or -1}
"""
)

ACK = Script(
    _FREEING
    + """
-- KEYS stream; ARGV group, id: deletes the message once no other group has still to do it
local function is_read(last, id)
  local last_ms, last_seq = string.match(last, '(%d+)-(%d+)')
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  if last_ms == ms then return tonumber(last_seq) >= tonumber(seq) end
  return tonumber(last_ms) > tonumber(ms)
end
local stream, id = KEYS[1], ARGV[2]
if redis.call('XACK', stream, ARGV[1], id) == 0 then return 0 end
for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local facts = {}
  for i = 1, #group, 2 do facts[group[i]] = group[i + 1] end
  if not is_read(facts['last-delivered-id'], id) then return 1 end
  if #redis.call('XPENDING', stream, facts['name'], id, id, 1) > 0 then return 1 end
end
redis.call('XDEL', stream, id)
return 1
"""
)

RELEASE = Script(
    _FREEING
    + _NOW
    + _RING
    + _HAND_BACK
    + """
-- KEYS stream released bell; ARGV group, consumer, id, deliveries, delay ms
if #held(KEYS[1], ARGV[1], ARGV[3], ARGV[3], 1, ARGV[2]) == 0 then return 0 end
hand_back(KEYS[1], KEYS[2], ARGV[1], ARGV[3], ARGV[4], now_ms() + tonumber(ARGV[5]))
ring(KEYS[3])
return 1
"""
)

KEEP = Script(
    _FREEING
    + _RING
    + _HAND_BACK
    + """
-- KEYS stream released bell; ARGV group, consumer, ids: what it holds but these goes back, as if never delivered
local kept = {}
for i = 3, #ARGV do kept[ARGV[i]] = true end
for _, entry in ipairs(held(KEYS[1], ARGV[1], '-', '+', 100000, ARGV[2])) do
  if not kept[entry[1]] then hand_back(KEYS[1], KEYS[2], ARGV[1], entry[1], entry[4] - 1, 0) end
end
ring(KEYS[3])
"""
)

_PART = """
local function part(stream, released, bell, group, consumer)
  for _, entry in ipairs(held(stream, group, '-', '+', 100000, consumer)) do
    hand_back(stream, released, group, entry[1], entry[4], 0)
  end
  redis.pcall('XGROUP', 'DELCONSUMER', stream, group, consumer)
  ring(bell)
end
"""

BEAT = Script(
    _FREEING
    + _RING
    + _HAND_BACK
    + _PART
    + """
-- KEYS stream released bell alive; ARGV group, alive ms, start of the keys of the living, whether to part the dead
redis.call('SET', KEYS[4], 1, 'PX', ARGV[2])
if ARGV[4] == '0' then return end
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
for _, consumer in ipairs(consumers.err and {} or consumers) do
  local name = consumer[2]
  if name ~= 'released' and redis.call('EXISTS', ARGV[3] .. name) == 0 then
    part(KEYS[1], KEYS[2], KEYS[3], ARGV[1], name)
  end
end
"""
)

LEAVE = Script(
    _FREEING
    + _RING
    + _HAND_BACK
    + _PART
    + """
-- KEYS stream released bell alive; ARGV group, consumer
redis.call('DEL', KEYS[4])
part(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2])
"""
)

"""What Redis does as one change for the registry. Times are its own clock's, in seconds.

A site's hash keeps its token after the site was removed: tokens of one name grow for ever. A lease that has more than
twice its length left is none: the clock was set back. Nothing but `REGISTER` is refused for want of memory: a site must
stay known and served while Redis is full.
"""

from pice.redis_client import Script

_SHARED = """
local function now()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
local function seconds(value)
  return string.format('%.6f', value)
end
local function holder_of(site)
  local held = redis.call('HMGET', site, 'holder', 'until', 'lease')
  local left = (tonumber(held[2]) or 0) - now()
  if not held[1] or held[1] == '' or left <= 0 or left > 2 * (tonumber(held[3]) or 0) then return '', 0 end
  return held[1], left
end
local function hold(site, lease)
  redis.call('HSET', site, 'until', seconds(now() + lease), 'lease', lease)
end
local function whole(value, otherwise)
  return string.format('%d', tonumber(value) or otherwise)
end
local function is_latest(site, token)
  local known = redis.call('HMGET', site, 'pool', 'holder', 'token')
  return known[1] and known[2] and known[2] ~= '' and known[3] == token
end
"""


def _script(body: str) -> Script:
    return Script(f"#!lua flags=allow-oom\n{_SHARED}{body}")


REGISTER = Script("""#!lua
local known = redis.call('HMGET', KEYS[1], 'pool', 'partition')
if known[1] then return known end
local partition = 0
while redis.call('HEXISTS', KEYS[2], partition) == 1 do partition = partition + 1 end
redis.call('HSET', KEYS[2], partition, ARGV[1])
redis.call('HSET', KEYS[1], 'pool', ARGV[2], 'partition', partition)
redis.call('SADD', KEYS[3], ARGV[1])
return {ARGV[2], tostring(partition)}
""")
"""KEYS site, pool, names; name, pool -> its pool and partition."""

ACQUIRE = _script("""
if redis.call('HEXISTS', KEYS[1], 'pool') == 0 then return false end
local holder = holder_of(KEYS[1])
if holder ~= '' and holder ~= ARGV[1] then return false end
redis.call('HSET', KEYS[1], 'holder', ARGV[1])
hold(KEYS[1], ARGV[2])
return redis.call('HINCRBY', KEYS[1], 'token', 1)
""")
"""KEYS site; holder, lease -> token, or nil."""

RENEW = _script("""
if not is_latest(KEYS[1], ARGV[1]) then return 'lost' end
hold(KEYS[1], ARGV[2])
return redis.call('HGET', KEYS[1], 'draining') == '1' and 'draining' or 'held'
""")
"""KEYS site; token, lease -> a value of `Hold`."""

RELEASE = _script("""
if is_latest(KEYS[1], ARGV[1]) then redis.call('HSET', KEYS[1], 'holder', '') end
""")
"""KEYS site; token."""

DRAIN = _script("""
if redis.call('HEXISTS', KEYS[1], 'pool') == 0 then return 0 end
redis.call('HSET', KEYS[1], 'draining', ARGV[1])
return 1
""")
"""KEYS site; 0 or 1 -> 0 where there is none."""

REMOVE = _script("""
local holder = holder_of(KEYS[1])
if holder ~= '' then return {0, holder} end
local known = redis.call('HMGET', KEYS[1], 'pool', 'partition')
if not known[1] then return {0, ''} end
local pool = ARGV[2] .. known[1]
if redis.call('HGET', pool, known[2] or '') == ARGV[1] then redis.call('HDEL', pool, known[2]) end
redis.call('HDEL', KEYS[1], 'pool', 'partition', 'draining', 'holder', 'until', 'lease')
redis.call('SREM', KEYS[2], ARGV[1])
return {1, ''}
""")
"""KEYS site, names; name, pool key without its pool -> whether it was there; who holds it."""

SITES = _script("""
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local site = ARGV[1] .. name
  local known = redis.call('HMGET', site, 'pool', 'partition', 'draining', 'token')
  local holder, left = holder_of(site)
  if known[1] then
    table.insert(found, {name, known[1], whole(known[2], -1), known[3], holder, whole(known[4], 0), seconds(left)})
  end
end
return found
""")
"""KEYS names; site key without its name -> name, pool, partition, draining, holder, token, seconds left of each."""

"""What Redis runs as one change each. Times are its own clock's, in seconds.

KEYS of a request's scripts are those of `Shard.keys`: record, events, due, news, wake. A record is a hash of

    request opened deadline attempt begun    as of `pice.core.Record`
    plan  sealed sketch num_segments ...     of the current attempt
    s:INDEX                                  a segment
    p:INDEX:NAME                             a placement at the site and model NAME, after its number
    n:INDEX                                  how many placements there are
    c:INDEX:NAME                             a candidate of that site and model, after its number
    x:INDEX                                  the choice
    next                                     the number of the latest placement or candidate
    closed outcome                           when and how it ended

Redis refuses a script as a whole when its memory is full, except those that let requests end.
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
local function milliseconds(value)
  return string.format('%.0f', value * 1000)
end
local function keep_until(key, at)
  if redis.call('PEXPIRETIME', key) < at * 1000 then
    redis.call('PEXPIREAT', key, milliseconds(at))
  end
end
local function is_open(attempt)
  local known = redis.call('HMGET', KEYS[1], 'attempt', 'closed')
  return known[1] and not known[2] and (attempt == '' or attempt == known[1])
end
local function set_due(id, at)
  redis.call('ZADD', KEYS[3], seconds(at), id)
  if at <= now() + 0.5 and redis.call('LLEN', KEYS[5]) == 0 then
    redis.call('RPUSH', KEYS[5], '1')
    redis.call('PEXPIRE', KEYS[5], 60000)
  end
end
local function tell(id, attempt, index)
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', 1024, '*', 'id', id, 'attempt', attempt, 'index', index)
  redis.call('PEXPIRE', KEYS[4], 600000)
end
local function add_event(name, value, max_events)
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', max_events, '*', name, value)
  if redis.call('PTTL', KEYS[2]) < 0 then
    redis.call('PEXPIREAT', KEYS[2], redis.call('PEXPIRETIME', KEYS[1]))
  end
end
local function numbered(value)
  return string.format('%010d', redis.call('HINCRBY', KEYS[1], 'next', 1)) .. value
end
"""


def _script(body: str) -> Script:
    return Script(f"#!lua\n{_SHARED}{body}")


def _ending(body: str) -> Script:
    """A script that may take the little it needs of a full memory, since it lets memory be freed."""
    return Script(f"#!lua flags=allow-oom\n{_SHARED}{body}")


RESERVE = _script("""
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', seconds(now()))
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  if redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then return 0 end
  redis.call('ZADD', KEYS[1], seconds(now() + ARGV[3]), ARGV[1])
  keep_until(KEYS[1], now() + ARGV[3])
end
return 1
""")
"""KEYS open; id, most that may be open, seconds after which it counts no more -> 0 when too many are."""

OPEN = _script("""
if is_open('') then return 'open' end
if redis.call('EXISTS', KEYS[1]) == 1 then return 'ended' end
local at = now()
local deadline = at + ARGV[3]
redis.call('HSET', KEYS[1], 'request', ARGV[2], 'opened', seconds(at), 'deadline', seconds(deadline), 'attempt', 0)
redis.call('PEXPIREAT', KEYS[1], milliseconds(deadline + ARGV[4]))
set_due(ARGV[1], deadline)
keep_until(KEYS[3], deadline + ARGV[4])
return 'opened'
""")
"""id, request, timeout, seconds it is kept after its deadline -> opened, or how it was: open or ended."""

BEGIN = _script("""
local old = redis.call('HMGET', KEYS[1], 'attempt', 'closed', 'sealed', 'request', 'opened', 'deadline', 'begun')
if not old[1] or old[2] or old[3] then return {} end
local expires = redis.call('PEXPIRETIME', KEYS[1])
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'attempt', string.format('%d', old[1] + 1), 'request', old[4], 'opened', old[5],
  'deadline', old[6], 'begun', old[7] or seconds(now()))
redis.call('PEXPIREAT', KEYS[1], expires)
if old[1] ~= '0' then tell(ARGV[1], old[1], '') end
return redis.call('HGETALL', KEYS[1])
""")
"""id -> fields of the record, none when there is nothing to begin."""

PLANNED = _script("""
if not is_open(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'plan', ARGV[2])
return 1
""")
"""attempt, plan."""

PLACE = _script("""
if not is_open(ARGV[1]) then return 0 end
redis.call('HSETNX', KEYS[1], 's:' .. ARGV[2], ARGV[3])
local name = 'p:' .. ARGV[2] .. ':' .. ARGV[4]
if redis.call('HEXISTS', KEYS[1], 'x:' .. ARGV[2]) == 1 or redis.call('HEXISTS', KEYS[1], name) == 1 then return 0 end
redis.call('HSET', KEYS[1], name, numbered(ARGV[5]))
redis.call('HINCRBY', KEYS[1], 'n:' .. ARGV[2], 1)
return 1
""")
"""attempt, index, segment, name, placement."""

UNPLACE = _ending("""
local name = 'p:' .. ARGV[2] .. ':' .. ARGV[3]
local known = is_open(ARGV[1]) and redis.call('HGET', KEYS[1], name)
if not known or string.sub(known, 11) ~= ARGV[4] then return 0 end
redis.call('HDEL', KEYS[1], name)
redis.call('HINCRBY', KEYS[1], 'n:' .. ARGV[2], -1)
return 1
""")
"""attempt, index, name, placement."""

SEAL = _script("""
if not is_open(ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'sealed', seconds(now()), unpack(ARGV, 3))
set_due(ARGV[1], now())
return 1
""")
"""id, attempt, then fields and values."""

ADD_CANDIDATE = _script("""
if not is_open(ARGV[1]) or redis.call('HEXISTS', KEYS[1], 's:' .. ARGV[2]) == 0 then return 'stale' end
local rest = ARGV[2] .. ':' .. ARGV[3]
if redis.call('HEXISTS', KEYS[1], 'p:' .. rest) == 0 then return 'foreign' end
if redis.call('HEXISTS', KEYS[1], 'c:' .. rest) == 1 then return 'repeated' end
redis.call('HSET', KEYS[1], 'c:' .. rest, numbered(ARGV[4]))
return 'new'
""")
"""attempt, index, name, candidate -> a value of `Counted`."""

CHOOSE = _script("""
if not is_open(ARGV[2]) or redis.call('HEXISTS', KEYS[1], 's:' .. ARGV[3]) == 0 then return 0 end
if redis.call('HSETNX', KEYS[1], 'x:' .. ARGV[3], ARGV[4]) == 0 then return 0 end
if tonumber(redis.call('HGET', KEYS[1], 'n:' .. ARGV[3]) or 0) > 1 then tell(ARGV[1], ARGV[2], ARGV[3]) end
return 1
""")
"""id, attempt, index, span."""

CLOSE = _ending("""
if not is_open('') then return 'ended' end
if not is_open(ARGV[2]) then return 'fenced' end
local at = now()
local attempt = redis.call('HGET', KEYS[1], 'attempt')
redis.call('HSET', KEYS[1], 'closed', seconds(at), 'outcome', ARGV[3])
add_event('final', attempt .. ' ' .. seconds(at), ARGV[5])
redis.call('PEXPIREAT', KEYS[1], milliseconds(at + ARGV[4]))
redis.call('PEXPIREAT', KEYS[2], milliseconds(at + ARGV[4]))
redis.call('ZREM', KEYS[3], ARGV[1])
tell(ARGV[1], attempt, '')
return 'closed'
""")
"""id, attempt or nothing, outcome, seconds it is kept, most events -> closed, ended (or unknown) or fenced."""

EMIT = _script("""
if is_open(ARGV[1]) then add_event('event', ARGV[2], ARGV[3]) end
""")
"""attempt, event, most events."""

SET_DUE = _ending("""
if not is_open('') then return end
set_due(ARGV[1], math.min(ARGV[2], redis.call('HGET', KEYS[1], 'deadline')))
""")
"""id, time."""

TAKE = _ending("""
local taken = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', seconds(now()), 'LIMIT', 0, ARGV[3])) do
  local known = redis.call('HMGET', ARGV[1] .. id, 'attempt', 'closed')
  if known[1] and not known[2] then
    redis.call('ZADD', KEYS[1], seconds(now() + ARGV[2]), id)
    table.insert(taken, id)
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return taken
""")
"""KEYS due; record key without its id, lease, limit -> ids."""

HEARTBEAT = _script("""
local at = now()
for _, gone in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', seconds(at))) do
  redis.call('ZREM', KEYS[1], gone)
  redis.call('HDEL', KEYS[2], gone)
end
redis.call('ZADD', KEYS[1], seconds(at + ARGV[3]), ARGV[1])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
""")
"""KEYS alive, states; site, state, seconds until it is forgotten."""

SITES = _script("""
local alive = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. seconds(now()), '+inf')
if #alive == 0 then return {} end
return redis.call('HMGET', KEYS[2], unpack(alive))
""")
"""KEYS alive, states -> states."""

"""What Redis runs as one change each. Times are its own clock's, in seconds.

KEYS of a request's scripts are those of `Shard.keys`: record, wanted, events, due, news, wake. A record is a hash of

    request opened deadline attempt begun    as of `pice.core.Record`
    plan  sealed sketch num_segments ...     of the current attempt
    s:INDEX                                  a segment
    p:INDEX:NAME                             a placement at the site and model NAME, after its number
    n:INDEX                                  how many placements there are
    c:INDEX:NAME                             a candidate of that site and model, after its number
    x:INDEX                                  the choice
    next                                     the number of the latest placement or candidate
    closed outcome final                     when and how it ended, and which event says so

While a request is open, `wanted` has its attempt and a field x:INDEX for each segment with a choice. It is all that a
site may read (docs/redis-acl.md), and `EMIT` is given its name beside KEYS: Redis asks for the right to write whatever
is declared. A full Redis refuses a script as a whole, except those that let requests end or sites be known.
"""

from pice.redis_client import Script

_NAMED = "local record, wanted, events, due, news, wake = unpack(KEYS)\n"

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
  local known = redis.call('HMGET', record, 'attempt', 'closed')
  return known[1] and not known[2] and (attempt == '' or attempt == known[1])
end
local function set_due(id, at)
  redis.call('ZADD', due, seconds(at), id)
  if at <= now() + 0.5 and redis.call('LLEN', wake) == 0 then
    redis.call('RPUSH', wake, '1')
    redis.call('PEXPIRE', wake, 60000)
  end
end
local function tell(id, attempt, index)
  redis.call('XADD', news, 'MAXLEN', '~', 1024, '*', 'id', id, 'attempt', attempt, 'index', index)
  redis.call('PEXPIRE', news, 600000)
end
local function numbered(value)
  return string.format('%010d', redis.call('HINCRBY', record, 'next', 1)) .. value
end
"""


def _script(body: str) -> Script:
    return Script(f"#!lua\n{_NAMED}{_SHARED}{body}")


def _ending(body: str) -> Script:
    """A script that may take the little it needs of a full memory, since it lets memory be freed."""
    return Script(f"#!lua flags=allow-oom\n{_NAMED}{_SHARED}{body}")


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
if is_open('') then
  local known = redis.call('HMGET', record, 'attempt', 'request')
  return known[1] == '0' and known[2] == ARGV[2] and 'same' or 'open'
end
if redis.call('EXISTS', record) == 1 then return 'ended' end
local at = now()
local deadline = at + ARGV[3]
redis.call('HSET', record, 'request', ARGV[2], 'opened', seconds(at), 'deadline', seconds(deadline), 'attempt', 0)
redis.call('HSET', wanted, 'attempt', 0)
for _, key in ipairs({record, wanted}) do redis.call('PEXPIREAT', key, milliseconds(deadline + ARGV[4])) end
set_due(ARGV[1], deadline)
keep_until(due, deadline + ARGV[4])
return 'opened'
""")
"""id, request, timeout, seconds it is kept after its deadline -> opened, or how it was: open, ended, or the same, which
nobody has begun."""

BEGIN = _script("""
local old = redis.call('HMGET', record, 'attempt', 'closed', 'sealed', 'request', 'opened', 'deadline', 'begun')
if not old[1] or old[2] or old[3] then return {} end
local expires = redis.call('PEXPIRETIME', record)
local attempt = string.format('%d', old[1] + 1)
redis.call('DEL', record, wanted)
redis.call('HSET', record, 'attempt', attempt, 'request', old[4], 'opened', old[5], 'deadline', old[6],
  'begun', old[7] or seconds(now()))
redis.call('HSET', wanted, 'attempt', attempt)
for _, key in ipairs({record, wanted}) do redis.call('PEXPIREAT', key, expires) end
if old[1] ~= '0' then tell(ARGV[1], old[1], '') end
return redis.call('HGETALL', record)
""")
"""id -> fields of the record, none when there is nothing to begin."""

PLANNED = _script("""
if not is_open(ARGV[1]) then return 0 end
redis.call('HSET', record, 'plan', ARGV[2])
return 1
""")
"""attempt, plan."""

PLACE = _script("""
if not is_open(ARGV[1]) then return 0 end
redis.call('HSETNX', record, 's:' .. ARGV[2], ARGV[3])
if redis.call('HEXISTS', record, 'x:' .. ARGV[2]) == 1 then return 0 end
local name = 'p:' .. ARGV[2] .. ':' .. ARGV[4]
local known = redis.call('HGET', record, name)
if known then return string.sub(known, 11) == ARGV[5] and 1 or 0 end
redis.call('HSET', record, name, numbered(ARGV[5]))
redis.call('HINCRBY', record, 'n:' .. ARGV[2], 1)
return 1
""")
"""attempt, index, segment, name, placement."""

UNPLACE = _ending("""
local name = 'p:' .. ARGV[2] .. ':' .. ARGV[3]
local known = is_open(ARGV[1]) and redis.call('HGET', record, name)
if not known or string.sub(known, 11) ~= ARGV[4] then return 0 end
redis.call('HDEL', record, name)
redis.call('HINCRBY', record, 'n:' .. ARGV[2], -1)
return 1
""")
"""attempt, index, name, placement."""

SEAL = _script("""
if not is_open(ARGV[2]) then return 0 end
if redis.call('HSETNX', record, 'sealed', seconds(now())) == 0 then return 1 end
redis.call('HSET', record, unpack(ARGV, 3))
set_due(ARGV[1], now())
return 1
""")
"""id, attempt, then fields and values."""

ADD_CANDIDATE = _script("""
if not is_open(ARGV[1]) or redis.call('HEXISTS', record, 's:' .. ARGV[2]) == 0 then return {'stale'} end
local rest = ARGV[2] .. ':' .. ARGV[3]
if redis.call('HEXISTS', record, 'p:' .. rest) == 0 then return {'foreign'} end
local counted = redis.call('HEXISTS', record, 'c:' .. rest) == 1 and 'repeated' or 'new'
if counted == 'new' then redis.call('HSET', record, 'c:' .. rest, numbered(ARGV[4])) end
if counted == 'repeated' or redis.call('HGET', record, 'n:' .. ARGV[2]) ~= '1' then
  return {counted, redis.call('HGETALL', record)}
end
local names = {'request', 'opened', 'deadline', 'attempt', 'begun', 'plan', 'sealed', 'sketch', 'prompt_tokens',
  'output_tokens', 'cut', 'num_segments', 's:' .. ARGV[2], 'p:' .. rest, 'c:' .. rest, 'x:' .. ARGV[2]}
local fields = {}
for at, value in ipairs(redis.call('HMGET', record, unpack(names))) do
  if value then
    table.insert(fields, names[at])
    table.insert(fields, value)
  end
end
return {counted, fields}
""")
"""attempt, index, name, candidate -> a value of `Counted`, and if it counts the fields of the record: without those of
other segments where it is new and its segment was placed once."""

CHOOSE = _script("""
if not is_open(ARGV[2]) then return 'refused' end
local known = redis.call('HMGET', record, 's:' .. ARGV[3], 'x:' .. ARGV[3], 'n:' .. ARGV[3], 'num_segments')
if not known[1] or (known[2] and known[2] ~= ARGV[4]) then return 'refused' end
if not known[2] then
  redis.call('HSET', record, 'x:' .. ARGV[3], ARGV[4])
  redis.call('HSET', wanted, 'x:' .. ARGV[3], 1)
  redis.call('XADD', events, 'MAXLEN', '~', ARGV[6], '*', 'event', ARGV[5])
  redis.call('PEXPIREAT', events, redis.call('PEXPIRETIME', wanted))
  if tonumber(known[3] or 0) > 1 then tell(ARGV[1], ARGV[2], ARGV[3]) end
end
return redis.call('HLEN', wanted) - 1 == tonumber(known[4]) and 'last' or 'made'
""")
"""id, attempt, index, span, event, most events -> a value of `Chosen`."""

CLOSE = _ending("""
if not is_open('') then return 'ended' end
if not is_open(ARGV[2]) then return 'fenced' end
local at = now()
redis.call('HSET', record, 'closed', seconds(at), 'outcome', ARGV[3],
  'final', redis.call('XADD', events, 'MAXLEN', '~', ARGV[5], '*', 'final', 1))
redis.call('DEL', wanted)
redis.call('PEXPIREAT', record, milliseconds(at + ARGV[4]))
redis.call('PEXPIREAT', events, milliseconds(at + ARGV[4]))
redis.call('ZREM', due, ARGV[1])
tell(ARGV[1], redis.call('HGET', record, 'attempt'), '')
return 'closed'
""")
"""id, attempt or nothing, outcome, seconds it is kept, most events -> closed, ended (or unknown) or fenced."""

EMIT = _script("""
if redis.call('HGET', ARGV[1], 'attempt') ~= ARGV[2] then return end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'event', ARGV[3], unpack(ARGV, 5))
redis.call('PEXPIREAT', KEYS[1], redis.call('PEXPIRETIME', ARGV[1]))
""")
"""KEYS events; wanted, attempt, event, most events, then more fields."""

SET_DUE = _ending("""
if not is_open('') then return end
set_due(ARGV[1], math.min(ARGV[2], redis.call('HGET', record, 'deadline')))
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

HEARTBEAT = _ending("""
local token, latest = tonumber(ARGV[3]), tonumber(redis.call('HGET', KEYS[1], 'token') or 0)
if token > 0 and token < latest then return end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'until', seconds(now() + ARGV[4]), 'ttl', ARGV[4],
  'token', string.format('%d', math.max(token, latest)))
redis.call('PEXPIRE', KEYS[1], milliseconds(math.max(ARGV[4], 86400)))
redis.call('SADD', KEYS[2], ARGV[1])
""")
"""KEYS state, beating; site, state, token, seconds until it is forgotten. The token is kept for a day."""

SITES = _ending("""
local found = {}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  local known = redis.pcall('HMGET', ARGV[1] .. name, 'until', 'ttl', 'state')
  local left = (tonumber(known[1]) or 0) - now()
  if known.err then
    table.insert(found, {name, ''})
  elseif not known[1] then
    redis.call('SREM', KEYS[1], name)
  elseif left > 0 and left <= 2 * (tonumber(known[2]) or 0) then
    table.insert(found, {name, known[3] or ''})
  end
end
return found
""")
"""KEYS beating; state key without the site -> site and state of each that lives. One that would live for more than
twice its time is dead: the clock was set back. What is no heartbeat has no state."""

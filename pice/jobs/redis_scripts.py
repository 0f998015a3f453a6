"""What Redis runs as one change each. KEYS are a job and its results; times are Redis's own clock's, in seconds.

A job is a hash of `name`, `source`, `lines` and `created`; `sealed`, `ended` and `cancelled` once they have happened;
`answered` and `failed`, how many lines have such a result. Results are a hash by name, each after a `+` if it is an
answer, else `-`. Redis refuses a script as a whole when its memory is full, except those that read, or take next to
none.
"""

from pice.redis_client import Script

_SHARED = """
local function now()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end
local function keep(span)
  local milliseconds = string.format('%.0f', span * 1000)
  redis.call('PEXPIRE', KEYS[1], milliseconds)
  redis.call('PEXPIRE', KEYS[2], milliseconds)
end
"""


def _script(body: str, flags: str = "") -> Script:
    return Script(f"#!lua{flags}\n{_SHARED}{body}")


CREATE = _script("""
if redis.call('EXISTS', KEYS[1]) == 1 then return end
redis.call('HSET', KEYS[1], 'name', ARGV[2], 'source', ARGV[3], 'lines', ARGV[4], 'created', now())
keep(ARGV[1])
""")
"""seconds it is kept, name, source, lines."""

SEAL = _script(
    """
local known = redis.call('HMGET', KEYS[1], 'lines', 'cancelled')
if not known[1] or known[2] then return 0 end
if redis.call('HSETNX', KEYS[1], 'sealed', now()) == 1 then keep(ARGV[1]) end
return 1
""",
    " flags=allow-oom",
)
"""seconds it is kept."""

CANCEL = _script(
    """
local known = redis.call('HMGET', KEYS[1], 'lines', 'ended')
if not known[1] or known[2] then return 0 end
if redis.call('HSETNX', KEYS[1], 'cancelled', now()) == 1 then keep(ARGV[1]) end
return 1
""",
    " flags=allow-oom",
)
"""seconds it is kept."""

WANTED = _script(
    """
local known = redis.call('HMGET', KEYS[1], 'lines', 'ended', 'cancelled')
if not known[1] or known[2] or known[3] then return 0 end
return 1 - redis.call('HEXISTS', KEYS[2], ARGV[1])
""",
    " flags=no-writes",
)
"""name."""

ADD_RESULT = _script("""
local known = redis.call('HMGET', KEYS[1], 'lines', 'ended', 'cancelled')
if not known[1] or known[2] or known[3] then return 0 end
if redis.call('HSETNX', KEYS[2], ARGV[2], ARGV[3] .. ARGV[4]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[3] == '+' and 'answered' or 'failed', 1)
if redis.call('HLEN', KEYS[2]) >= tonumber(known[1]) then redis.call('HSET', KEYS[1], 'ended', now()) end
keep(ARGV[1])
return 1
""")
"""seconds it is kept, name, + or -, line."""

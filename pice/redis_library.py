"""What is used of the `redis` package. Nothing else imports it."""

from redis import exceptions as refusals
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.crc import key_slot

__all__ = ["BlockingConnectionPool", "ConnectionPool", "NoBackoff", "Redis", "Retry", "key_slot", "refusals"]

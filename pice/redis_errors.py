"""Errors of Redis and of its client, as ours."""

import asyncio
import re
from collections.abc import Generator
from contextlib import contextmanager

from pice.errors import ConfigError, DecodeError, Full, TransportError
from pice.redis_library import refusals

OLDEST = (7, 0)
_FULL_RETRY_S = 1.0
_NTH = r"""(?:^|caused error: \(?['"]?)"""
"""Where the words of Redis begin: of one command among several its client first says which."""
_IS_AWAY = re.compile(f"{_NTH}(?:LOADING|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MISCONF|NOREPLICAS|UNBLOCKED|BUSY)")
"""How Redis refuses what it may take later."""
_IS_SPENT = re.compile("exhausted the last possible ID|smaller than the target stream top item")
"""Of a stream to which somebody gave the last id there is: it takes nothing until an operator deletes it."""
_MOVES = re.compile("non local key")
"""What a script may meet in a slot that moves from node to node."""
_LATER = (_IS_AWAY, _IS_SPENT, _MOVES)
_MAY_NOT = re.compile(r"NOPERM|NOAUTH|The user executing the script|ACL failure in script")
"""How it refuses this user, within a script too."""
_UNKNOWN = re.compile(f"{_NTH}unknown (?:sub)?command", re.IGNORECASE)
_MOVING = (refusals.AskError, refusals.MovedError, refusals.TryAgainError, refusals.ClusterDownError)
"""Of a Cluster whose slots change hands, and of a replica without its primary."""
_SELECTS = "SELECT is not allowed in cluster mode"


class UnknownScript(TransportError):
    """The server does not know this script yet."""


@contextmanager
def mapped(address: str) -> Generator[None]:
    """Turns the errors of Redis into ours; what is left is a bug of ours and goes through.
    A cancellation stands, though asyncio.wait_for, with which connections are made, may lose one before Python 3.12.
    """
    task = asyncio.current_task()
    num_cancelled = task.cancelling() if task else 0
    try:
        yield
        if task and task.cancelling() > num_cancelled:
            raise asyncio.CancelledError
    except (refusals.AuthenticationError, refusals.AuthorizationError, refusals.NoPermissionError) as error:
        raise _refused(address, error) from error
    except refusals.OutOfMemoryError as error:
        raise Full(f"{address} is full: {error}", retry_after_s=_FULL_RETRY_S) from error
    except refusals.NoScriptError as error:
        raise UnknownScript(str(error)) from error
    except _MOVING as error:
        raise TransportError(f"{address} cannot serve now: {type(error).__name__}: {error}") from error
    except refusals.ResponseError as error:
        raise _answered(address, error) from None
    except (refusals.ConnectionError, refusals.TimeoutError, refusals.InvalidResponse, OSError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ConfigError(f"{address} shows a certificate we do not trust: {error}: check ca_file") from error
        raise TransportError(f"{address} does not answer: {error}") from error
    except RuntimeError as error:  # uvloop's word for a connection that broke as something was sent
        if "handler is closed" not in str(error):
            raise
        raise TransportError(f"{address} does not answer: the connection broke") from error


def _answered(address: str, error: refusals.ResponseError) -> Exception:
    """What a refusal means; the error itself where it is our own fault."""
    text = str(error)
    if _SELECTS in text:
        return ConfigError(f"{address} is of a Cluster, which has database 0 alone: expected redis://host:6379/0")
    if isinstance(error, refusals.ReadOnlyError) or any(it.search(text) for it in _LATER):
        return TransportError(f"{address} cannot serve now: {text}")
    if _MAY_NOT.search(text):
        return _refused(address, error)
    if _UNKNOWN.search(text):  # not shown: it quotes what was sent, and that may be a password
        return ConfigError(f"{address} lacks a command: expected Redis {OLDEST[0]}.{OLDEST[1]} or newer, all enabled")
    if "WRONGTYPE" in text:
        return DecodeError(f"{address} has something else under a key of ours; does another program use it? {text}")
    return error


def _refused(address: str, error: Exception) -> ConfigError:
    return ConfigError(f"{address} refuses us: {error}: check user, password and ACL")

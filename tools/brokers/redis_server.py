"""Redis from the system's packages."""

import socket
from pathlib import Path

from tools.brokers.program import Program, found

SETTINGS = {"save": "", "maxmemory-policy": "noeviction"}


def start_redis(folder: Path, port: int, *, keeps: bool = False) -> Program:
    """A Redis, once it answers: without anything on disk, or one that `keeps` in `folder` whatever it has confirmed.

    Raises:
        NoBrokers: there is no redis-server, or it does not start.
    """
    kept = {"appendonly": "yes", "appendfsync": "always"} if keeps else {"appendonly": "no"}
    settings = SETTINGS | kept | {"bind": "127.0.0.1", "port": str(port), "dir": str(folder)}
    command = [found("redis-server", "redis-server"), *as_words(settings)]
    program = Program("redis", command, folder)
    program.wait_until(lambda: answers(port))
    return program


def as_words(settings: dict[str, str]) -> list[str]:
    """Settings as the command line of redis-server."""
    return [word for name, value in settings.items() for word in (f"--{name}", value)]


def answers(port: int) -> bool:
    """Whether a Redis on loopback answers there."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False

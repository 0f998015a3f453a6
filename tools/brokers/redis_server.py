"""Redis from the system's packages."""

import socket
from pathlib import Path

from tools.brokers.program import Program, found


def start_redis(folder: Path, port: int, *, keeps: bool = False) -> Program:
    """A Redis, once it answers: without anything on disk, or one that `keeps` in `folder` whatever it has confirmed.

    Raises:
        NoBrokers: there is no redis-server, or it does not start.
    """
    command = [found("redis-server", "redis-server"), "--bind", "127.0.0.1", "--port", str(port)]
    settings = ("--save", "", "--maxmemory-policy", "noeviction", "--dir", str(folder))
    kept = ("--appendonly", "yes", "--appendfsync", "always") if keeps else ("--appendonly", "no")
    program = Program("redis", [*command, *settings, *kept], folder)
    program.wait_until(lambda: _answers(port))
    return program


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False

"""A Redis of a test's own, to be filled, stopped and started; and one that only says what it is."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tools.brokers.program import Program, free_port
from tools.brokers.redis_server import start_redis


class OwnRedis:
    """Runs on one port from `start` to `stop`, any number of times; empty after each start unless it `keeps`."""

    def __init__(self, folder: Path, *, keeps: bool = False) -> None:
        self._folder = folder
        self._keeps = keeps
        self._port = free_port()
        self._program: Program | None = None
        self.url = f"redis://127.0.0.1:{self._port}/0"

    async def start(self) -> None:
        self._program = await asyncio.to_thread(start_redis, self._folder, self._port, keeps=self._keeps)

    async def stop(self) -> None:
        """May be called twice."""
        if self._program:
            await asyncio.to_thread(self._program.stop)
            self._program = None


@asynccontextmanager
async def saying(info: str) -> AsyncIterator[str]:
    """The URL of a server that knows INFO, and takes all else."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await _command(reader):
            body = f"${len(info)}\r\n{info}\r\n" if words[0] == b"INFO" else "+OK\r\n"
            writer.write(body.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """The words of a command; none at the end."""
    head = await reader.readline()
    words = []
    for _ in range(int(head[1:] or 0)):
        length = int((await reader.readline())[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words

"""A TCP link that can be cut or stalled, between a site and a broker."""

import asyncio
from collections.abc import Awaitable, Callable

_CHUNK_BYTES = 1 << 16


class Link:
    """Passes on what comes to `port` of loopback to another port there. Made by `open_link`.

    Cut, it closes every connection and refuses new ones; stalled, it takes both and passes nothing on, until it is
    mended: then what was kept goes on its way, late.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port = port
        self.target = target
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._flows = asyncio.Event()
        self._flows.set()

    async def mend(self) -> None:
        """Ends `cut` and `stall`; opens the link at first."""
        self._flows.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """Nothing gets through, and both ends know."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def stall(self) -> None:
        """Nothing gets through, and nobody is told."""
        self._flows.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.ensure_future(self._connect(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)
        await asyncio.wait({connection})

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._flows.wait()
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            try:
                await _first_to_end(lambda: self._pass_on(reader, back), lambda: self._pass_on(there, writer))
            finally:
                back.transport.abort()
        except OSError:
            return
        finally:
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(_CHUNK_BYTES):
                await self._flows.wait()
                writer.write(chunk)
                await writer.drain()
        except OSError:
            return


async def _first_to_end(*works: Callable[[], Awaitable[None]]) -> None:
    tasks = [asyncio.ensure_future(work()) for work in works]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

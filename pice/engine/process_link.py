"""A socket between an engine's process and its parent: messages, each behind its length."""

import asyncio
import struct
from collections.abc import Callable, Iterator
from typing import cast

from pice.engine.process_wire import MAX_ANSWER_BYTES, MAX_MESSAGE_BYTES, Message, Side, unpacked
from pice.errors import DecodeError

_HEADER = struct.Struct("!I")


class Link(asyncio.Protocol):
    """One end of the socket.

    `take` is called with each message and may raise `DecodeError`; `lost` once, when the other end is gone or sent
    what is no message, which `problem` then says. All that is sent in one turn of the loop leaves in one write.
    """

    def __init__(self, side: Side, take: Callable[[Message], None], lost: Callable[[], None]) -> None:
        self._side: Side = side
        self._max_bytes = MAX_ANSWER_BYTES if side == "parent" else MAX_MESSAGE_BYTES
        self._take, self._lost = take, lost
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []
        self.problem = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        try:
            for payload in self._payloads():
                self._take(unpacked(payload, self._side))
        except DecodeError as error:
            self.problem = str(error)
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._lost()

    def send(self, payload: bytes) -> None:
        """Sends a message soon; drops it when the other end is gone."""
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing += (_HEADER.pack(len(payload)), payload)

    def close(self) -> None:
        self._transport.abort()

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()

    def _payloads(self) -> Iterator[bytes]:
        """Takes whole frames off what came."""
        incoming, size = self._incoming, _HEADER.size
        while len(incoming) >= size:
            (num_bytes,) = _HEADER.unpack_from(incoming)
            if num_bytes > self._max_bytes:
                raise DecodeError(f"expected a frame of at most {self._max_bytes} bytes, got one of {num_bytes}")
            if len(incoming) < size + num_bytes:
                return
            payload = bytes(incoming[size : size + num_bytes])
            del incoming[: size + num_bytes]
            yield payload

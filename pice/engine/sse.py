"""Server-sent events out of a byte stream, however it is cut (WHATWG HTML, section "Server-sent events")."""

import re

from pice.errors import EngineError

MAX_EVENT_BYTES = 1 << 20

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\r|\n")


class EventStream:
    """Collects bytes and gives the data of each event once its blank line is seen.

    Lines end in LF, CR LF or CR. Comments and fields other than `data` are skipped; an event without data is none.
    Bytes that are no UTF-8 become U+FFFD. What is unfinished when the stream ends was never an event.
    """

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []
        self._num_data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, block: bytes) -> list[str]:
        """The events that `block` completes.

        Raises:
            EngineError: a line or an event grew past `max_event_bytes`.
        """
        events: list[str] = []
        *ends, rest = _LINE_END.split(self._without_second_half(block))
        for end in ends:
            self._grow(end)
            events += self._end_line()
        self._grow(rest)
        return events

    def _without_second_half(self, block: bytes) -> bytes:
        """`block` less a LF that belongs to a CR already taken for a line's end."""
        if not block:
            return block
        if self._after_cr and block.startswith(b"\n"):
            block = block[1:]
        self._after_cr = block.endswith(b"\r")
        return block

    def _grow(self, part: bytes) -> None:
        self._line += part
        if len(self._line) + self._num_data_bytes > self._max_event_bytes:
            raise EngineError(
                f"an event of the stream is larger than {self._max_event_bytes} bytes: no model sends that"
            )

    def _end_line(self) -> list[str]:
        line = bytes(self._line)
        self._line.clear()
        if self._at_start:
            self._at_start = False
            line = line.removeprefix(_BOM)
        if not line:
            return self._end_event()
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
            self._num_data_bytes += len(value) + 1
        return []

    def _end_event(self) -> list[str]:
        data, self._data, self._num_data_bytes = self._data, [], 0
        return [b"\n".join(data).decode("utf-8", "replace")] if data else []

"""Log records -> lines on standard error, for people or for machines."""

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

from pice.node.context import request_id
from pice.service.printable import MAX_CHARS, printable

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_THIRD_PARTY = ("aiokafka", "httpcore", "httpx", "redis")
_QUIET_S = 30.0
_MAX_KEPT = 256


def set_up_logs(log_format: LogFormat, level: LogLevel, service: str) -> None:
    """Every record of this process from `level` on becomes a line on standard error, also what Python warns of. The
    clients of brokers and servers are heard from "warning" on, and with the same message every 30 s at most, since they
    tell of each try; but at "debug" in full."""
    lines = logging.StreamHandler(sys.stderr)
    lines.setFormatter(JsonLines(service) if log_format == "json" else TextLines())
    logging.basicConfig(level=level.upper(), handlers=[lines], force=True)
    logging.captureWarnings(capture=True)
    for name in _THIRD_PARTY:
        logging.getLogger(name).setLevel(logging.NOTSET if level == "debug" else logging.WARNING)
    if level != "debug":
        lines.addFilter(Sparing())


class Sparing(logging.Filter):
    """Stops what another package has said in the same words less than 30 s ago."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in _THIRD_PARTY:
            return True
        news = record.name, record.getMessage()
        if record.created < self._said.get(news, -_QUIET_S) + _QUIET_S:
            return False
        if len(self._said) >= _MAX_KEPT:
            self._said.clear()
        self._said[news] = record.created
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line: `time`, `level`, `logger`, `message`, `service`; `request_id` while one is served;
    `error` and `traceback` where there was an exception."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "service": self._service,
            "request_id": request_id.get(),
            "error": repr(error) if error else "",
            "traceback": _traceback(self, record),
        }
        return orjson.dumps({key: printable(text, kept="\n\t") for key, text in fields.items() if text}).decode()


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER [REQUEST] MESSAGE`, then the traceback of an exception on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        request = f"[{printable(request_id.get())}] " if request_id.get() else ""
        message = printable(record.getMessage())
        line = f"{_time(record)} {record.levelname:<7} {record.name} {request}{message}"
        traceback = printable(_traceback(self, record), kept="\n\t")
        return f"{line}\n{traceback}" if traceback else line


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Its end, where it is long: that says what happened."""
    return formatter.formatException(record.exc_info)[-MAX_CHARS:] if record.exc_info else ""

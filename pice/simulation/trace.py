"""Recorded traffic: when requests came, and how many tokens went in and out.

A trace is CSV, plain or gzipped, with the columns TIMESTAMP, ContextTokens and GeneratedTokens, as in Azure's public
traces (AzurePublicDataset). A time is seconds from any beginning, or a date and time of day.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pice.errors import InputError

_GZIP = b"\x1f\x8b"
_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
MOST_TOKENS, MOST_DAYS = 1_000_000, 31


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: seconds after the first, tokens of its prompt and of its answer."""

    at_s: float
    num_prompt_tokens: int
    num_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """All of a trace, in order. An answer of no token counts as one. Times without an offset are taken for UTC.

    Raises:
        InputError: the file cannot be read, a value is missing, is none or too large, times go back or span more than
            `MOST_DAYS`, or there are not two times; says in which line.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if data.startswith(_GZIP) else data).decode("utf-8-sig")
        found = list(_arrivals(text, path))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise InputError(f"{path}: cannot be read as a trace: {error}") from error
    if not found or found[-1].at_s == 0.0:
        raise InputError(f"{path}: expected requests at two times at least, got {len(found)} requests")
    return found


def _arrivals(text: str, path: Path) -> Iterator[Arrival]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
    if missing:
        raise InputError(f"{path}, line 1: expected the columns {', '.join(_COLUMNS)}; {', '.join(missing)} not there")
    first = latest = None
    for row in rows:
        place = f"{path}, line {rows.line_num}"
        now_s = _seconds(row["TIMESTAMP"], place)
        if latest is not None and now_s < latest:
            raise InputError(f"{place}: expected times in order, got {row['TIMESTAMP']} after a later one")
        first, latest = now_s if first is None else first, now_s
        if now_s - first > MOST_DAYS * 86_400:
            got = f"got {row['TIMESTAMP']} (are these milliseconds?)"
            raise InputError(f"{place}: expected at most {MOST_DAYS} days of traffic, {got}")
        prompt, written = (_count(row[name], name, place) for name in _COLUMNS[1:])
        yield Arrival(now_s - first, prompt, max(1, written))


def _seconds(stamp: str | None, place: str) -> float:
    """Of a number, or of a date and time of day."""
    text = (stamp or "").strip()
    try:
        return _finite(text)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise InputError(
            f"{place}: expected TIMESTAMP as seconds or like 2023-11-16 18:15:46.68, got {stamp!r}"
        ) from error
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("it is not finite")
    return value


def _count(text: str | None, name: str, place: str) -> int:
    value = int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not 0 <= value <= MOST_TOKENS:
        raise InputError(f"{place}: expected {name} as a number from 0 to {MOST_TOKENS}, got {text!r}")
    return value

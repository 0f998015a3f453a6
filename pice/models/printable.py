"""Text from a file or a server, made fit for a terminal: it must not steer it."""

import json
from pathlib import Path

import orjson

MAX_SHOWN = 120
MAX_PATH = 4096


def shown(text: str, most: int = MAX_SHOWN) -> str:
    """`text` on one line, at most `most` characters of it; what is not printable stands there as its escape."""
    cut = text[:most] + ("…" if len(text) > most else "")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in cut)


def shown_path(path: Path | str) -> str:
    return shown(str(path), MAX_PATH)


def json_text(value: object) -> str:
    """Indented JSON of dataclasses and plain values; what is not printable is escaped inside its strings."""
    data = orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS).decode()
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in data)

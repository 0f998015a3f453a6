"""What goes wrong on the way from the hub, as an error that says what to do."""

import errno
from collections.abc import Sequence
from difflib import SequenceMatcher
from urllib.parse import urlsplit

from pice.errors import InputError, OutputLost, PiceError, Unavailable
from pice.models.printable import shown
from pice.models.source import Source

NUM_NEAR = 8
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_address(endpoint: str) -> bool:
    try:
        parts = urlsplit(endpoint)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def address(endpoint: str) -> str:
    """Of the hub, without what may be secret in it."""
    parts = urlsplit(endpoint)
    return shown(f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else ""))


def refused(source: Source, endpoint: str, status: int, code: str, names: Sequence[str] | None) -> PiceError:
    """By the hub's answer: `code` is its X-Error-Code, `names` the models of the repo where it tells them."""
    repo = f"{address(endpoint)}/{source.repo}"
    if code == "GatedRepo":
        return InputError(f"{source}: access is restricted: ask for it at {repo} and set HF_TOKEN to a token of yours")
    if code == "EntryNotFound":
        return InputError(f"{source}: no such file at {repo}{_near(source.file, names)}")
    if code == "RevisionNotFound":
        return InputError(f"{source}: no revision '{shown(source.revision)}' at {repo}")
    if status in (401, 404):
        return InputError(
            f"{source}: no such repo at {repo}, or it is private: look at its name, or set HF_TOKEN to a token that "
            "may read it"
        )
    if status == 403:
        return InputError(f"{source}: {repo} refuses access (403): the token in use may not read it")
    return Unavailable(f"{source}: {address(endpoint)} answered {status}: try again later")


def out_of_reach(source: Source, endpoint: str, reason: str, advice: str) -> Unavailable:
    return Unavailable(f"{source}: {address(endpoint)} could not be reached ({shown(reason)}); {advice}")


def not_written(source: Source, error: OSError) -> PiceError:
    """The library's own complaint about a size has no number."""
    if error.errno is None:
        return Unavailable(f"{source}: not as many bytes came as were announced: try again")
    where = shown(str(error.filename or source), 400)
    if error.errno in _FULL:
        return OutputLost(f"{where}: the disk is full; what came so far is kept: make room, or use --cache-dir")
    return OutputLost(f"{where}: cannot be written: {error.strerror}")


def _near(wanted: str, names: Sequence[str] | None) -> str:
    """The names that resemble the one asked for first."""
    if names is None:
        return ""
    if not names:
        return ", which has no GGUF file"

    def likeness(name: str) -> tuple[bool, float]:
        return wanted.lower() in name.lower(), SequenceMatcher(None, wanted.lower(), name.lower()).ratio()

    best = sorted(map(shown, names), key=likeness, reverse=True)
    return ", which has " + ", ".join(best[:NUM_NEAR]) + (", ..." if len(best) > NUM_NEAR else "")

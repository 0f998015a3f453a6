"""A file of the hub -> the cache's blob, once it is what the hub said it is."""

import filecmp
import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pice.errors import OutputLost, Unavailable
from pice.models.printable import shown_path
from pice.models.source import Source

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Offer:
    """What the hub says of a file. `etag` is its SHA-256 where it is stored as a large file, as models are."""

    source: Source
    commit: str
    etag: str
    size_bytes: int | None

    @property
    def sha256(self) -> str | None:
        return self.etag if _SHA256.fullmatch(self.etag) else None


def make_blob(offer: Offer, blob: Path, bring: Callable[[BinaryIO, int], None]) -> bool:
    """Makes the blob of what came before and what `bring` adds to a part file that has so many bytes already; False if
    a blob of that size is there.

    Raises:
        OutputLost: there is no room for it.
        Unavailable: the SHA-256 is wrong; what came is thrown away.
    """
    if blob.exists() and offer.size_bytes in (None, blob.stat().st_size):
        return False
    part = blob.with_name(f"{offer.etag}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as file:
        if offer.size_bytes is None or file.tell() > offer.size_bytes:
            file.truncate(0)
            file.seek(0)
        num_kept = file.tell()
        _check_room(part.parent, (offer.size_bytes or 0) - num_kept)
        bring(file, num_kept)
    _check_sum(offer, part)
    part.replace(blob)
    return True


def check_placed(offer: Offer, path: Path, blob: Path) -> None:
    """Where the file system knows no links, `path` is a copy.

    Raises:
        Unavailable: it is another file than the blob, and is removed.
    """
    if not path.samefile(blob) and not filecmp.cmp(path, blob, shallow=False):
        path.unlink()
        raise Unavailable(
            f"{offer.source}: expected {shown_path(path)} to be what came, got another file: it is removed; try again"
        )


def _check_room(folder: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if num_bytes > free:
        raise OutputLost(f"{folder}: expected room for {num_bytes} bytes, got {free}: make room, or use --cache-dir")


def _check_sum(offer: Offer, part: Path) -> None:
    if offer.sha256 is None:
        return
    with part.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != offer.sha256:
        part.unlink()
        raise Unavailable(
            f"{offer.source}: expected SHA-256 {offer.sha256}, got {got}: what came is thrown away; try again"
        )

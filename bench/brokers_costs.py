"""Where the time goes beyond pice itself: by package of the innermost function."""

from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import FrameType

from bench.costs import Sampler

_HERE = ("pice", "bench")


@dataclass(slots=True)
class LibrarySampler(Sampler):
    """As `Sampler`, and counts packages: what runs in C counts for who called it."""

    packages: Counter[str] = field(default_factory=Counter)

    def _take(self, number: int, frame: FrameType | None) -> None:
        Sampler._take(self, number, frame)  # noqa: SLF001 - its own
        if frame is not None:
            self.packages[package_of(frame.f_code.co_filename)] += 1


@cache
def package_of(file: str) -> str:
    """The package that a file belongs to; the standard library's own name for its modules."""
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1].removesuffix(".py")
    ours = next((part for part in reversed(parts[:-1]) if part in _HERE), "")
    return ours or (parts[-2] if len(parts) > 1 else file)

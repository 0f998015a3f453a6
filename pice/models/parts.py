"""A model file and, where it was split, the parts that lie beside it."""

import re
from dataclasses import dataclass
from pathlib import Path

from pice.errors import ModelLoadError
from pice.models.figures import Figures
from pice.models.gguf_file import GgufFile, Tensor, read_gguf
from pice.models.printable import shown, shown_path

MAX_PARTS = 99_999
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`first` has the metadata; `files` are those that are there, `missing` the names of the others."""

    first: GgufFile
    files: tuple[GgufFile, ...]
    missing: tuple[str, ...] = ()
    num_parts: int = 1

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(tensor for file in self.files for tensor in file.tensors)


def part_names(name: str) -> tuple[str, ...]:
    """The names of all parts of a split file, by the name of one (it may have folders before it); just `name` where
    it is none of a split file."""
    match = _PART.fullmatch(name)
    if match is None or not 1 <= int(match["number"]) <= int(match["count"]):
        return (name,)
    return tuple(
        f"{match['stem']}-{number:05}-of-{match['count']}.gguf" for number in range(1, int(match["count"]) + 1)
    )


def read_model(path: Path) -> ModelFiles:
    """The headers of a model's files.

    Raises:
        ModelLoadError: a file is no whole GGUF, is another part than its name says, or the first part is missing.
        ConfigError: gguf is not installed.
    """
    file = read_gguf(path)
    count = Figures(path, file.metadata).integer("split.count", most=MAX_PARTS) or 1
    if count == 1:
        return ModelFiles(file, (file,))
    names = part_names(path.name)
    if len(names) != count:
        raise ModelLoadError(
            f"{shown_path(path)}: expected a name that ends in -00001-of-{count:05}.gguf, as it is a part of a model "
            f"split in {count}; give the parts their names back"
        )
    there = [path.with_name(name) for name in names if path.with_name(name).exists()]
    files = tuple(file if part == path else read_gguf(part) for part in there)
    for part in files:
        _check_part(part, names)
    if files[0].path.name != names[0]:
        raise ModelLoadError(f"{shown_path(path)}: expected the first part beside it, got no {shown(names[0])}")
    return ModelFiles(files[0], files, tuple(name for name in names if path.with_name(name) not in there), count)


def _check_part(part: GgufFile, names: tuple[str, ...]) -> None:
    figures = Figures(part.path, part.metadata)
    expected = (names.index(part.path.name), len(names))
    got = (figures.integer("split.no"), figures.integer("split.count"))
    if got != expected:
        raise ModelLoadError(
            f"{shown_path(part.path)}: expected split.no {expected[0]} and split.count {expected[1]} as its name says, "
            f"got {got[0]} and {got[1]}"
        )

"""`hf:ORG/REPO:FILE`: which file of which repo."""

import re
from dataclasses import dataclass

from pice.errors import InputError
from pice.models.printable import shown

DEFAULT_REVISION = "main"
_NAME = r"[A-Za-z0-9][\w.-]*"
_SOURCE = re.compile(
    rf"hf:(?P<repo>{_NAME}/{_NAME}):(?P<file>[^@:\\/][^@:\\]*)(?:@(?P<revision>\w[\w./-]*))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a repo of models. `revision` is a branch, a tag or a commit."""

    repo: str
    file: str
    revision: str = DEFAULT_REVISION

    def __str__(self) -> str:
        at = "" if self.revision == DEFAULT_REVISION else f"@{self.revision}"
        return shown(f"hf:{self.repo}:{self.file}{at}", 400)


def parse_source(text: str) -> Source:
    """Raises `InputError` if it is none."""
    match = _SOURCE.fullmatch(text)
    if match is None or ".." in text or not text.isprintable():
        raise InputError(
            "expected hf:ORG/REPO:FILE or hf:ORG/REPO:FILE@REVISION, as in hf:Qwen/Qwen2.5-0.5B-Instruct-GGUF:"
            f"qwen2.5-0.5b-instruct-q8_0.gguf, got '{shown(text)}'"
        )
    return Source(match["repo"], match["file"], match["revision"] or DEFAULT_REVISION)

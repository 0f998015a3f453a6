"""A model on the hub -> a path on this machine."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pice.errors import Unavailable
from pice.models import hub
from pice.models.lines import size
from pice.models.parts import part_names
from pice.models.source import Source, parse_source


def pull_model(text: str, cache_dir: Path | None, say: Callable[[str], None]) -> Path:
    """The path of the file, or of the first part of a split one; all parts are fetched, of one commit.

    With no network, what was fetched before is taken. `say` gets lines about each file.

    Raises:
        InputError: it is no source, there is no such file, or no access to it.
        OutputLost: the cache cannot be written.
        Unavailable: the hub cannot be reached and the file is not in the cache, or what came is damaged.
        ConfigError: huggingface_hub is not installed, or its environment is wrong.
    """
    source = parse_source(text)
    name, *others = part_names(source.file)
    first = replace(source, file=name)
    path = _pull(first, cache_dir, say)
    for other in others:
        _pull(Source(source.repo, other, hub.commit_of(first, path)), cache_dir, say)
    return path


def _pull(source: Source, cache_dir: Path | None, say: Callable[[str], None]) -> Path:
    try:
        offer = hub.ask(source)
    except Unavailable as error:
        path = hub.cached(source, cache_dir)
        if path is None:
            raise
        say(str(error))
        say(f"{source}: taken from the cache, as it was fetched before")
        return path
    say(f"{source}: {'of unknown size' if offer.size_bytes is None else size(offer.size_bytes)}")
    if not hub.fetch(offer, cache_dir):
        say(f"{source}: in the cache already")
    elif offer.sha256:
        say(f"{source}: fetched, and its SHA-256 is right")
    else:
        say(f"{source}: fetched; the hub gives no SHA-256 to check it by")
    return hub.place(offer, cache_dir)

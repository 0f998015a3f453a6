"""The ways of answering that `bench demo` compares: the demo's own models, each time used otherwise."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pice.app import settings_of
from pice.core import Mode
from pice.demo.atlas import CONFIG
from pice.settings import Settings


@dataclass(frozen=True, slots=True)
class System:
    """`mode` None leaves it to the planner. Those that are `timed` run in every round, the others once, for what they
    write."""

    name: str
    settings: Settings
    mode: Mode | None
    timed: bool


def systems() -> list[System]:
    """All of them: see the table's notes (`bench.demo.NOTES`)."""
    whole = settings_of(CONFIG, [])
    paper = _changed(whole, planner={"eager": False, "candidates": len(whole.sites)})
    return [
        System("cloud-only", whole.model_copy(update={"sites": {}}), "cloud", timed=True),
        System("edge-only", whole, "edge", timed=True),
        System("pice-paper", paper, None, timed=True),
        System("pice", whole, None, timed=True),
        System("pice, no second opinions", _changed(whole, ensemble=_ONE_MODEL), None, timed=True),
        *_edges(whole),
    ]


_ONE_MODEL = {"max_candidates": 1}


def _edges(whole: Settings) -> Iterator[System]:
    for name, site in whole.sites.items():
        (engine,) = site.engines
        alone = whole.model_copy(update={"sites": {name: site}})
        yield System(f"{engine} alone", alone, "edge", timed=False)
        yield System(f"pice with {engine} alone", _changed(alone, ensemble=_ONE_MODEL), None, timed=False)


def _changed(settings: Settings, **sections: Mapping[str, Any]) -> Settings:
    updates = {name: getattr(settings, name).model_copy(update=dict(values)) for name, values in sections.items()}
    return settings.model_copy(update=updates)

"""The systems that the testbed compares, each as a deployment of the same nodes and the traffic as it would meet it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pice.core import Mode
from pice.node.cloud import CloudPolicy
from pice.simulation.cluster import Policies
from pice.simulation.play import Ask, Deployment

NEVER_S = 1e6

System = Literal["cloud-only", "edge-only", "router", "sot", "pice-paper", "pice"]
SYSTEMS: tuple[System, ...] = ("cloud-only", "edge-only", "router", "sot", "pice-paper", "pice")
"""- cloud-only: the cloud model answers everything.
- edge-only: one small model answers everything.
- router: what suits a sketch goes whole to a small model, the rest to the cloud.
- sot: what suits is sketched, and expanded by the cloud model itself.
- pice-paper: the whole sketch first, then every segment by two small models.
- pice: this project's defaults.
"""


def policies(max_inflight: int) -> Policies:
    """The defaults, with as many requests in hand as the cloud model decodes together."""
    return Policies(cloud=CloudPolicy(max_inflight=max_inflight))


def deployed(system: System, whole: Deployment) -> Deployment:
    """What of `whole` the system uses, and how."""
    set_so = whole.policies
    match system:
        case "cloud-only":
            return replace(whole, sites={})
        case "sot":
            return replace(whole, sites={}, expands_itself=True)
        case "pice-paper":
            return replace(
                whole,
                policies=replace(
                    set_so,
                    plan=replace(set_so.plan, candidates=2),
                    cloud=replace(set_so.cloud, eager=False),
                    ensemble=replace(set_so.ensemble, second_opinion_below=0.0),
                ),
            )
        case _:
            return whole


def met(system: System, asks: Sequence[Ask]) -> list[Ask]:
    """The traffic with the modes that the system leaves to nobody."""
    return [replace(ask, mode=_mode(system, ask)) for ask in asks]


def _mode(system: System, ask: Ask) -> Mode | None:
    suits = ask.known.suits_sketch
    modes: Mapping[System, Mode | None] = {
        "cloud-only": "cloud",
        "edge-only": "edge",
        "router": "edge" if suits else "cloud",
        "sot": "progressive" if suits else "cloud",
    }
    return modes.get(system)


ABLATIONS: Mapping[str, Callable[[Policies], Policies]] = {
    "eager release": lambda it: replace(it, cloud=replace(it.cloud, eager=False)),
    "merging": lambda it: replace(it, plan=replace(it.plan, segment_words=1)),
    "budget adaptation": lambda it: replace(it, plan=replace(it.plan, sketch_flex=0.0)),
    "multi-list queue": lambda it: replace(it, edge=replace(it.edge, order="fcfs")),
    "hedging": lambda it: replace(it, ensemble=replace(it.ensemble, hedge_min_s=NEVER_S)),
    "second opinions": lambda it: replace(it, ensemble=replace(it.ensemble, second_opinion_below=0.0)),
}
"""What each switches off."""

"""One cell of the testbed: a system under a load -> its figures; and many cells on all cores."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from random import Random
from statistics import median
from typing import Literal

from bench.testbed_data import Question, asks, break_even_tokens, cloud_model, machines, questions, site_models
from bench.testbed_systems import ABLATIONS, System, deployed, met, policies
from pice.engine.llama.options import num_cores
from pice.metrics import percentile
from pice.simulation.lengths import Sketching
from pice.simulation.play import Deployment, Ended, Played, Site, play

Gate = Literal["labels", "length"]
GATES: tuple[Gate, ...] = ("labels", "length")
GOOD_TTFT_S, GOOD_E2E_S = 3.0, 15.0
"""What a good answer keeps. Goodput counts those."""
DEATH_S = 20.0
AT_ONCE_PER_SLOT = 6
"""Clients of a saturated system, for each of the cloud model's sequences."""


@dataclass(frozen=True, slots=True)
class World:
    """What all systems of a comparison have alike. `speed` and `batching`: see `site_models`. With `suited` that share
    of the questions suits a sketch, whatever the gate; the first `num_dying` sites die on the way."""

    num_sites: int = 24
    speed: float = 1.0
    batching: float = 1.0
    sketch_ratio: float = 0.2
    rtt_s: float = 0.03
    bits_per_s: float = 50e6
    suited: float | None = None
    num_dying: int = 0

    def deployment(self) -> Deployment:
        cloud = cloud_model()
        sites = site_models(self.num_sites, speed=self.speed, batching=self.batching)
        return Deployment(
            cloud,
            {name: Site((model,), self.rtt_s) for name, model in sites.items()},
            policies(cloud.max_inflight),
            Sketching(ratio=self.sketch_ratio),
            self.bits_per_s,
            deaths=dict.fromkeys(list(sites)[: self.num_dying], DEATH_S),
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """What is played. `rate` is requests per second; None keeps so many clients asking that nothing is ever idle.
    `without` names what of `ABLATIONS` is switched off."""

    system: System
    gate: Gate
    world: World
    rate: float | None
    seed: int
    num_requests: int
    without: str = ""

    def is_of(self, line: "Line") -> bool:
        return (self.system, self.gate, self.world, self.without) == (line.system, line.gate, line.world, line.without)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table: one setting, saturated and at some loads. The six systems as they are have no `label`."""

    system: System
    gate: Gate
    world: World
    loads: tuple[float, ...]
    without: str = ""
    label: str = ""
    once: bool = False

    def cell(self, rate: float | None, seed: int, num_requests: int) -> Cell:
        return Cell(self.system, self.gate, self.world, rate, seed, num_requests, self.without)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a cell came to. Times in seconds; rates per second, of the middle of the run; tokens per answer token."""

    cell: Cell
    answers_per_s: float
    e2e_p50_s: float
    e2e_p95_s: float
    ttft_p50_s: float
    ttft_p95_s: float
    good_per_s: float
    num_failed: int
    num_degraded: int
    progressive: float
    cloud_tokens: float
    edge_tokens: float
    edge_use: float
    prediction_error: float


def play_cell(cell: Cell) -> Figures:
    """Plays it to its end, in virtual time."""
    deployment = deployed(cell.system, cell.world.deployment())
    if cell.without:
        deployment = replace(deployment, policies=ABLATIONS[cell.without](deployment.policies))
    traffic = asks(_questions(), suits(cell.gate, cell.world), cell.num_requests, cell.rate or 1.0, cell.seed)
    at_once = None if cell.rate else AT_ONCE_PER_SLOT * deployment.cloud.max_inflight
    played = play(deployment, met(cell.system, traffic), cell.seed, num_at_once=at_once)
    return figures(cell, deployment, played)


def suits(gate: Gate, world: World) -> Callable[[Question], bool]:
    """Which questions the cloud model would sketch: those with the label, or those whose answer is long enough for a
    sketch to be sooner with the slowest kind of site."""
    if world.suited is not None:
        drawn = Random(0).sample(_questions(), round(world.suited * len(_questions())))
        return drawn.__contains__
    if gate == "labels":
        return lambda question: question.suits_sketch
    least = max(
        break_even_tokens(cloud_model(), site, Sketching(world.sketch_ratio), world.rtt_s)
        for site in site_models(len(machines())).values()
    )
    return lambda question: question.num_tokens >= least


def figures(cell: Cell, deployment: Deployment, played: Played) -> Figures:
    """What is reported of a run. Of a saturated one times say nothing, since clients wait for one another."""
    answered = [each for each in played.ended if not each.error]
    e2e, ttft = [each.e2e_s for each in answered] or [0.0], [each.ttft_s for each in answered] or [0.0]
    good = [each for each in answered if each.e2e_s <= GOOD_E2E_S and each.ttft_s <= GOOD_TTFT_S]
    num_tokens = max(1, sum(each.num_answer_tokens for each in answered))
    rate = _rate(answered)
    errors = [abs(each.expected_s - each.e2e_s) / each.e2e_s for each in answered if each.expected_s and each.e2e_s]
    return Figures(
        cell,
        answers_per_s=rate,
        e2e_p50_s=percentile(e2e, 50),
        e2e_p95_s=percentile(e2e, 95),
        ttft_p50_s=percentile(ttft, 50),
        ttft_p95_s=percentile(ttft, 95),
        good_per_s=rate * len(good) / max(1, len(answered)),
        num_failed=len(played.ended) - len(answered),
        num_degraded=sum(each.num_degraded > 0 for each in answered),
        progressive=sum(each.mode == "progressive" for each in answered) / max(1, len(answered)),
        cloud_tokens=played.num_cloud_tokens / num_tokens,
        edge_tokens=played.num_edge_tokens / num_tokens,
        edge_use=_edge_use(deployment, played),
        prediction_error=median(errors) if errors else 0.0,
    )


def _rate(answered: Sequence[Ended]) -> float:
    """Of the middle three fifths of the ends, so that neither filling up nor running dry counts."""
    ends = sorted(each.ended_s for each in answered)
    first, last = len(ends) // 5, len(ends) * 4 // 5
    return (last - first) / (ends[last] - ends[first]) if last > first and ends[last] > ends[first] else 0.0


def _edge_use(deployment: Deployment, played: Played) -> float:
    most = deployment.edge_tokens_per_s * played.span_s
    return played.num_edge_tokens / most if most else 0.0


@cache
def _questions() -> list[Question]:
    return questions()


def play_all(cells: Iterable[Cell], note: Callable[[str], None]) -> Iterator[Figures]:
    """Each on a core of its own, in the order given."""
    with ProcessPoolExecutor(num_cores(), mp_context=get_context("spawn")) as pool:
        for found in pool.map(play_cell, cells):
            note(f"{found.cell.system} {found.cell.gate} {found.cell.rate or 'saturated'} {found.answers_per_s:.2f}/s")
            yield found

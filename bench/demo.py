"""Real inference on one machine: the demo's models as PICE, as the paper has it, and as the cloud model alone."""

from collections.abc import Callable, Iterator, Sequence
from operator import attrgetter
from statistics import fmean
from typing import Any

import typer

from bench.demo_run import Asked, Load, Run, play
from bench.demo_systems import systems
from bench.report import (
    Aim,
    Measured,
    PathOption,
    QuickOption,
    Report,
    RoundsOption,
    Table,
    alternating,
    at_least,
    at_most,
    over,
    publish,
)
from pice.demo.atlas import KINDS, MODELS, Kind, atlas, check_models
from pice.loop import run_once

INTENDED = {"overview": "progressive", "comparison": "progressive", "fact": "cloud", "chain": "cloud"}
"""The mode each kind of question is meant for."""
QUALITIES = ("recall", "town_recall", "general_recall", "precision", "rouge_l")
NOTES = (
    "cloud-only: the cloud model writes all, and no edge engine is loaded. edge-only: one edge model writes all.",
    "pice-paper: the whole sketch first, then every edge model a candidate of each segment. pice: as shipped.",
    "EDGE alone: it answers whole questions; pice with EDGE alone: it expands all segments. These run once.",
    "E2E and TTFT: median of overviews asked one at a time. Medians of the rounds (lowest-highest). Greedy.",
    "Recall and precision of facts (of towns, and generally known) and ROUGE-L: each question once, in a phrasing kept",
    "out of training, mean over kinds. Tokens: written by cloud and edge per token of the answers, discarded ones too.",
)


def command(quick: QuickOption = False, rounds: RoundsOption = None, path: PathOption = None) -> None:
    """The demo's models on its questions: cloud-only, PICE, the paper's way, each edge model alone."""
    check_models()
    load, compared = make_load(quick=quick), systems()
    if quick:
        compared = [system for system in compared if system.name in ("cloud-only", "pice")]
    runs = [
        run_once(lambda system=system, number=number: play(system, number, load))
        for number, system in alternating(compared, rounds or (1 if quick else 5))
        if system.timed or number == 0
    ]
    publish(make_report(runs, load), path, lambda figure: draw(figure, runs))


def make_load(*, quick: bool) -> Load:
    """One by one the first of each kind; at once as many overviews, and as many of all kinds."""
    num_single, num_batch = (3, 16) if quick else (10, 64)
    kinds = {kind: atlas().of_kind(kind) for kind in KINDS}
    single = [question for kind in KINDS for question in kinds[kind][:num_single]]
    overviews = kinds["overview"][num_single:][:num_batch]
    others = num_single + num_batch
    mixed = [question for kind in KINDS for question in kinds[kind][others:][: num_batch // len(KINDS)]]
    return Load(kinds["overview"][-1], single, {"overviews": overviews, "all kinds": mixed})


def make_report(runs: Sequence[Run], load: Load) -> Report:
    described = {
        "single": len(load.single),
        **{name: len(questions) for name, questions in load.batches.items()},
        "models": {path.stem: path.stat().st_size for path in MODELS if path.exists()},
    }
    return Report("demo", described, [run.document() for run in runs], aims(runs), table(runs))


def aims(runs: Sequence[Run]) -> list[Aim]:
    """What B2 asks for, from the runs."""
    cloud, pice = _of(runs, "cloud-only"), _of(runs, "pice")
    recalls = {name: quality(_of(runs, name), "recall") for name in _names(runs)}
    found = [
        at_most("E2E of overviews, pice / cloud-only", _ratio(pice, cloud, _e2e_s).median, 0.5),
        *(
            at_least(f"throughput of {name}, pice / cloud-only", _ratio(cloud, pice, _wall(name)).median, 2.0)
            for name in pice[0].wall_s
        ),
        at_least("recall, cloud-only", recalls["cloud-only"], 0.95),
        at_least("recall, pice / cloud-only", recalls["pice"] / recalls["cloud-only"], 0.95),
        *(at_most(f"recall, {name}", recalls[name], 0.30) for name in recalls if name.startswith("edge-")),
    ]
    if with_one := [name for name in recalls if name.startswith("pice with ")]:
        for name in ("recall", "rouge_l"):
            best = max(quality(_of(runs, system), name) for system in with_one)
            found.append(at_least(f"{name}, pice / with its best edge model alone", quality(pice, name) / best, 1.001))
    return [*found, *_gate(pice)]


def _gate(pice: Sequence[Run]) -> Iterator[Aim]:
    """Shares of the questions that went the way they are meant for, whoever decided it."""
    for kind in KINDS:
        modes = [one.mode for run in pice for one in run.asked if one.kind == kind]
        yield at_least(f"{kind} questions answered {INTENDED[kind]}", modes.count(INTENDED[kind]) / len(modes), 0.9)


def table(runs: Sequence[Run]) -> Table:
    columns = (
        "system",
        "overview E2E s",
        "TTFT s",
        *(f"{name}, answers/s" for name in runs[0].wall_s),
        *("recall", "towns", "general", "precision", "ROUGE-L"),
        "cloud tokens",
        "edge tokens",
    )
    rows = [_row(_of(runs, name)) for name in _names(runs)]
    sizes = ", ".join(f"{sum(one.load == name for one in runs[0].asked)} {name}" for name in runs[0].wall_s)
    return Table("The demo's models, on this machine", columns, rows, (*NOTES, f"At once: {sizes}."))


def _row(runs: Sequence[Run]) -> list[str]:
    asked = [one for run in runs for one in run.asked]
    num_answer = sum(one.num_answer_tokens for one in asked)
    return [
        runs[0].system,
        over(map(_e2e_s, runs)).text(3),
        over(map(_ttft_s, runs)).text(3),
        *(over(_per_s(run, name) for run in runs).text(1) for name in runs[0].wall_s),
        *(f"{quality(runs, name):.3f}" for name in QUALITIES),
        f"{sum(one.num_cloud_tokens for one in asked) / num_answer:.2f}",
        f"{sum(one.num_edge_tokens for one in asked) / num_answer:.2f}",
    ]


def quality(runs: Sequence[Run], name: str) -> float:
    """The mean of one of `QUALITIES` over the answers of each kind that can be measured by it, then over the kinds."""
    value: Callable[[Asked], float | None] = attrgetter(name)
    of_kinds = [[value(one) for run in runs for one in run.asked if one.kind == kind] for kind in KINDS]
    measured = [[each for each in values if each is not None] for values in of_kinds]
    return fmean(fmean(values) for values in measured if values)


def draw(figure: Any, runs: Sequence[Run]) -> None:
    """Latency of each kind, one at a time, and answers per second, for each timed system."""
    latency, throughput = figure.subplots(1, 2)
    figure.set_size_inches(11, 4)
    names = [name for name in _names(runs) if not name.endswith(" alone")]
    for at, name in enumerate(names):
        of_system, width = _of(runs, name), 0.8 / len(names)
        places = [place + (at - (len(names) - 1) / 2) * width for place in range(len(KINDS))]
        latency.bar(
            places, [over(_single_s(run, kind) for run in of_system).median for kind in KINDS], width, label=name
        )
        walls = list(of_system[0].wall_s)
        places = [place + (at - (len(names) - 1) / 2) * width for place in range(len(walls))]
        throughput.bar(places, [over(_per_s(run, wall) for run in of_system).median for wall in walls], width)
    latency.set_xticks(range(len(KINDS)), KINDS)
    latency.set_ylabel("E2E, one at a time (s)")
    throughput.set_xticks(range(len(runs[0].wall_s)), list(runs[0].wall_s))
    throughput.set_ylabel("answers per second, at once")
    latency.legend()


def _names(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.system for run in runs))


def _of(runs: Sequence[Run], name: str) -> list[Run]:
    return [run for run in runs if run.system == name]


def _ratio(runs: Sequence[Run], others: Sequence[Run], figure: Callable[[Run], float]) -> Measured:
    """Round by round."""
    return over(figure(run) / figure(other) for run, other in zip(runs, others, strict=True))


def _wall(name: str) -> Callable[[Run], float]:
    return lambda run: run.wall_s[name]


def _per_s(run: Run, name: str) -> float:
    return sum(one.load == name for one in run.asked) / run.wall_s[name]


def _single_s(run: Run, kind: Kind) -> float:
    return over(one.e2e_s for one in run.asked if one.load == "single" and one.kind == kind).median


def _e2e_s(run: Run) -> float:
    return _single_s(run, "overview")


def _ttft_s(run: Run) -> float:
    return over(one.ttft_s for one in run.asked if one.load == "single" and one.kind == "overview").median


if __name__ == "__main__":
    typer.run(command)

"""What PICE adds to Kafka and Redis: segments a second through its nodes, beside a bare loop over the same brokers."""

import asyncio
import logging
from typing import Annotated

import typer
from rich.console import Console

from bench.brokers_figures import Load, draw, make_report
from bench.brokers_host import cluster_packages, started
from bench.pipeline import LoopName, loop_factory, profile_table
from bench.report import PathOption, QuickOption, RoundsOption, publish

SITES = (1, 2, 4, 8)
PROFILED_SITES = 4
QUICK, FULL = Load(num_busy=40, num_single=15), Load(num_busy=250, num_single=60)


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    rounds: RoundsOption = None,
    profile: Annotated[bool, typer.Option("--profile", help="Also say where the time goes, at 4 sites.")] = False,
) -> None:
    """Segments per second through the nodes on real Kafka and Redis, beside a bare loop over the same brokers."""
    with cluster_packages():
        from bench.brokers_run import Bench
    load, sites, num_rounds = (QUICK, (1, 8), rounds or 3) if quick else (FULL, SITES, rounds or 5)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # it tells of topics that are a moment old
    with started() as brokers, asyncio.Runner(loop_factory=loop_factory(LoopName.uvloop)) as runner:
        bench = Bench(brokers, load)
        runner.run(bench.rehearse())
        runs = runner.run(bench.measure(sites, num_rounds))
        found = runner.run(bench.profile(PROFILED_SITES)) if profile else {}
    publish(make_report(runs, load, found), path, lambda figure: draw(figure, runs))
    if found:
        Console(width=160).print(profile_table(f"{PROFILED_SITES} sites", found))
        print("by package, us: " + ", ".join(f"{name} {us:.0f}" for name, us in found["packages_us"].items()))


if __name__ == "__main__":
    typer.run(command)

"""Nothing lost, nothing answered twice: a deployment on real brokers under load, while each part of it dies in turn."""

import asyncio
import logging
from pathlib import Path
from typing import Annotated

import typer

from bench.brokers_host import cluster_packages
from bench.drill_report import draw, make_report
from bench.pipeline import LoopName, loop_factory
from bench.report import PathOption, QuickOption, publish

RequestsOption = Annotated[
    int | None, typer.Option("--requests", min=1, help="Least requests accepted; else 2,000, with --quick 300.")
]
KeepOption = Annotated[
    Path | None, typer.Option("--keep", metavar="FOLDER", help="Leave logs and data of brokers and services there.")
]


def command(
    quick: QuickOption = False,
    path: PathOption = None,
    num_requests: RequestsOption = None,
    keep: KeepOption = None,
) -> None:
    """Kills, pauses and cuts off each part of a deployment under load: nothing may be lost or answered twice.

    Takes some eight minutes, with --quick some four. Exit code 1 when an aim is missed.
    """
    with cluster_packages():
        from bench.drill_faults import FULL, QUICK
        from bench.drill_play import drill
    logging.disable()  # that brokers are away is no news here
    num_wanted = num_requests or (300 if quick else 2000)
    with asyncio.Runner(loop_factory=loop_factory(LoopName.uvloop)) as runner:
        found = runner.run(drill(num_wanted, QUICK if quick else FULL, keep))
    report = make_report(found, num_wanted)
    publish(report, path, lambda figure: draw(figure, found))
    if not all(aim.met for aim in report.aims):
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(command)

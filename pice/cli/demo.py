"""The demo models: what they can be asked, and a tour that shows them beside their cloud model alone."""

from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pice.cli.session import OK
from pice.cli.show import printable
from pice.cli.watching import watch
from pice.core import Answer, Event, Failure, Mode
from pice.demo.atlas import GREEDY, Kind, Question, atlas, facts_in
from pice.errors import RequestFailed
from pice.pipeline import Pipeline

TOUR: Sequence[Kind] = ("overview", "fact", "chain")

commands = typer.Typer(help="The models of the imaginary atlas (docs/demo-models.md).", no_args_is_help=True)


@commands.command()
def questions(
    kind: Annotated[Kind | None, typer.Option(help="Only questions of this kind.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON, with reference answers and facts.")] = False,
) -> None:
    """List questions that `pice ask --demo` can answer."""
    listed = [question for question in atlas().questions if kind in (None, question.kind)]
    if as_json:
        typer.echo(orjson.dumps(listed, option=orjson.OPT_INDENT_2))
        return
    for question in sorted(listed, key=lambda question: question.kind):
        typer.echo(f"{question.kind}: {question.text}")


@dataclass(frozen=True, slots=True)
class _Stop:
    """One question of the tour, answered as planned and by the cloud model alone."""

    question: Question
    answer: Answer
    alone: Answer


async def tour(pipeline: Pipeline, live: Console | None, out: Console) -> int:
    """Asks a question of each kind, as planned and of the cloud model alone, and compares; the exit code."""
    chosen = [atlas().of_kind(kind)[0] for kind in TOUR]
    await _ask(pipeline, atlas().of_kind("comparison")[0], None, None)
    stops = []
    for question in chosen:
        out.rule(Text(question.text), align="left")
        answer = await _ask(pipeline, question, None, live)
        out.print(Text(printable(answer.text)), soft_wrap=True)
        stops.append(_Stop(question, answer, await _ask(pipeline, question, "cloud", None)))
    out.rule()
    out.print(_table(stops))
    return OK


async def _ask(pipeline: Pipeline, question: Question, mode: Mode | None, live: Console | None) -> Answer:
    request = pipeline.new_request(question.text, mode=mode, sampling=GREEDY)
    events: AsyncIterator[Event]
    async with aclosing(pipeline.stream(request)) as events:
        outcome = await watch(events, live)
    if isinstance(outcome, Failure):
        raise RequestFailed(outcome.message, failure_code=outcome.code)
    return outcome


def _table(stops: Sequence[_Stop]) -> Table:
    table = Table(title="PICE / its cloud model alone: one run, all engines loaded", title_style="")
    for column in ("question", "mode"):
        table.add_column(column)
    for column in ("E2E ms", "TTFT ms", "cloud tok", "edge", "facts"):
        table.add_column(column, justify="right")
    for stop in stops:
        answer, alone = stop.answer, stop.alone
        num_found, num_alone = (len(facts_in(each.text, stop.question.facts)) for each in (answer, alone))
        table.add_row(
            stop.question.kind,
            answer.mode,
            f"{answer.times.e2e_s * 1000:.0f} / {alone.times.e2e_s * 1000:.0f}",
            f"{answer.times.ttft_s * 1000:.0f} / {alone.times.ttft_s * 1000:.0f}",
            f"{answer.usage.num_cloud_output_tokens} / {alone.usage.num_cloud_output_tokens}",
            f"{answer.usage.num_edge_output_tokens}",
            f"{num_found} / {num_alone} of {len(stop.question.facts)}",
        )
    return table

"""`pice ask`: one question, its answer, and on a terminal how it came about."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, nullcontext
from dataclasses import replace
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pice.cli.options import ConfigOption, MaxTokensOption, QuestionArgument, SetOption, SystemOption
from pice.cli.session import FAILED, OK, messages, report, with_pipeline
from pice.cli.show import Screen, figures, printable
from pice.config import load_settings
from pice.core import NUM_SEEDS, Answer, Event, Failure, Mode, Sampling
from pice.errors import RequestFailed
from pice.pipeline import Pipeline

REFRESH_S = 0.1


def ask(
    question: QuestionArgument,
    config: ConfigOption = None,
    override: SetOption = None,
    mode: Annotated[Mode | None, typer.Option(help="Leave it to the planner unless given.")] = None,
    system: SystemOption = "",
    timeout: Annotated[
        float | None, typer.Option(min=0.001, max=86_400, metavar="S", help="Seconds until it must be done.")
    ] = None,
    max_tokens: MaxTokensOption = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the likeliest token.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, max=NUM_SEEDS - 1, help="Makes sampling repeat.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole record as JSON.")] = False,
) -> None:
    """Ask one question.

    On a terminal you see the plan, the sketch and the segments as they are written; through a pipe comes the answer
    alone.
    """
    conversation = messages(question, system)
    settings = load_settings(config, override or ())
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    sampling = replace(Sampling(), **{name: value for name, value in given.items() if value is not None})

    async def body(pipeline: Pipeline) -> int:
        request = pipeline.new_request(conversation, mode=mode, timeout_s=timeout, sampling=sampling)
        console = terminal()
        async with aclosing(pipeline.stream(request)) as events:
            outcome = await watch(events, console)
        return tell_json(outcome) if as_json else tell(outcome, console)

    raise typer.Exit(with_pipeline(settings, body))


async def watch(events: AsyncIterator[Event], console: Console | None) -> Answer | Failure:
    """How the request ends; meanwhile it is drawn on `console`."""
    screen = Screen()
    live = Live(screen, console=console, auto_refresh=False, transient=True) if console else None
    loop = asyncio.get_running_loop()
    next_s = loop.time()
    outcome: Answer | Failure | None = None
    with live or nullcontext():
        async for event in events:
            screen.feed(event)
            outcome = event.answer or event.failure
            if live and loop.time() >= next_s:
                live.refresh()
                next_s = loop.time() + REFRESH_S
    if outcome is None:
        raise RequestFailed("the request's events ended without an answer or an error: see the log of its nodes")
    return outcome


def terminal() -> Console | None:
    """Where progress can be drawn: standard output, or beside a pipe standard error."""
    if sys.stdout.isatty():
        return Console()
    return Console(stderr=True) if sys.stderr.isatty() else None


def tell(outcome: Answer | Failure, console: Console | None) -> int:
    """Prints the answer, with its figures where a person looks; the exit code."""
    if isinstance(outcome, Failure):
        return report(RequestFailed(outcome.message, failure_code=outcome.code))
    if console is None or console.stderr:
        typer.echo(outcome.text.encode())  # bytes: echo would strip what looks like escape codes
    else:
        console.print(Text(printable(outcome.text)), soft_wrap=True)
    if console:
        console.print(Text(printable(figures(outcome)), style="dim"), soft_wrap=True)
    return OK


def tell_json(outcome: Answer | Failure) -> int:
    """Prints the whole record; the exit code."""
    typer.echo(orjson.dumps(outcome, option=orjson.OPT_INDENT_2))
    return FAILED if isinstance(outcome, Failure) else OK

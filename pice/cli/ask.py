"""`pice ask`: one question, its answer, and on a terminal how it came about."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.text import Text

from pice.cli.demo import tour
from pice.cli.options import ConfigOption, MaxTokensOption, SetOption, SystemOption
from pice.cli.session import FAILED, OK, messages, report, with_pipeline
from pice.cli.show import figures, printable
from pice.cli.watching import terminal, watch
from pice.config import load_settings
from pice.core import NUM_SEEDS, Answer, Failure, Mode, Sampling
from pice.demo.atlas import CONFIG, GREEDY, atlas, check_models
from pice.errors import InputError, RequestFailed
from pice.pipeline import Pipeline
from pice.settings import Settings


def ask(
    question: Annotated[
        str | None,
        typer.Argument(help="The question, or - to read it from standard input. With --demo it may be left out."),
    ] = None,
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
    demo: Annotated[
        bool, typer.Option("--demo", help="Use the demo models, not --config. Without a question, see three answered.")
    ] = False,
) -> None:
    """Ask one question.

    On a terminal you see the plan, the sketch and the segments as they are written; through a pipe comes the answer
    alone.
    """
    given: dict[str, Any] = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if question is None:
        if not demo:
            raise InputError("there is no question: give it as an argument, or pass --demo alone to see three answered")
        if given or mode or system or timeout or as_json:
            raise InputError("--demo without a question takes no other option but --set: it shows three questions")
        raise typer.Exit(with_pipeline(_demo_settings(override), _tour))
    conversation = messages(question, system)
    if demo:
        atlas().check(conversation[-1].content)
    settings = _demo_settings(override) if demo else load_settings(config, override or ())
    sampling = replace(GREEDY if demo else Sampling(), **given)

    async def body(pipeline: Pipeline) -> int:
        request = pipeline.new_request(conversation, mode=mode, timeout_s=timeout, sampling=sampling)
        console = terminal()
        async with aclosing(pipeline.stream(request)) as events:
            outcome = await watch(events, console)
        return tell_json(outcome) if as_json else tell(outcome, console)

    raise typer.Exit(with_pipeline(settings, body))


def _demo_settings(overrides: Sequence[str] | None) -> Settings:
    """Of the shipped file and --set alone: what the environment says is meant for other models."""
    check_models()
    return load_settings(CONFIG, overrides or (), environ={})


async def _tour(pipeline: Pipeline) -> int:
    return await tour(pipeline, terminal(), Console())


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

"""`pice topics`: the topics of a deployment on Kafka."""

from typing import TYPE_CHECKING, Annotated

import orjson
import typer

from pice.app.admin import create_topics, describe_topics
from pice.cli.options import ConfigOption, SetOption
from pice.cli.session import FAILED, OK
from pice.config import load_settings
from pice.loop import run_once

if TYPE_CHECKING:
    from pice.app.admin import TopicChange, TopicState

commands = typer.Typer(no_args_is_help=True, help="Make the topics of a deployment, or look at them.")


@commands.command()
def create(config: ConfigOption = None, override: SetOption = None) -> None:
    """Make the topics that are missing, and grow those with too few partitions. May be repeated."""
    settings = load_settings(config, override or ())
    for change in run_once(lambda: create_topics(settings)):
        typer.echo(_changed(change))


@commands.command()
def describe(
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the topics as JSON.")] = False,
) -> None:
    """Show the topics, how far behind each group is, and what is wrong; exit code 1 where something is."""
    settings = load_settings(config, override or ())
    states = run_once(lambda: describe_topics(settings))
    typer.echo(
        orjson.dumps(states, option=orjson.OPT_INDENT_2) if as_json else "\n".join(_described(it) for it in states)
    )
    raise typer.Exit(FAILED if any(state.faults for state in states) else OK)


def _changed(change: "TopicChange") -> str:
    if not change.before:
        return f"{change.name}: made with {change.after} partitions"
    if change.before == change.after:
        return f"{change.name}: is there with {change.after} partitions"
    return f"{change.name}: grown from {change.before} to {change.after} partitions"


def _described(state: "TopicState") -> str:
    facts = [f"{state.num_partitions} partitions, {state.num_copies} copies"] if state.num_partitions else []
    if state.retention_s is not None:
        facts.append("kept for ever" if state.retention_s < 0 else f"kept for {state.retention_s / 3600:g} h")
    if state.max_bytes is not None:
        facts.append(f"messages of up to {state.max_bytes} bytes")
    return "\n".join(
        [
            f"{state.name}: {'; '.join(facts) or 'none'}",
            *(f"  FAULT: {fault}" for fault in state.faults),
            *(f"  {group}: {num} to do" for group, num in state.lag.items()),
        ]
    )

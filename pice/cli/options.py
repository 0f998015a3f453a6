"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from pice.errors import InputError

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", envvar="PICE_CONFIG", metavar="FILE", help="TOML file; see config/ for examples."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Overrides one setting, as in planner.margin=0.2; may be repeated."
    ),
]
QuestionArgument = Annotated[str, typer.Argument(help="The question, or - to read it from standard input.")]
SystemOption = Annotated[str, typer.Option("--system", metavar="TEXT", help="A system message to go before it.")]
MaxTokensOption = Annotated[
    int | None, typer.Option(min=1, max=1_000_000, metavar="N", help="Longest answer, in tokens.")
]


def refuse_misplaced(context: typer.Context) -> None:
    """Of a command that does something by itself and has commands: raises InputError for an option of its own before
    the name of one of those."""
    for name in context.params:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(
                f"options stand after the command: pice {context.info_name} {context.invoked_subcommand} ... "
                "--config FILE"
            )

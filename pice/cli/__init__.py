"""The `pice` command. Commands parse, load the settings and call `pice.app`; what fails is said in one line."""

import logging
import sys
from typing import Annotated

import typer

from pice import __version__
from pice.cli import ask, batch, config, dead, demo, doctor, models, plan, profile, services, simulate, sites, topics
from pice.cli.session import report
from pice.cli.streams import mend_streams
from pice.errors import PiceError

EPILOG = (
    "Exit codes: 0 done; 1 the request failed, its answer could not be written, or doctor found something missing; "
    "2 wrong usage, settings or input; 3 a batch finished with failures; 130 interrupted."
)

app = typer.Typer(
    name="pice",
    help="Progressive LLM inference: the cloud model sketches, small models expand in parallel.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(ask.ask)
app.command()(plan.plan)
app.command("simulate")(simulate.simulate_command)
app.command()(doctor.doctor)
app.command()(services.cloud)
app.command()(services.edge)
app.command()(services.collector)
app.command()(services.up)
app.add_typer(batch.commands, name="batch")
app.add_typer(config.commands, name="config")
app.add_typer(dead.commands, name="dead")
app.add_typer(demo.commands, name="demo")
app.add_typer(models.commands, name="models")
app.add_typer(profile.commands, name="profile")
app.add_typer(sites.commands, name="sites")
app.add_typer(topics.commands, name="topics")


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pice {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of `pice` itself."""


def main() -> None:
    """Entry point. Every error this package raises on purpose becomes one `error:` line and an exit code."""
    mend_streams()
    logging.basicConfig(level=logging.ERROR, format="%(name)s: %(message)s")  # commands tell failures themselves
    logging.getLogger("pice.engine.process").setLevel(logging.WARNING)  # but not that an engine died and was replaced
    try:
        app()
    except PiceError as error:
        sys.exit(report(error))

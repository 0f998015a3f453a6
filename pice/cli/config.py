"""`pice config`: what the settings are, and whether they are right."""

import typer

from pice.cli.options import ConfigOption, SetOption
from pice.config import load

commands = typer.Typer(no_args_is_help=True, help="Show or check the settings.")


@commands.command()
def show(config: ConfigOption = None, override: SetOption = None) -> None:
    """Print every setting as TOML, secrets masked; a comment says where each that is no default came from."""
    typer.echo("\n".join(load(config, override or ()).lines()))


@commands.command()
def check(config: ConfigOption = None, override: SetOption = None) -> None:
    """Say everything that is wrong with the settings. Loads no model: `pice doctor` does."""
    settings = load(config, override or ()).settings
    engines, sites = ", ".join(settings.engines), ", ".join(settings.sites) or "none"
    typer.echo(f"{config or 'settings'}: no fault found (engines: {engines}; sites: {sites})")

"""`pice cloud`, `pice edge`, `pice collector`, `pice up`: the services of a deployment."""

from typing import Annotated

import typer

from pice.app import Roles, serve
from pice.cli.options import ConfigOption, SetOption
from pice.config import load_settings
from pice.errors import ConfigError
from pice.loop import run
from pice.settings import Settings

SiteOption = Annotated[
    list[str], typer.Option("--site", metavar="NAME", help="Of the sites in the configuration; may be repeated.")
]


def cloud(config: ConfigOption = None, override: SetOption = None) -> None:
    """Serve as a cloud node: plan, answer and sketch beside the cloud engine.

    Several may run: requests are shared among them, and one of them serves segments that fall back to the cloud.
    """
    _serve(_settings(config, override), Roles(cloud=True))


def edge(site: SiteOption, config: ConfigOption = None, override: SetOption = None) -> None:
    """Serve a site: expand the segments on its partition.

    A second process for the same site stands by, and takes over when the first one's lease lapses.
    """
    settings = _settings(config, override)
    if unknown := [name for name in site if name not in settings.sites]:
        known = ", ".join(settings.sites) or "none"
        raise ConfigError(f"--site must name a site of the configuration ({known}), got {unknown[0]!r}")
    _serve(settings, Roles(sites=tuple(dict.fromkeys(site))))


def collector(config: ConfigOption = None, override: SetOption = None) -> None:
    """Serve as a collector: choose among candidates, put answers together; run the lines of batch jobs."""
    _serve(_settings(config, override), Roles(collector=True))


def up(config: ConfigOption = None, override: SetOption = None) -> None:
    """Serve as all of them, with every site of the configuration, in one process."""
    settings = _settings(config, override)
    _serve(settings, Roles(cloud=True, sites=tuple(settings.sites), collector=True))


def _settings(config: ConfigOption, override: SetOption) -> Settings:
    settings = load_settings(config, override or ())
    if settings.kafka is None or settings.redis is None:
        raise ConfigError(
            "services need the tables [kafka] and [redis] in the configuration: see config/cluster.toml; "
            "`pice ask` and `pice batch run` work without"
        )
    return settings


def _serve(settings: Settings, roles: Roles) -> None:
    raise typer.Exit(run(lambda shutdown: serve(settings, roles, shutdown)))

"""Settings -> running objects: the only package that names adapters."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pice.app.engines import LlamaOptions as LlamaOptions
from pice.app.engines import bench_model as bench_model
from pice.app.engines import make_engine as make_engine
from pice.app.one_process import in_one_process
from pice.app.packages import cluster_packages
from pice.app.roles import Roles as Roles
from pice.config import load_settings
from pice.errors import InputError
from pice.loop import Shutdown
from pice.pipeline import Pipeline
from pice.settings import Settings


def settings_of(config: str | Path | None, overrides: Sequence[str]) -> Settings:
    """The settings in a TOML file, or the defaults, with overrides.

    Raises:
        InputError: `overrides` is one string, of which each letter would be taken for a setting.
        ConfigError: a setting is wrong.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides: expected a list of KEY=VALUE strings, got {overrides!r}: put it in [ ]")
    return load_settings(None if config is None else Path(config), overrides)


def open_pipeline(settings: Settings) -> AbstractAsyncContextManager[Pipeline]:
    """A pipeline, ready to answer: of the services where the settings name brokers, else in this process."""
    if settings.kafka is None:
        return in_one_process(settings)
    with cluster_packages():
        from pice.app.cluster import in_cluster
    return in_cluster(settings)


async def serve(settings: Settings, roles: Roles, shutdown: Shutdown) -> int:
    """Runs services of a deployment; see `pice.app.services.serve`."""
    with cluster_packages():
        from pice.app.services import serve
    return await serve(settings, roles, shutdown)

"""Settings -> running objects: the only package that names adapters."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from pice.app.engines import LlamaOptions as LlamaOptions
from pice.app.engines import bench_model as bench_model
from pice.app.engines import make_engine as make_engine
from pice.app.one_process import in_one_process
from pice.config import load_settings
from pice.errors import InputError
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
    """A pipeline, ready to answer; see `pice.app.one_process.in_one_process`."""
    return in_one_process(settings)

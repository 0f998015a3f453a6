"""Progressive LLM inference between a cloud and many edge sites.

    async with pice.open("config/emulated.toml") as p:
        answer = await p.ask("How do tides work?")

    answer = pice.ask("How do tides work?", config="config/emulated.toml")

Importing this package needs no key, network, broker or model; `open` and `ask` load what the configuration names.
"""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from pice.core import Answer, Event, Message, Mode, Request, Sampling

if TYPE_CHECKING:
    from pice.pipeline import Pipeline

__all__ = ["Answer", "Event", "Message", "Mode", "Request", "Sampling", "ask", "open"]
__version__ = "0.1.0"


def open(  # noqa: A001 - `pice.open` reads as what it does
    config: str | Path | None = None, *, overrides: Sequence[str] = ()
) -> "AbstractAsyncContextManager[Pipeline]":
    """A running pipeline, for `async with`; drained and closed on leaving, which ends as `cancelled` what is still
    asked.

    `config` is a TOML file, `overrides` are `KEY.SUB=VALUE` strings as for `--set`.

    Raises:
        InputError: `overrides` is one string.
        ConfigError: a setting is wrong, or no engine is configured.
        ModelLoadError: an engine cannot be used.
    """
    from pice.app import open_pipeline, settings_of

    return open_pipeline(settings_of(config, overrides))


def ask(
    question: str | Sequence[Message],
    *,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    mode: Mode | None = None,
    timeout_s: float | None = None,
    sampling: Sampling | None = None,
) -> Answer:
    """The answer to one question, from a pipeline that is opened for it and closed again.

    Raises:
        RequestFailed: it ended without an answer; `failure_code` names the cause.
        ConfigError, ModelLoadError, InputError: before anything was asked; also where an event loop runs already.
    """
    from pice.loop import run_once

    async def main() -> Answer:
        async with open(config, overrides=overrides) as pipeline:
            return await pipeline.ask(question, mode=mode, timeout_s=timeout_s, sampling=sampling)

    return run_once(main)

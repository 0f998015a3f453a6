"""`pice doctor`: whether this machine has what a configuration needs, and what mends it."""

import asyncio
import os
import platform
import random
import re
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import orjson
import typer

from pice.app import make_engine
from pice.app.admin import check_brokers
from pice.cli.options import ConfigOption, SetOption
from pice.cli.session import FAILED, OK
from pice.config import load_settings
from pice.core import Message, Prompt
from pice.errors import InputError, PiceError
from pice.loop import INTERRUPTED, Shutdown, run
from pice.settings import EngineSettings, LlamaCppSettings, Settings

EXTRAS = ("", "cluster", "hub", "llama")
"""What of the package's requirements something here imports; engines behind a server need nothing of their own."""
LEAST_PYTHON = (3, 11)
SAMPLE = Prompt((Message("system", "Be brief."), Message("user", "Why?")))
"""What a model's chat template must take."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at. What is `needed` and not `ok` has a `remedy`."""

    name: str
    ok: bool
    detail: str
    needed: bool = True
    remedy: str = ""

    def line(self) -> str:
        state = "ok" if self.ok else "MISSING" if self.needed else "absent"
        return f"{state:<8} {self.name}: {self.detail}" + (f"; {self.remedy}" if self.remedy else "")


def doctor(
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
) -> None:
    """Look at this machine, and with --config really load each model of that configuration."""
    settings = load_settings(config, override or ()) if config or override else None
    checks = [*machine_checks(), *package_checks(settings), *folder_checks()]
    if settings:
        checks += run_model_checks(settings)
    typer.echo(orjson.dumps(checks, option=orjson.OPT_INDENT_2) if as_json else "\n".join(c.line() for c in checks))
    raise typer.Exit(FAILED if any(check.needed and not check.ok for check in checks) else OK)


def machine_checks() -> Iterator[Check]:
    """Python, cores and memory."""
    wanted = ".".join(map(str, LEAST_PYTHON))
    yield Check("python", sys.version_info >= LEAST_PYTHON, f"{platform.python_version()}, {wanted} or later is needed")
    yield Check("cores", True, str(os.cpu_count() or 1), needed=False)
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    yield Check("memory", True, f"{gib:.1f} GiB", needed=False)


def package_checks(settings: Settings | None) -> Iterator[Check]:
    """Each package that this one names; those of an extra are needed where `settings` use it."""
    llama = settings is not None and any(isinstance(each, LlamaCppSettings) for each in settings.engines.values())
    used = {"": True, "llama": llama, "cluster": settings is not None and settings.kafka is not None}
    for requirement in requires("pice") or ():
        extra = "".join(re.findall(r"extra == ['\"]([\w-]+)['\"]", requirement))
        if extra in EXTRAS:
            yield _package_check(requirement.partition(";")[0].strip(), extra, needed=used.get(extra, False))


def _package_check(requirement: str, extra: str, *, needed: bool) -> Check:
    name = re.split(r"[^\w.-]", requirement)[0]
    label = f"{name} [{extra}]" if extra else name
    try:
        return Check(label, True, version(name), needed)
    except PackageNotFoundError:
        return Check(label, False, "is not installed", needed, f"run: {sys.executable} -m pip install '{requirement}'")


def folder_checks() -> Iterator[Check]:
    """The folders that files are written to."""
    for name, folder in (("current folder", Path.cwd()), ("temporary folder", Path(tempfile.gettempdir()))):
        writable = os.access(folder, os.W_OK | os.X_OK)
        remedy = "" if writable else f"run: chmod u+wx {folder}, or work from another folder"
        yield Check(name, writable, f"{folder} is {'' if writable else 'not '}writable", remedy=remedy)


def run_model_checks(settings: Settings) -> list[Check]:
    """The brokers, and each engine, loaded by itself and closed again. A first signal ends it, as it may take long."""
    checks: list[Check] = []

    async def check_all() -> None:
        if settings.kafka is not None:
            checks.append(await _broker_check(settings))
        for name, engine in settings.engines.items():
            checks.append(await _model_check(name, engine))

    async def main(shutdown: Shutdown) -> int:
        async with asyncio.TaskGroup() as tasks:
            work, stop = tasks.create_task(check_all()), tasks.create_task(shutdown.draining.wait())
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            work.cancel()
            stop.cancel()
        return INTERRUPTED if work.cancelled() else OK

    if run(main) == INTERRUPTED:
        raise typer.Exit(INTERRUPTED)
    return checks


async def _broker_check(settings: Settings) -> Check:
    try:
        num_topics = await check_brokers(settings)
    except PiceError as error:
        return Check("brokers", False, str(error), remedy="mend what it says and run this again")
    return Check("brokers", True, f"Kafka and Redis answer, {num_topics} topics are as they have to be")


async def _model_check(name: str, settings: EngineSettings) -> Check:
    label = f"engine {name} ({settings.kind}, {settings.model})"
    began_s = asyncio.get_running_loop().time()
    try:
        engine = make_engine(settings, random.Random(0), num_threads=os.cpu_count() or 1)
        try:
            await engine.start()
            info = engine.info
            if isinstance(settings, LlamaCppSettings):
                await engine.count_tokens(SAMPLE)
        finally:
            await engine.close()
    except InputError as error:
        return Check(label, False, str(error), remedy='set chat_template = "chatml" or another')
    except (PiceError, ImportError) as error:
        return Check(label, False, f"does not load: {error}", remedy="mend what it says and run this again")
    took_s = asyncio.get_running_loop().time() - began_s
    return Check(
        label, True, f"loads in {took_s:.1f} s, {info.context_tokens} tokens of context, {info.max_inflight} at once"
    )

"""`pice sites`: which sites there are, who serves them and how busy they are; drain and remove them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.live import Live
from rich.text import Text

from pice.app.sites import SiteLine, Sites, key_of_site, open_sites
from pice.cli.options import ConfigOption, SetOption, refuse_misplaced
from pice.cli.session import INTERRUPTED, OK
from pice.cli.show import printable
from pice.config import load_settings
from pice.errors import InputError
from pice.loop import Shutdown, run

_REFRESH_S = 1.0
_COLUMNS = ("SITE", "POOL", "PARTITION", "STATUS", "HOLDER", "LEASE", "OUTSTANDING", "BACKLOG", "MODELS")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")]

commands = typer.Typer()


@commands.callback(invoke_without_command=True)
def listed(
    context: typer.Context,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Draw them anew every second, until interrupted.")] = False,
) -> None:
    """List the sites of a deployment, drain or remove one.

    A site is up, draining (it is given no new work) or silent (its heartbeat has stopped). Outstanding are generations
    that run or wait there, backlog is the tokens they have still to write.
    """
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    if watch and as_json:
        raise InputError("--watch draws on a terminal, and --json prints once: give one of them")
    if watch:
        raise typer.Exit(_with_sites(config, override, _watched))

    async def body(sites: Sites, _: Shutdown) -> int:
        lines = await sites.lines()
        typer.echo(orjson.dumps(lines, option=orjson.OPT_INDENT_2) if as_json else table(lines))
        return OK

    raise typer.Exit(_with_sites(config, override, body))


@commands.command()
def drain(
    name: NameArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Give it work again.")] = False,
    config: ConfigOption = None,
    override: SetOption = None,
) -> None:
    """Give a site no more work. It goes on with what it has, until its process is stopped; a restart changes nothing.

    Its process says so within a quarter of `service.lease_s`.
    """

    async def body(sites: Sites, _: Shutdown) -> int:
        await sites.drain(name, draining=not undo)
        typer.echo(f"{name}: {'takes work again' if undo else 'is given no more work'}")
        return OK

    raise typer.Exit(_with_sites(config, override, body))


@commands.command()
def remove(name: NameArgument, config: ConfigOption = None, override: SetOption = None) -> None:
    """Forget a site. Refused while a process serves it: drain it, wait until it has nothing outstanding, stop it.

    Its partition may be given to another site, which puts aside what stands there unread; the requests go on without,
    or elsewhere. The partition itself stays. A process that still stands by for the site registers it again.
    """

    async def body(sites: Sites, _: Shutdown) -> int:
        await sites.remove(name)
        typer.echo(f"{name}: removed")
        return OK

    raise typer.Exit(_with_sites(config, override, body))


@commands.command()
def key(name: NameArgument, config: ConfigOption = None, override: SetOption = None) -> None:
    """Print the key with which a site signs what it writes, for its `key_file`. It follows from `security.secret`."""
    typer.echo(key_of_site(load_settings(config, override or ()), name))


def table(lines: Sequence[SiteLine]) -> str:
    """Columns of text, a line for each site."""
    if not lines:
        return "no site is registered: start one with `pice edge --site NAME`"
    rows = [_COLUMNS, *(_row(line) for line in lines)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(text.rstrip() for text in padded)


def _row(line: SiteLine) -> tuple[str, ...]:
    return (
        _cell(line.name),
        _cell(line.pool),
        "-" if line.partition < 0 else str(line.partition),
        line.status,
        _cell(line.holder),
        f"{line.lease_left_s:.1f} s" if line.holder else "-",
        str(line.num_outstanding),
        f"{line.backlog_tokens} tokens",
        _cell(", ".join(line.models)),
    )


def _cell(text: str) -> str:
    return printable(text).replace("\n", " ") or "-"


async def _watched(sites: Sites, shutdown: Shutdown) -> int:
    console = Console()
    if not console.is_terminal:
        raise InputError("--watch draws on a terminal, and standard output is none: leave it out, or use --json")
    with Live(console=console, auto_refresh=False) as live:
        while not shutdown.draining.is_set():
            live.update(Text(table(await sites.lines()), no_wrap=True, overflow="ellipsis"), refresh=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(_REFRESH_S):
                    await shutdown.draining.wait()
    return INTERRUPTED


def _with_sites(config: ConfigOption, override: SetOption, body: Callable[[Sites, Shutdown], Awaitable[int]]) -> int:
    settings = load_settings(config, override or ())

    async def main(shutdown: Shutdown) -> int:
        async with open_sites(settings) as sites:
            return await body(sites, shutdown)

    return run(main)

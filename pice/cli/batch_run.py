"""`pice batch run`: a file of requests in, a file of answers out."""

import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from pice.app import open_pipeline
from pice.app.capacity import line_timeout_s, requests_at_once
from pice.batch.files import BatchFiles, Start, errors_path
from pice.batch.progress import Progress
from pice.batch.run import run_batch, so_far
from pice.batch.source import Survey, spooled, survey
from pice.cli.meter import Meter, clock, metered
from pice.cli.options import ConfigOption, SetOption
from pice.cli.session import INTERRUPTED, OK, UNFINISHED, report, task_group
from pice.cli.streams import note
from pice.config import load_settings
from pice.errors import PiceError
from pice.loop import Shutdown, run
from pice.settings import Settings


def run_file(
    source: Annotated[Path, typer.Option("--input", "-i", metavar="FILE", help="Requests; - is standard input.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the answers go.")],
    config: ConfigOption = None,
    override: SetOption = None,
    resume: Annotated[bool, typer.Option(help="Go on after the results that are in the output.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Throw the results in the output away.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Ask again what failed before.")] = False,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write failures to the output too, not to a file of their own.")
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Requests at once; unless given, as many as all models work on together. A line that names no "
            "timeout_s has limits.request_timeout_s for each round in which others of the batch may be served first.",
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Answer every line of a file.

    Results are written as they finish, failures to a file beside the output that ends in .errors.jsonl. Whatever
    stops the run, the same command goes on where it stopped: each custom_id gets one result.
    """
    start: Start = "overwrite" if overwrite else "resume" if resume else "new"
    settings = load_settings(config, override or ())
    with ExitStack() as stack:
        path = stack.enter_context(twice_readable(source))
        found = survey(path)
        files = stack.enter_context(BatchFiles(output, source=path, single_file=single_file, start=start))
        if retry_failed:
            files.forget_failed()
        if found.num_invalid and not quiet:
            note(f"{found.num_invalid} lines are invalid and will fail; the first: {found.first_fault}")
        meter = stack.enter_context(metered(so_far(found, files), quiet=quiet))
        code = exit_code(meter.latest)
        if meter.latest.left:
            at_once = requests_at_once(settings, concurrency)
            if concurrency and at_once < concurrency and not quiet:
                note(f"{at_once} requests at once, not {concurrency}: limits.max_open_requests allows no more")
            code = run(lambda shutdown: _reported(settings, found, files, at_once, shutdown, meter))
    if not quiet:
        note(summary(meter.latest, failures=output if single_file else errors_path(output)))
    raise typer.Exit(code)


async def _reported(
    settings: Settings, found: Survey, files: BatchFiles, concurrency: int, shutdown: Shutdown, meter: Meter
) -> int:
    async with task_group() as group:
        notice = group.create_task(_say_when_draining(shutdown))
        try:
            async with open_pipeline(settings) as pipeline:
                end = await run_batch(
                    pipeline.ask_request,
                    found,
                    files,
                    run_id=uuid.uuid4().hex,
                    concurrency=concurrency,
                    timeout_s=line_timeout_s(settings, concurrency),
                    stop=shutdown.draining,
                    wall_s=time.time,
                    progress=meter,
                )
            return exit_code(end)
        except PiceError as error:
            return report(error)
        finally:
            notice.cancel()


async def _say_when_draining(shutdown: Shutdown) -> None:
    await shutdown.draining.wait()
    note("finishing what was begun; interrupt again to give it up (the rest is done by a rerun)")


def exit_code(end: Progress) -> int:
    """What a batch that came this far ends with."""
    if end.left:
        return INTERRUPTED
    return UNFINISHED if end.failed or end.failed_before else OK


def summary(end: Progress, *, failures: Path) -> str:
    """What became of the lines, and what to do about those without an answer."""
    answered, failed = end.answered_before + end.answered, end.failed_before + end.failed
    text = f"{end.total} lines: {answered} answered ({end.answered_before} of them before), {failed} failed"
    if end.left:
        text += f", {end.left} left for the same command to do"
    if failed:
        text += f"; failures are in {failures}, --retry-failed asks them again"
    return f"{text}; {clock(end.elapsed_s)}, {end.num_output_tokens} tokens"


@contextmanager
def twice_readable(source: Path) -> Iterator[Path]:
    """A path that can be read from its beginning more than once: a copy of what is a stream."""
    if str(source) == "-":
        with spooled(typer.get_binary_stream("stdin")) as path:
            yield path
    elif source.is_fifo():
        with source.open("rb") as stream, spooled(stream) as path:
            yield path
    else:
        yield source

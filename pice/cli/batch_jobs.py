"""`pice batch submit`, `status`, `fetch`, `cancel`: files that the services of a deployment answer."""

import asyncio
import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from pice.app.jobs import JobPorts, open_jobs
from pice.app.topics import brokers_of
from pice.batch.fetch import fetch_results
from pice.batch.job_object import job_list, job_object
from pice.batch.progress import Progress
from pice.batch.source import Survey, digest, survey
from pice.batch.submit import check_resumable, submit_lines
from pice.batch.watch import known_job, watch
from pice.cli.batch_run import twice_readable
from pice.cli.job_text import job_lines, job_table, outcome
from pice.cli.meter import metered
from pice.cli.options import ConfigOption, SetOption
from pice.cli.session import FAILED, OK, UNFINISHED, until_signal
from pice.cli.streams import note
from pice.config import load_settings
from pice.core import Job
from pice.errors import InputError, TransportError
from pice.models.printable import json_text
from pice.settings import Settings

MAX_NAME = 80

QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors.")]
JobArgument = Annotated[str, typer.Argument(metavar="ID", help="As `pice batch submit` printed it.")]


def submit(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="Requests; - is standard input.")],
    config: ConfigOption = None,
    override: SetOption = None,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Shown beside the job's id.")] = "",
    job: Annotated[
        str | None, typer.Option("--job", metavar="ID", help="Go on with a submission of the file that was cut short.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay until the job has ended; it does not need that.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Put every line of a file into the queue, and print the id of the job that it becomes.

    The services of the deployment answer the lines, whatever becomes of this terminal; status, fetch and cancel take
    the id.
    """
    settings = _settings(config, override)
    job_id = _checked_id(job) if job else None
    if len(name) > MAX_NAME or not name.isprintable():
        raise InputError(f"--name must be at most {MAX_NAME} printable characters, got {name[:MAX_NAME]!r}")
    with twice_readable(source) as path:
        found = survey(path)
        if not found.keys:
            raise InputError(f"{source} has no lines: there is nothing to submit")
        if found.num_invalid and not quiet:
            note(f"{found.num_invalid} lines are invalid and will fail; the first: {found.first_fault}")
        code = _with_jobs(settings, lambda ports: _submit(ports, found, name, job_id, wait=wait, quiet=quiet))
    raise typer.Exit(code)


def status(
    job: Annotated[str | None, typer.Argument(metavar="[ID]", help="A job; without, the latest are listed.")] = None,
    config: ConfigOption = None,
    override: SetOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as the OpenAI Batch API would.")] = False,
) -> None:
    """Show how far a job is, or all of them."""
    settings = _settings(config, override)
    job_id = _checked_id(job) if job else None
    raise typer.Exit(_with_jobs(settings, lambda ports: _status(ports, job_id, as_json=as_json)))


def fetch(
    job: JobArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the answers go.")],
    config: ConfigOption = None,
    override: SetOption = None,
    single_file: Annotated[
        bool, typer.Option("--single-file", help="Write failures to the output too, not to a file of their own.")
    ] = False,
    partial: Annotated[bool, typer.Option("--partial", help="Take what there is of a job that still runs.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Write the results of a job that has ended to files, each custom_id once.

    Failures go to a file beside the output that ends in .errors.jsonl. The files appear when they are whole. Exit code
    1 says that some lines have no result: the job still runs, or was cancelled.
    """
    settings, job_id = _settings(config, override), _checked_id(job)

    async def body(ports: JobPorts) -> int:
        known = await known_job(ports.jobs, job_id)
        if known.is_open and not partial:
            note(f"error: {job_id} still runs, {known.num_left} lines are left: wait, or take what there is: --partial")
            return FAILED
        num_answered, num_failed = await fetch_results(
            ports.jobs.results(job_id),
            output,
            num_expected=known.num_answered + known.num_failed,
            single_file=single_file,
            overwrite=overwrite,
        )
        if not quiet:
            note(outcome(known.num_lines, num_answered, num_failed))
        return exit_code(known.num_lines, num_answered, num_failed)

    raise typer.Exit(_with_jobs(settings, body))


def cancel(job: JobArgument, config: ConfigOption = None, override: SetOption = None) -> None:
    """End a job: lines that were not begun are dropped, and those in hand are cancelled. Results that came stay."""
    settings, job_id = _settings(config, override), _checked_id(job)

    async def body(ports: JobPorts) -> int:
        known = await known_job(ports.jobs, job_id)
        if not await ports.jobs.cancel(job_id):
            raise InputError(f"{job_id} has ended: there is nothing to cancel")
        note(f"{job_id} is cancelled; {outcome(known.num_lines, known.num_answered, known.num_failed)}")
        return OK

    raise typer.Exit(_with_jobs(settings, body))


def exit_code(num_lines: int, num_answered: int, num_failed: int) -> int:
    """What is said of a job with these results."""
    if num_answered + num_failed < num_lines:
        return FAILED
    return UNFINISHED if num_failed else OK


async def _submit(ports: JobPorts, found: Survey, name: str, job_id: str | None, *, wait: bool, quiet: bool) -> int:
    source, num_lines = digest(found.path), len(found.keys)
    if job_id is None:
        job_id = f"job_{uuid.uuid4().hex[:24]}"
        await ports.jobs.create(Job(job_id, name, source, num_lines))
    else:
        check_resumable(await ports.jobs.job(job_id), job_id, source)
    typer.echo(job_id)
    num_sent = 0

    def sent(num: int) -> None:
        nonlocal num_sent
        num_sent = num

    try:
        await submit_lines(found, job_id, ports.transport, ports.jobs, sent=sent)
    except (TransportError, asyncio.CancelledError):
        note(f"{num_sent} of {num_lines} lines are in the queue; submit the file with --job {job_id} to go on")
        raise
    if not quiet:
        note(f"{num_lines} lines are in the queue")
    return await _wait(ports, job_id, quiet=quiet) if wait else OK


async def _wait(ports: JobPorts, job_id: str, *, quiet: bool) -> int:
    try:
        with metered(Progress(0), quiet=quiet) as meter:
            job = await watch(ports.jobs, job_id, meter)
    except asyncio.CancelledError:
        note(f"the job goes on: `pice batch status {job_id}` says how far it is")
        raise
    if not quiet:
        note(outcome(job.num_lines, job.num_answered, job.num_failed))
    return exit_code(job.num_lines, job.num_answered, job.num_failed)


async def _status(ports: JobPorts, job_id: str | None, *, as_json: bool) -> int:
    if job_id is None:
        jobs = await ports.jobs.jobs()
        typer.echo(json_text(job_list(jobs)) if as_json else "\n".join(job_table(jobs)))
    else:
        job = await known_job(ports.jobs, job_id)
        typer.echo(json_text(job_object(job)) if as_json else "\n".join(job_lines(job)))
    return OK


def _settings(config: Path | None, override: list[str] | None) -> Settings:
    settings = load_settings(config, override or ())
    brokers_of(settings)
    return settings


def _checked_id(job_id: str) -> str:
    if not re.fullmatch("job_[0-9a-f]{24}", job_id):
        raise InputError(f"expected the id of a job, job_ and 24 hexadecimal digits, got {job_id[:80]!r}")
    return job_id


def _with_jobs(settings: Settings, body: Callable[[JobPorts], Awaitable[int]]) -> int:
    async def work() -> int:
        async with open_jobs(settings) as ports:
            return await body(ports)

    return until_signal(work)

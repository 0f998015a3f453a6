"""`pice batch`: files of requests in the OpenAI Batch format."""

import typer

from pice.cli import batch_jobs
from pice.cli.batch_run import run_file

commands = typer.Typer(no_args_is_help=True, help="Answer files of requests in the OpenAI Batch format.")
commands.command("run")(run_file)
commands.command()(batch_jobs.submit)
commands.command()(batch_jobs.status)
commands.command()(batch_jobs.fetch)
commands.command()(batch_jobs.cancel)

"""`pice models`: what is in a model file, and how it comes to this machine."""

from pathlib import Path
from typing import Annotated

import typer

from pice.cli.bench import bench
from pice.cli.session import INTERRUPTED
from pice.cli.streams import note
from pice.models import lines as text
from pice.models.figures import Figures
from pice.models.memory import estimate
from pice.models.parts import read_model
from pice.models.printable import json_text
from pice.models.pull import pull_model
from pice.models.summary import summarise

SEQUENCES = (1, 2, 4, 8, 16)
MOST_TOKENS = 10_000_000

commands = typer.Typer(no_args_is_help=True, help="Look into model files (GGUF), time and download them.")
commands.command()(bench)


@commands.command()
def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file; of a split one, any part.")],
    prompt_tokens: Annotated[
        int, typer.Option(min=0, max=MOST_TOKENS, metavar="N", help="Tokens at the start that all sequences share.")
    ] = 512,
    tokens: Annotated[
        int,
        typer.Option(
            min=1, max=MOST_TOKENS, metavar="N", help="Tokens each sequence has of its own, its text included."
        ),
    ] = 512,
    n_ctx: Annotated[
        int | None, typer.Option(min=1, max=MOST_TOKENS, metavar="N", help="Also show a context of N tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Show what a model file is, and the memory it takes at 1 to 16 sequences."""
    files = read_model(file)
    summary = summarise(files)
    memory = estimate(
        Figures(file, files.first.metadata),
        sum(summary.bytes_by_type.values()),
        num_shared_tokens=prompt_tokens,
        num_own_tokens=tokens,
        sequences=SEQUENCES,
        n_ctx=n_ctx,
    )
    shown = {"model": summary, "memory": memory}
    typer.echo(json_text(shown) if as_json else "\n".join(text.lines(summary, memory)))


@commands.command()
def pull(
    source: Annotated[
        str, typer.Argument(metavar="hf:ORG/REPO:FILE[@REVISION]", help="A file of a model on the Hugging Face hub.")
    ],
    cache_dir: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to keep it; the hub's own cache if not given.")
    ] = None,
) -> None:
    """Download a model file and print its path. What was begun is gone on with; what is there is not fetched again."""
    try:
        path = pull_model(source, cache_dir, note)
    except KeyboardInterrupt:
        note("interrupted: what came so far is kept, and the same command goes on from there")
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(path)

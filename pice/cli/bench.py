"""`pice models bench`: what a model's steps take by batch size, as a table and as the curve of a configuration."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from pice.app import LlamaOptions, bench_model
from pice.cli.session import INTERRUPTED
from pice.cli.streams import note
from pice.core import Curve
from pice.errors import InputError
from pice.models.printable import json_text, shown_path
from pice.plan.curve import STEADY, Run, Timing, Workload

MOST_TOKENS, MOST_BATCH = 1 << 22, 1 << 16
COMMENT = "# in the table [engines.NAME] of this model"
HEAD = "|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |"
RULE = "|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|"


def bench(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file.")],
    prompt_tokens: Annotated[
        int,
        typer.Option("--prompt-tokens", "-npp", max=MOST_TOKENS, metavar="N", help="Tokens that all sequences share."),
    ] = 200,
    tokens: Annotated[
        int, typer.Option("--tokens", "-ntg", max=MOST_TOKENS, metavar="N", help="Tokens that each goes on for.")
    ] = 64,
    batch: Annotated[
        str, typer.Option("--batch", "-npl", metavar="N,...", help="Numbers of sequences at once.")
    ] = "1,2,4,8,16",
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, max=1024, metavar="N", help="One per core if not given.")
    ] = None,
    n_ctx: Annotated[
        int | None,
        typer.Option(
            "--n-ctx", "-c", min=1, max=MOST_TOKENS, metavar="N", help="Tokens of memory; 8192 or more as needed."
        ),
    ] = None,
    n_batch: Annotated[
        int, typer.Option("--n-batch", "-b", min=32, max=MOST_BATCH, metavar="N", help="Tokens in one step at most.")
    ] = 512,
    n_ubatch: Annotated[
        int, typer.Option("--n-ubatch", "-ub", min=32, max=MOST_BATCH, metavar="N", help="Tokens in one go of a step.")
    ] = 512,
    kv_type: Annotated[
        Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"], typer.Option(help="Of the memory's cells.")
    ] = "f16",
    flash_attn: Annotated[
        Literal["auto", "on", "off"], typer.Option("--flash-attn", "-fa", help="Attention in one pass.")
    ] = "auto",
    n_gpu_layers: Annotated[
        int, typer.Option("--n-gpu-layers", "-ngl", min=-1, max=1024, metavar="N", help="-1 is all.")
    ] = -1,
    repeat: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each; the median counts.")] = 3,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print every run, the curve and the machine as JSON.")
    ] = False,
    as_toml: Annotated[bool, typer.Option("--toml", help="Print the configuration's curve alone.")] = False,
) -> None:
    """Time a model's steps by batch size after a shared prompt, as llama-batched-bench -pps -kvu does, with drawing.

    Nothing else should run meanwhile. OpenMP's variables count as they are set.
    """
    if as_json and as_toml:
        raise InputError("expected --json or --toml, got both")
    workload = Workload(prompt_tokens, tokens, batch_sizes(batch), repeat)
    options = LlamaOptions(
        path=file,
        n_threads=threads,
        n_ctx=n_ctx,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        kv_type=kv_type,
        flash_attn=flash_attn,
        n_gpu_layers=n_gpu_layers,
    )
    try:
        measured = bench_model(options, workload, partial(_tell, workload) if sys.stderr.isatty() else lambda _: None)
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    if measured.timing.spread > STEADY:
        note(
            f"the runs of one batch size differ {measured.timing.spread:.1f}-fold, so something else had the cores and "
            "the curve may be wrong: measure again when they are free, or with fewer --threads"
        )
    snippet = toml(measured.timing.curve())
    if as_json:
        typer.echo(json_text({"path": shown_path(file), **measured.document()}))
    elif as_toml:
        typer.echo(snippet)
    else:
        typer.echo("\n".join([*table(measured.timing), measured.summary(), "", COMMENT, snippet]))


def batch_sizes(text: str) -> tuple[int, ...]:
    """The numbers in `1,2,4`.

    Raises:
        InputError: they are none.
    """
    try:
        return tuple(map(int, text.split(",")))
    except ValueError:
        raise InputError(f"batch must be whole numbers with commas between them, as 1,2,4, got {text!r}") from None


def table(timing: Timing) -> Iterator[str]:
    """With the columns of llama-batched-bench."""
    yield from (HEAD, RULE)
    for row in timing.rows():
        yield (
            f"|{row.num_prompt_tokens:>6} | {row.num_tokens:>6} | {row.batch:>4} | {row.num_cells:>6} "
            f"| {row.prefill_s:>8.3f} | {row.prefill_per_s:>8.2f} | {row.decode_s:>8.3f} | {row.decode_per_s:>8.2f} "
            f"| {row.total_s:>8.3f} | {row.total_per_s:>8.2f} |"
        )


def toml(curve: Curve) -> str:
    """As the table of an engine takes it."""
    times = ", ".join(map(str, curve.step_s))
    return (
        f"curve = {{ batch = {list(curve.batch)}, step_s = [{times}], "
        f"prefill_s_per_token = {curve.prefill_s_per_token}, base_s = {curve.base_s} }}"
    )


def _tell(workload: Workload, run: Run) -> None:
    note(f"batch {run.batch}: {run.batch * workload.num_tokens / run.decode_s:.1f} tokens/s")

"""`pice profile`: what the engines of a configuration take, measured and drawn."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated

import orjson
import typer

from pice.app.profile import Profile, profile
from pice.cli.bench import MOST_BATCH, MOST_TOKENS, batch_sizes, table, toml
from pice.cli.options import ConfigOption, SetOption, refuse_misplaced
from pice.cli.session import INTERRUPTED
from pice.cli.streams import note
from pice.config import load_settings
from pice.core import Curve
from pice.errors import InputError
from pice.loop import run_once
from pice.plan.curve import STEADY, Run, Workload
from pice.settings import Settings

_BAR = 40
EngineOption = Annotated[
    list[str] | None, typer.Option("--engine", "-e", metavar="NAME", help="Of [engines]; all of them if not given.")
]

commands = typer.Typer()


@commands.callback(invoke_without_command=True)
def measured(
    context: typer.Context,
    config: ConfigOption = None,
    override: SetOption = None,
    engine: EngineOption = None,
    prompt_tokens: Annotated[
        int,
        typer.Option("--prompt-tokens", "-npp", max=MOST_TOKENS, metavar="N", help="Tokens that all texts share."),
    ] = 200,
    tokens: Annotated[
        int, typer.Option("--tokens", "-ntg", max=MOST_TOKENS, metavar="N", help="Tokens of each text.")
    ] = 64,
    batch: Annotated[
        str | None,
        typer.Option("--batch", "-npl", metavar="N,...", help="Texts at once; 1, 2, 4 and so on if not given."),
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each; the median counts.")] = 3,
    seed: Annotated[int, typer.Option(help="Of the words of the prompts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print every run and the curves as JSON.")] = False,
    as_toml: Annotated[bool, typer.Option("--toml", help="Print the tables of a configuration alone.")] = False,
) -> None:
    """Measure what engines take: to the first token by the prompt's length, and for a step by the size of the batch.

    Each is started alone and asked as PICE asks it, so a server that others use, or a machine that is not idle, gives
    a curve that is wrong. `pice models bench FILE` times a model file without any of this.
    """
    if context.invoked_subcommand is not None:
        refuse_misplaced(context)
        return
    if as_json and as_toml:
        raise InputError("expected --json or --toml, got both")
    settings = load_settings(config, override or ())
    found = list[Profile]()
    try:
        for name in engine or settings.engines:
            workload = Workload(prompt_tokens, tokens, _sizes(settings, name, batch), repeat)
            found.append(run_once(partial(profile, settings, name, workload, seed, partial(_tell, name, workload))))
            _warn(found[-1])
    except KeyboardInterrupt:
        note("interrupted")
        raise typer.Exit(INTERRUPTED) from None
    finally:  # what was measured by then is not lost
        if as_json:
            typer.echo(orjson.dumps([_document(each) for each in found], option=orjson.OPT_INDENT_2))
        elif as_toml:
            typer.echo("\n\n".join(_snippet(each) for each in found))
        elif found:
            typer.echo("\n\n".join("\n".join(_lines(each)) for each in found))


@commands.command()
def show(config: ConfigOption = None, override: SetOption = None, engine: EngineOption = None) -> None:
    """Draw the configured curves: what a step takes by the size of the batch, and tokens per second of all texts."""
    settings = load_settings(config, override or ())
    for name in engine or settings.engines:
        _check(settings, name)
    curves = {name: settings.engines[name].curve for name in engine or settings.engines}
    typer.echo(
        "\n\n".join(
            "\n".join(drawn(name, found.curve()))
            if found
            else f"{name}: no curve; `pice profile --engine {name}` measures one"
            for name, found in curves.items()
        )
    )


def drawn(name: str, curve: Curve) -> Iterator[str]:
    """A line for each batch size; bars are of tokens per second."""
    rates = [batch / step_s for batch, step_s in zip(curve.batch, curve.step_s, strict=True)]
    yield (
        f"{name}: first token after {curve.base_s * 1e3:.3g} ms + {curve.prefill_s_per_token * 1e3:.3g} ms for each "
        "token of the prompt"
    )
    yield f"{'batch':>6} {'step ms':>9} {'tokens/s':>9}"
    for batch, step_s, rate in zip(curve.batch, curve.step_s, rates, strict=True):
        yield f"{batch:>6} {step_s * 1e3:>9.3g} {rate:>9.4g} {'█' * max(1, round(_BAR * rate / max(rates)))}"


def _sizes(settings: Settings, name: str, batch: str | None) -> tuple[int, ...]:
    """Those asked for, or the powers of two that the engine decodes at once, and the most it does."""
    _check(settings, name)
    if batch is not None:
        return batch_sizes(batch)
    most = min(settings.engines[name].num_at_once, MOST_BATCH)
    sizes = [1 << bit for bit in range(most.bit_length()) if 1 << bit <= most]
    return tuple(sizes if sizes[-1] == most else [*sizes, most])


def _check(settings: Settings, name: str) -> None:
    if name not in settings.engines:
        raise InputError(f"--engine: expected one of {', '.join(sorted(settings.engines))}, got {name!r}")


def _warn(found: Profile) -> None:
    if found.timing.spread > STEADY:
        note(
            f"{found.engine}: the runs of one batch size differ {found.timing.spread:.1f}-fold, so something else was "
            "at work and the curve may be wrong: measure again when nothing is"
        )


def _lines(found: Profile) -> Iterator[str]:
    yield f"{found.engine}: {found.model}, ready after {found.load_s:.2f} s"
    yield from table(found.timing)
    yield ""
    yield _snippet(found)


def _snippet(found: Profile) -> str:
    return f"[engines.{found.engine}]\n{toml(found.timing.curve())}"


def _document(found: Profile) -> Mapping[str, object]:
    timing = found.timing
    return {
        "engine": found.engine,
        "model": found.model,
        "load_s": found.load_s,
        "workload": timing.workload,
        "runs": timing.runs,
        "curve": timing.curve(),
    }


def _tell(name: str, workload: Workload, run: Run) -> None:
    note(f"{name}, batch {run.batch}: {run.batch * workload.num_tokens / run.decode_s:.1f} tokens/s")

"""`python -m bench` runs every benchmark; `python -m bench NAME` runs one."""

import typer

from bench import (
    agreement,
    brokers,
    demo,
    drill,
    eager,
    engine,
    ensemble,
    pipeline,
    planning,
    predictors,
    testbed,
    threads,
)
from bench.report import QuickOption
from pice.errors import ConfigError

COMMANDS = {
    "pipeline": pipeline.command,
    "eager": eager.command,
    "engine": engine.command,
    "agreement": agreement.command,
    "threads": threads.command,
    "demo": demo.command,
    "ensemble": ensemble.command,
    "testbed": testbed.command,
    "predictors": predictors.command,
    "planning": planning.command,
    "brokers": brokers.command,
    "drill": drill.command,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
for name, run in COMMANDS.items():
    app.command(name)(run)


@app.callback(invoke_without_command=True)
def everything(context: typer.Context, quick: QuickOption = False) -> None:
    """Runs one benchmark, or without a name all of them, one after another."""
    context.default_map = {name: {"quick": quick} for name in COMMANDS}
    if context.invoked_subcommand is None:
        for name, run in COMMANDS.items():
            try:
                run(quick=quick)
            except ConfigError as error:
                print(f"{name} is left out: {error}")


if __name__ == "__main__":
    app(prog_name="python -m bench")

"""`pice simulate`: what a deployment would do with recorded traffic, in virtual time."""

from collections.abc import Callable, Sequence
from functools import cache
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import orjson
import typer

from pice.app.simulate import Bound, Forecast, Prices, Traffic, fewest, read_bound, read_trace, simulate
from pice.cli.options import ConfigOption, SetOption
from pice.cli.streams import note
from pice.config import load_settings
from pice.errors import InputError
from pice.settings import Settings

MOST_SITES, MOST_REQUESTS = 1000, 1_000_000
SAID_EVERY = 5000
ROWS = ("cloud alone", "PICE")


def simulate_command(
    trace: Annotated[
        Path,
        typer.Argument(metavar="TRACE", help="CSV, plain or gzipped, of TIMESTAMP, ContextTokens and GeneratedTokens."),
    ],
    config: ConfigOption = None,
    override: SetOption = None,
    sites: Annotated[
        int | None, typer.Option(min=0, max=MOST_SITES, metavar="N", help="So many, of the configured kinds in turn.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, max=1e6, metavar="R", help="Requests a second, instead of the trace's.")
    ] = None,
    requests: Annotated[
        int | None,
        typer.Option(min=2, max=MOST_REQUESTS, metavar="N", help="So many; the trace is begun again as needed."),
    ] = None,
    suited: Annotated[
        float, typer.Option(min=0, max=1, metavar="SHARE", help="Of the questions that the cloud model would sketch.")
    ] = 0.46,
    slo: Annotated[
        list[str] | None, typer.Option(metavar="TIME=SECONDS", help="Like e2e_p95=8 or ttft_p50=1; may be repeated.")
    ] = None,
    find: Annotated[
        Literal["sites"] | None, typer.Option(help="Look for the fewest sites that keep every --slo.")
    ] = None,
    cloud_price: Annotated[float, typer.Option(min=0, metavar="P", help="Of an hour of the cloud model.")] = 0.0,
    site_price: Annotated[float, typer.Option(min=0, metavar="P", help="Of an hour of a site.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same figures.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Predict throughput, latency, use and cost of a deployment under recorded traffic, beside the cloud alone.

    The real nodes run in virtual time; models take the time that the curves of their engines say. How good the answers
    are it does not tell.
    """
    bounds = [read_bound(text) for text in slo or ()]
    if find and not bounds:
        raise InputError("--find: expected what must be kept, like --slo e2e_p95=8, got no --slo")
    if find and sites is not None:
        raise InputError("expected --find or --sites, got both")
    settings = load_settings(config, override or ())
    traffic = Traffic(read_trace(trace), rate, requests, suited)

    _warn(settings)
    meter = _Meter(requests or len(traffic.arrivals))

    @cache
    def played(num_sites: int | None) -> Forecast:
        meter.begin(f"{'as configured' if num_sites is None else num_sites} sites")
        prices = Prices(cloud_price, site_price)
        return simulate(settings, traffic, seed, num_sites=num_sites, bounds=bounds, prices=prices, on_end=meter.ended)

    if find:
        sites = _fewest(settings, played, bounds)
    found = dict(zip(ROWS, (played(0), played(sites)), strict=True))
    if as_json:
        shown = {"sites": len(settings.sites) if sites is None else sites, "seed": seed, "forecasts": found}
        typer.echo(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    else:
        typer.echo("\n".join(lines(found, bounds)))


class _Meter:
    """Says how far a long run is."""

    def __init__(self, num_requests: int) -> None:
        self._num_requests = num_requests
        self._what = ""
        self._num_ended = 0

    def begin(self, what: str) -> None:
        self._what, self._num_ended = what, 0

    def ended(self) -> None:
        self._num_ended += 1
        if self._num_ended % SAID_EVERY == 0:
            note(f"{self._what}: {self._num_ended} of {self._num_requests} requests")


def _warn(settings: Settings) -> None:
    at_once = settings.engines[settings.cloud.engine].num_at_once
    if settings.cloud.max_inflight < at_once:
        note(
            f"cloud.max_inflight = {settings.cloud.max_inflight} keeps the cloud model from being full: "
            f"it decodes {at_once} at once"
        )


def _fewest(settings: Settings, played: Callable[[int], Forecast], bounds: Sequence[Bound]) -> int:
    """What fails with the cloud alone is not held against sites: such prompts are too long for it."""
    if not settings.sites:
        raise InputError("--find sites: expected a configuration with a site of the kind to have more of, got none")
    excused = played(0).failures
    if excused:
        note("not counted, since the cloud alone fails too: " + ", ".join(f"{n} {code}" for code, n in excused.items()))

    @cache
    def excess(num_sites: int) -> float:
        found = played(num_sites)
        times = [f"{each.name} {found.times_s.get(each.name, inf):.2f} s" for each in bounds]
        note(f"{num_sites} sites: {', '.join(times)}, {found.num_failed} failed")
        return found.excess(bounds, excused)

    found = fewest(excess, MOST_SITES)
    if found is None:
        raise InputError("no number of sites keeps that: an answer of the cloud, or one segment, takes longer")
    note(f"{found} sites are enough")
    return found


def lines(found: dict[str, Forecast], bounds: Sequence[Bound]) -> list[str]:
    """A figure a line, a deployment a column."""
    codes = sorted({code for it in found.values() for code in it.failures})
    names = dict.fromkeys(name for it in found.values() for name in it.times_s)
    rows = [
        ("", list(found)),
        ("requests", [f"{it.num_requests}" for it in found.values()]),
        *((f"failed: {code}", [f"{it.failures.get(code, 0)}" for it in found.values()]) for code in codes),
        ("degraded", [f"{it.num_degraded}" for it in found.values()]),
        ("answers/s", [f"{it.answers_per_s:.2f}" for it in found.values()]),
        *((name, [_seconds(it, name) for it in found.values()]) for name in names),
        ("sketched", [f"{it.progressive:.0%}" for it in found.values()]),
        ("cloud tokens/token", [f"{it.cloud_tokens:.2f}" for it in found.values()]),
        ("edge tokens/token", [f"{it.edge_tokens:.2f}" for it in found.values()]),
        ("edge use", [f"{it.edge_use:.0%}" for it in found.values()]),
    ]
    if bounds:
        rows.append(("within the SLO/s", [f"{it.good_per_s:.2f}" for it in found.values()]))
    if any(it.cost for it in found.values()):
        rows.append(("cost of 1,000", ["-" if it.cost is None else f"{it.cost:.2f}" for it in found.values()]))
    return [f"{name:32}" + "".join(f"{value:>14}" for value in values) for name, values in rows]


def _seconds(it: Forecast, name: str) -> str:
    return f"{it.times_s[name]:.2f} s" if name in it.times_s else "-"

"""Settings and a trace -> what the deployment would do with that traffic, in virtual time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from pice.app.nodes import cloud_policy, ensemble_policy, plan_policy
from pice.errors import ConfigError
from pice.node.edge import EdgePolicy
from pice.plan.base import TOKENS_PER_WORD
from pice.settings import LlamaCppSettings, Settings
from pice.simulation.cluster import Policies, seeded
from pice.simulation.forecast import FREE, forecast
from pice.simulation.forecast import Bound as Bound
from pice.simulation.forecast import Forecast as Forecast
from pice.simulation.forecast import Prices as Prices
from pice.simulation.forecast import fewest as fewest
from pice.simulation.forecast import read_bound as read_bound
from pice.simulation.lengths import Known, Sketching
from pice.simulation.play import Ask, Deployment, Model, Site, play
from pice.simulation.trace import Arrival as Arrival
from pice.simulation.trace import read_trace as read_trace

LEAST_POINTS = 2
"""A sketch of fewer is none."""
_ONE_WORD = "aaa "
"""As long as tokens are taken to be, and one of them to an emulated engine."""
_TICK_S = 1e-3


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is asked: a trace, `rate` requests a second instead of its own where one is given, so many of them, and the
    share of questions that the cloud model would sketch."""

    arrivals: Sequence[Arrival]
    rate: float | None = None
    num_requests: int | None = None
    suited: float = 0.46


def simulate(
    settings: Settings,
    traffic: Traffic,
    seed: int,
    *,
    num_sites: int | None = None,
    bounds: Sequence[Bound] = (),
    prices: Prices = FREE,
    on_end: Callable[[], object] = lambda: None,
) -> Forecast:
    """Plays the traffic on the deployment that the settings describe, or on one with so many sites of the same kinds.
    `on_end` is called as each request ends.

    Raises:
        ConfigError: an engine's curve is not known, or there is no site to have more of.
    """
    deployment, timeout_s = deployment_of(settings, num_sites), settings.limits.request_timeout_s
    played = play(deployment, asks(settings, traffic, seed), seed, timeout_s=timeout_s, on_end=on_end)
    return forecast(deployment, played, bounds, prices)


def deployment_of(settings: Settings, num_sites: int | None = None) -> Deployment:
    """What is simulated. All sites have the window and the order of the first. Raises as `simulate`."""
    kinds = {
        name: Site(tuple(_model(engine, settings) for engine in site.engines), site.rtt_s)
        for name, site in settings.sites.items()
    }
    if num_sites and not kinds:
        raise ConfigError("sites: expected one at least, of whose kind there could be more, got none")
    first = next(iter(settings.sites.values()), None)
    edge = EdgePolicy() if first is None else EdgePolicy(window=first.window, order=first.order)
    return Deployment(
        _model(settings.cloud.engine, settings),
        dict(islice(_named(kinds), len(kinds) if num_sites is None else num_sites)),
        Policies(plan_policy(settings), cloud_policy(settings), edge, ensemble_policy(settings)),
        Sketching(ratio=settings.planner.sketch_ratio),
        max_open=settings.limits.max_open_requests,
    )


def _named(kinds: Mapping[str, Site]) -> Iterator[tuple[str, Site]]:
    """Without end: as they are, then again under new names."""
    yield from kinds.items()
    names = set(kinds)
    for number in count(2):
        for kind, site in kinds.items():
            name = next(name for more in count() if (name := f"{kind}-{number + more}") not in names)
            names.add(name)
            yield name, site


def asks(settings: Settings, traffic: Traffic, seed: int) -> list[Ask]:
    """The requests. The trace is gone through again as often as that takes, or only in part."""
    num = traffic.num_requests or len(traffic.arrivals)
    arrivals = traffic.arrivals[:num]
    last_s = max(arrivals[-1].at_s, _TICK_S)
    span_s = last_s * len(arrivals) / (len(arrivals) - 1)
    scale = 1.0 if traffic.rate is None else len(arrivals) / span_s / traffic.rate
    least_tokens = LEAST_POINTS * settings.planner.segment_words * TOKENS_PER_WORD
    draw, found = seeded(seed, "suited"), list[Ask]()
    for number in range(num):
        arrival = arrivals[number % len(arrivals)]
        suits = draw.random() < traffic.suited and arrival.num_tokens >= least_tokens
        at_s = (number // len(arrivals) * span_s + arrival.at_s) * scale
        found.append(Ask(at_s, _ONE_WORD * arrival.num_prompt_tokens, Known(arrival.num_tokens, suits)))
    return found


def _model(name: str, settings: Settings) -> Model:
    engine = settings.engines[name]
    if engine.curve is None:
        raise ConfigError(
            f"engines.{name}.curve: expected how long its steps take, got none: `pice profile --engine {name}` "
            "measures it"
        )
    if isinstance(engine, LlamaCppSettings):
        return Model(engine.path.stem, engine.curve.curve(), engine.num_at_once, engine.n_ctx)
    return Model(engine.model, engine.curve.curve(), engine.num_at_once, engine.context_tokens)

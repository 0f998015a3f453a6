"""Settings -> how many requests of a batch are asked at once, and how long each may take."""

from pice.settings import Settings


def requests_at_once(settings: Settings, wanted: int | None = None) -> int:
    """As many as are `wanted`, or else as all models work on together: while the edge expands one request the cloud
    model sketches the next. Never more than may be open."""
    edges = sum(settings.engines[name].num_at_once for site in settings.sites.values() for name in site.engines)
    return min(settings.limits.max_open_requests, wanted or _at_the_cloud(settings) + edges)


def line_timeout_s(settings: Settings, at_once: int) -> float:
    """The time of a line that names none: a request's own for each round in which the cloud model may have to serve
    others of this batch first."""
    rounds = -(-at_once // _at_the_cloud(settings))
    return rounds * settings.limits.request_timeout_s


def _at_the_cloud(settings: Settings) -> int:
    return min(settings.cloud.max_inflight, settings.engines[settings.cloud.engine].num_at_once)

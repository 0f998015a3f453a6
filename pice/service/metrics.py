"""What nodes tell -> metrics for Prometheus. Nothing else imports `prometheus_client`.

Every metric is described in docs/metrics.md. Label values stay few whatever a message says: the names of sites and
models are believed of what a node itself placed, wrote or was told to count; any other is "other".
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pice.core import Answer, Candidate, Failure, Placement, Plan, Span
from pice.node.load import Load
from pice.node.telemetry import Telemetry
from pice.service.health import Health
from pice.service.names import NONE, Names
from pice.store.base import Counted

Registry = CollectorRegistry
"""What `serve_health` shows."""

_TIMES_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 30, 60, 120, 300)
_NUM_TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_AT_MODEL = ("site", "model")

# When each counter began would double what is sent; when the process began is told anyway.
disable_created_metrics()  # type: ignore[no-untyped-call] # it has no annotations


class PrometheusTelemetry(Telemetry):
    """Counts into `registry`, a registry of its own. Called from the event loop's thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        Info("pice_build", "What runs here.", registry=self.registry).info({"version": version("pice")})
        self._counts = _Counts(self.registry)
        self._times = _Times(self.registry)
        self._gauges = _Gauges(self.registry)
        self._sites, self._models, self._words = Names(1000), Names(200), Names(100)

    def planned(self, plan: Plan) -> None:
        self._counts.plans.labels(plan.mode, self._words.seen(plan.reason)).inc()

    def placed(self, placement: Placement) -> None:
        at = self._at(placement.site, placement.model)
        self._counts.placed.labels(*at, self._words.seen(placement.reason)).inc()

    def written(self, candidate: Candidate) -> None:
        at = self._at(candidate.site, candidate.model)
        self._counts.written.labels(*at, "failed" if candidate.error else "written").inc()
        if candidate.error:
            return
        self._counts.prompt_tokens.labels(*at).inc(max(0, candidate.num_prompt_tokens))
        self._counts.cached_tokens.labels(*at).inc(max(0, candidate.num_cached_tokens))
        self._counts.output_tokens.labels(*at).inc(max(0, candidate.num_output_tokens))
        _observe(self._times.edge_queue.labels(*at), candidate.queue_s)
        _observe(self._times.edge_service.labels(*at), candidate.service_s)
        _observe(self._times.candidate_tokens.labels(*at), candidate.num_output_tokens)

    def counted(self, candidate: Candidate, counted: Counted) -> None:
        if counted in (Counted.NEW, Counted.REPEATED):
            at = self._at(candidate.site, candidate.model)
        else:
            at = self._sites.known(candidate.site), self._models.known(candidate.model)
        self._counts.counted.labels(*at, counted.value).inc()

    def forged(self, site: str) -> None:
        self._counts.forged.labels(self._sites.known(site)).inc()

    def chosen(self, span: Span) -> None:
        at = self._at(span.site, span.model)
        self._counts.chosen.labels(*at, "true" if span.degraded else "false").inc()
        if span.placements:
            first_s = min(placement.placed_s for placement in span.placements)
            _observe(self._times.segment, span.chosen_s - first_s)

    def closed(self, outcome: Answer | Failure) -> None:
        if isinstance(outcome, Failure):
            self._counts.closed.labels(NONE, self._words.seen(outcome.code)).inc()
        else:
            self._answered(outcome)

    def retried(self, topic: str) -> None:
        self._counts.retried.labels(self._words.seen(topic)).inc()

    def buried(self, topic: str) -> None:
        self._counts.buried.labels(self._words.seen(topic)).inc()

    def watch_load(self, site: str, model: str, load: Load) -> None:
        """Shows what an engine of this process has still to write; a later load of the same model takes its place."""
        at = self._at(site, model)
        self._gauges.outstanding.labels(*at).set_function(lambda: load.num_outstanding)
        self._gauges.backlog.labels(*at).set_function(lambda: load.backlog_tokens)

    def watch_requests(self, node: str, count: Callable[[], int]) -> None:
        """Shows how many requests a node of this process works on; a later count for the same takes its place."""
        self._gauges.in_hand.labels(node).set_function(count)

    def lease_held(self, site: str, *, held: bool) -> None:
        """Shows whether this process holds a site's lease."""
        self._gauges.lease_held.labels(self._sites.seen(site)).set(held)

    def _at(self, site: str, model: str) -> tuple[str, str]:
        return self._sites.seen(site), self._models.seen(model)

    def _answered(self, answer: Answer) -> None:
        mode, times, usage = answer.mode, answer.times, answer.usage
        self._counts.closed.labels(mode, "answered").inc()
        self._counts.degraded.labels(mode).inc(bool(answer.degraded))
        _observe(self._times.e2e.labels(mode), times.e2e_s)
        _observe(self._times.request_queue.labels(mode), times.queue_s)
        if times.ttft_s:
            _observe(self._times.ttft.labels(mode), times.ttft_s)
        if times.sketch_s:
            _observe(self._times.sketch, times.sketch_s)
        for kind, num_tokens in (
            ("cloud_prompt", usage.num_cloud_prompt_tokens),
            ("cloud_output", usage.num_cloud_output_tokens),
            ("edge_prompt", usage.num_edge_prompt_tokens),
            ("edge_output", usage.num_edge_output_tokens),
            ("edge_discarded", usage.num_discarded_tokens),
            ("answer", usage.num_answer_tokens),
        ):
            self._counts.usage.labels(kind).inc(max(0, num_tokens))


@contextmanager
def health_metrics(registry: CollectorRegistry, health: Health) -> Iterator[None]:
    """The registry shows the health while the block lasts."""
    collector = _HealthMetrics(health)
    registry.register(collector)
    try:
        yield
    finally:
        registry.unregister(collector)


def exposition(registry: CollectorRegistry, accept: str) -> tuple[str, bytes]:
    """All metrics as they are now, with their content type: OpenMetrics if `accept` names it, else Prometheus's own
    text. May be called from any thread."""
    encode, content_type = choose_encoder(accept)
    return content_type, encode(registry)


class _Counts:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str, *labels: str) -> Counter:
            return Counter(f"pice_{name}", meaning, labels, registry=registry)

        self.plans = counter("plans", "Decisions how a request is answered.", "mode", "reason")
        self.placed = counter("segments_placed", "Segments published to a site.", *_AT_MODEL, "reason")
        self.written = counter("candidates_written", "Candidates published by this site.", *_AT_MODEL, "outcome")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of candidates.", *_AT_MODEL)
        self.cached_tokens = counter("cached_tokens", "Prompt tokens that were in memory.", *_AT_MODEL)
        self.output_tokens = counter("output_tokens", "Tokens written in candidates.", *_AT_MODEL)
        self.counted = counter("candidates_counted", "Candidates seen by a collector.", *_AT_MODEL, "outcome")
        self.forged = counter("candidates_forged", "Candidates whose signature was refused.", "site")
        self.chosen = counter("segments_chosen", "Segments that have their text.", *_AT_MODEL, "degraded")
        self.closed = counter("requests_closed", "Requests that ended.", "mode", "outcome")
        self.degraded = counter("answers_degraded", "Answers with a part that no model vouches for.", "mode")
        self.usage = counter("answer_tokens", "Tokens spent on answers, by where.", "kind")
        self.retried = counter("deliveries_retried", "Deliveries given back.", "topic")
        self.buried = counter("dead_letters", "Messages put aside.", "topic")


class _Times:
    def __init__(self, registry: CollectorRegistry) -> None:
        def times(name: str, meaning: str, *labels: str) -> Histogram:
            return Histogram(f"pice_{name}_seconds", meaning, labels, registry=registry, buckets=_TIMES_S)

        self.ttft = times("ttft", "Opened to the first text of the answer.", "mode")
        self.e2e = times("e2e", "Opened to answered.", "mode")
        self.request_queue = times("request_queue", "Opened to taken by a cloud node.", "mode")
        self.sketch = times("sketch", "Opened to the end of the sketch.")
        self.segment = times("segment", "A segment's first placement to its choice.")
        self.edge_queue = times("edge_queue", "A segment's wait at its site.", *_AT_MODEL)
        self.edge_service = times("edge_service", "A segment being written.", *_AT_MODEL)
        self.candidate_tokens = Histogram(
            "pice_candidate_tokens", "Tokens of a candidate.", _AT_MODEL, registry=registry, buckets=_NUM_TOKENS
        )


class _Gauges:
    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str, *labels: str) -> Gauge:
            return Gauge(f"pice_{name}", meaning, labels, registry=registry)

        self.outstanding = gauge("outstanding_generations", "Generations queued or running here.", *_AT_MODEL)
        self.backlog = gauge("backlog_tokens", "Tokens they have still to write.", *_AT_MODEL)
        self.in_hand = gauge("requests_in_hand", "Requests that a node here works on.", "node")
        self.lease_held = gauge("lease_held", "1 where this process holds the site's lease.", "site")


class _HealthMetrics(Collector):
    def __init__(self, health: Health) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        health = self._health
        yield GaugeMetricFamily("pice_ready", "1 where work should be sent here.", value=health.is_ready)
        yield GaugeMetricFamily("pice_loop_stalled_seconds", "Since the event loop turned.", value=health.stalled_s)
        components = GaugeMetricFamily("pice_component_up", "1 where it serves.", labels=["component"])
        for name, is_up in health.components.items():
            components.add_metric([name], is_up)
        yield components


def _observe(histogram: Histogram, value: float) -> None:
    """Clocks of two reads, and foreign numbers: nothing that would spoil a sum for good."""
    if math.isfinite(value):
        histogram.observe(max(0.0, value))

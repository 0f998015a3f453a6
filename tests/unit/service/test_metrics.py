"""What is told is counted, under labels of which there are never too many."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from pice.core import Answer, Candidate, Failure, Placement, Plan, Point, Span, Times, Usage
from pice.node.load import Load
from pice.service.health import Health
from pice.service.metrics import PrometheusTelemetry, exposition, health_metrics
from pice.service.names import Names
from pice.store.base import Counted

PLAN = Plan("progressive", "predicted to be faster by more than the margin")
PLACEMENT = Placement("paris", "small", 10.0, 12.0, "hedge")
CANDIDATE = Candidate(
    "r-1",
    1,
    0,
    "paris",
    "small",
    "text",
    num_prompt_tokens=50,
    num_cached_tokens=30,
    num_output_tokens=20,
    queue_s=0.2,
    service_s=3.0,
)
SPAN = Span(0, "text", "paris", "small", 0.7, placements=(replace(PLACEMENT, placed_s=11.0), PLACEMENT), chosen_s=13.0)
ANSWER = Answer(
    "r-1",
    "text",
    "progressive",
    "stop",
    1,
    PLAN,
    sketch=(Point(0, "point", 20),),
    spans=(SPAN,),
    degraded=(0,),
    usage=Usage(100, 40, 50, 20, 5, 15),
    times=Times(queue_s=0.1, sketch_s=1.5, ttft_s=2.0, e2e_s=6.0),
)


@pytest.fixture
def telemetry() -> PrometheusTelemetry:
    return PrometheusTelemetry()


def value(telemetry: PrometheusTelemetry, name: str, **labels: str) -> float | None:
    """Of a sample; None where it does not exist."""
    return telemetry.registry.get_sample_value(name, labels)


def test_plan_is_counted_by_mode_and_reason(telemetry: PrometheusTelemetry) -> None:
    telemetry.planned(PLAN)
    telemetry.planned(PLAN)
    assert value(telemetry, "pice_plans_total", mode="progressive", reason=PLAN.reason) == 2


def test_placement_is_counted_by_its_reason(telemetry: PrometheusTelemetry) -> None:
    telemetry.placed(PLACEMENT)
    assert value(telemetry, "pice_segments_placed_total", site="paris", model="small", reason="hedge") == 1


def test_candidate_that_was_written_counts_its_tokens_and_times(telemetry: PrometheusTelemetry) -> None:
    telemetry.written(CANDIDATE)
    at = {"site": "paris", "model": "small"}
    names = ("prompt_tokens_total", "cached_tokens_total", "output_tokens_total", "candidate_tokens_sum")
    assert [value(telemetry, f"pice_{name}", **at) for name in names] == [50, 30, 20, 20]
    assert value(telemetry, "pice_candidates_written_total", **at, outcome="written") == 1
    assert value(telemetry, "pice_edge_queue_seconds_bucket", **at, le="0.25") == 1
    assert value(telemetry, "pice_edge_queue_seconds_bucket", **at, le="0.1") == 0
    assert value(telemetry, "pice_edge_service_seconds_sum", **at) == 3


def test_candidate_that_failed_is_counted_and_spoils_no_times(telemetry: PrometheusTelemetry) -> None:
    telemetry.written(replace(CANDIDATE, error="out of memory"))
    at = {"site": "paris", "model": "small"}
    assert value(telemetry, "pice_candidates_written_total", **at, outcome="failed") == 1
    assert value(telemetry, "pice_edge_service_seconds_count", **at) is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf"), -5.0])
def test_impossible_time_or_count_in_a_candidate_spoils_no_sum(telemetry: PrometheusTelemetry, number: float) -> None:
    telemetry.written(replace(CANDIDATE, queue_s=number, num_output_tokens=-7))
    telemetry.written(CANDIDATE)
    assert value(telemetry, "pice_edge_queue_seconds_sum", site="paris", model="small") == 0.2
    assert value(telemetry, "pice_output_tokens_total", site="paris", model="small") == 20


@pytest.mark.parametrize("counted", list(Counted))
def test_candidate_is_counted_by_what_became_of_it(telemetry: PrometheusTelemetry, counted: Counted) -> None:
    telemetry.placed(PLACEMENT)
    telemetry.counted(CANDIDATE, counted)
    name = "pice_candidates_counted_total"
    assert value(telemetry, name, site="paris", model="small", outcome=counted.value) == 1


def test_chosen_segment_takes_from_its_first_placement_to_its_choice(telemetry: PrometheusTelemetry) -> None:
    telemetry.chosen(SPAN)
    telemetry.chosen(Span(1, "the sketch", "cloud", "", 0.0, degraded=True))
    name = "pice_segments_chosen_total"
    assert value(telemetry, name, site="paris", model="small", degraded="false") == 1
    assert value(telemetry, name, site="cloud", model="none", degraded="true") == 1
    assert value(telemetry, "pice_segment_seconds_sum") == 3
    assert value(telemetry, "pice_segment_seconds_count") == 1


def test_answer_is_counted_with_its_times_and_tokens(telemetry: PrometheusTelemetry) -> None:
    telemetry.closed(ANSWER)
    assert value(telemetry, "pice_requests_closed_total", mode="progressive", outcome="answered") == 1
    assert value(telemetry, "pice_answers_degraded_total", mode="progressive") == 1
    names = ("request_queue", "ttft", "e2e")
    assert [value(telemetry, f"pice_{name}_seconds_sum", mode="progressive") for name in names] == [0.1, 2, 6]
    assert value(telemetry, "pice_sketch_seconds_sum") == 1.5
    kinds = ("cloud_prompt", "cloud_output", "edge_prompt", "edge_output", "edge_discarded", "answer")
    assert [value(telemetry, "pice_answer_tokens_total", kind=kind) for kind in kinds] == [100, 40, 50, 20, 5, 15]


def test_direct_answer_has_no_sketch_and_is_not_degraded(telemetry: PrometheusTelemetry) -> None:
    telemetry.closed(replace(ANSWER, mode="cloud", degraded=(), times=Times(ttft_s=0.3, e2e_s=2.0)))
    assert value(telemetry, "pice_sketch_seconds_count") == 0
    assert value(telemetry, "pice_answers_degraded_total", mode="cloud") == 0


def test_failure_is_counted_by_its_code(telemetry: PrometheusTelemetry) -> None:
    telemetry.closed(Failure("r-1", "deadline_exceeded", "late"))
    assert value(telemetry, "pice_requests_closed_total", mode="none", outcome="deadline_exceeded") == 1


def test_deliveries_given_back_and_put_aside_are_counted_by_topic(telemetry: PrometheusTelemetry) -> None:
    telemetry.retried("pice.segments.main")
    telemetry.buried("pice.requests")
    assert value(telemetry, "pice_deliveries_retried_total", topic="pice.segments.main") == 1
    assert value(telemetry, "pice_dead_letters_total", topic="pice.requests") == 1


def test_load_is_shown_as_it_is_and_a_later_one_takes_its_place(telemetry: PrometheusTelemetry) -> None:
    load, later = Load(), Load()
    telemetry.watch_load("paris", "small", load)
    share = load.add(100)
    load.add(50)
    share.wrote(30)
    at = {"site": "paris", "model": "small"}
    assert value(telemetry, "pice_outstanding_generations", **at) == 2
    assert value(telemetry, "pice_backlog_tokens", **at) == 120
    telemetry.watch_load("paris", "small", later)
    assert value(telemetry, "pice_outstanding_generations", **at) == 0


def test_lease_and_requests_in_hand_are_shown(telemetry: PrometheusTelemetry) -> None:
    in_hand = ["r-1", "r-2"]
    telemetry.watch_requests("cloud", lambda: len(in_hand))
    telemetry.lease_held("paris", held=True)
    telemetry.lease_held("lyon", held=True)
    telemetry.lease_held("lyon", held=False)
    assert value(telemetry, "pice_requests_in_hand", node="cloud") == 2
    assert value(telemetry, "pice_lease_held", site="paris") == 1
    assert value(telemetry, "pice_lease_held", site="lyon") == 0


def test_health_is_shown_while_it_is_watched(telemetry: PrometheusTelemetry) -> None:
    health = Health()
    health.up("kafka")
    health.down("redis", "away")
    with health_metrics(telemetry.registry, health):
        assert value(telemetry, "pice_ready") == 0
        assert value(telemetry, "pice_component_up", component="kafka") == 1
        assert value(telemetry, "pice_component_up", component="redis") == 0
        health.up("redis")
        health.started()
        assert value(telemetry, "pice_ready") == 1
    assert value(telemetry, "pice_ready") is None


def sites(telemetry: PrometheusTelemetry) -> set[str]:
    return {
        sample.labels["site"]
        for family in telemetry.registry.collect()
        for sample in family.samples
        if "site" in sample.labels
    }


def forge(telemetry: PrometheusTelemetry, name: str) -> None:
    telemetry.forged(name)


def hand_in_stale(telemetry: PrometheusTelemetry, name: str) -> None:
    telemetry.counted(replace(CANDIDATE, site=name, model=name), Counted.STALE)


def hand_in_foreign(telemetry: PrometheusTelemetry, name: str) -> None:
    telemetry.counted(replace(CANDIDATE, site=name, model=name), Counted.FOREIGN)


@pytest.mark.parametrize("attack", [forge, hand_in_stale, hand_in_foreign])
def test_site_that_only_a_refused_candidate_names_is_other(
    telemetry: PrometheusTelemetry, attack: Callable[[PrometheusTelemetry, str], None]
) -> None:
    telemetry.placed(PLACEMENT)
    for number in range(50):
        attack(telemetry, f"made-up-{number}")
    attack(telemetry, "paris")
    assert sites(telemetry) == {"paris", "other"}


def test_sites_beyond_a_thousand_are_other(telemetry: PrometheusTelemetry) -> None:
    for number in range(1100):
        telemetry.placed(replace(PLACEMENT, site=f"site-{number}"))
    telemetry.placed(PLACEMENT)
    assert len(sites(telemetry)) == 1001
    assert value(telemetry, "pice_segments_placed_total", site="other", model="small", reason="hedge") == 101


@pytest.mark.parametrize("name", ["two\nlines", "\udcff", "a" * 201, "\x00"], ids=repr)
def test_name_that_is_none_is_other(name: str) -> None:
    assert Names(10).seen(name) == "other"


def test_empty_name_is_none() -> None:
    assert Names(10).seen("") == "none"


def test_name_that_was_seen_stays_known_when_there_is_no_more_room() -> None:
    names = Names(1)
    assert [names.seen("paris"), names.seen("lyon"), names.seen("paris"), names.known("lyon")] == [
        "paris",
        "other",
        "paris",
        "other",
    ]


def told_everything() -> PrometheusTelemetry:
    telemetry = PrometheusTelemetry()
    telemetry.planned(PLAN)
    telemetry.placed(replace(PLACEMENT, site='pa"ris\\', model="größe-1"))
    telemetry.written(CANDIDATE)
    telemetry.closed(ANSWER)
    return telemetry


def test_text_exposition_is_read_by_prometheus_parser() -> None:
    content_type, body = exposition(told_everything().registry, "")
    samples = [sample for family in text_families(body.decode()) for sample in family.samples]
    placed = next(sample for sample in samples if sample.name == "pice_segments_placed_total")
    assert content_type.startswith("text/plain")
    assert placed.labels == {"site": 'pa"ris\\', "model": "größe-1", "reason": "hedge"}
    assert not [sample.name for sample in samples if sample.name.endswith("_created")]


def test_openmetrics_exposition_is_read_by_its_parser() -> None:
    content_type, body = exposition(told_everything().registry, "application/openmetrics-text")
    read = openmetrics_families(body.decode())  # type: ignore[no-untyped-call] # it has no annotations
    families = {family.name: family for family in read}
    assert content_type.startswith("application/openmetrics-text")
    assert families["pice_e2e_seconds"].type == "histogram"
    assert families["pice_build"].samples[0].value == 1

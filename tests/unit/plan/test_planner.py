from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pice.core import (
    CLOUD_SITE,
    Answer,
    Candidate,
    Curve,
    Message,
    Mode,
    ModelState,
    Plan,
    Point,
    Request,
    Sampling,
    Segment,
    SiteState,
    Usage,
)
from pice.plan.base import Target
from pice.plan.board import Option
from pice.plan.estimate import finish_s
from pice.plan.planner import EarliestFinish, PlanPolicy

FAST = Curve((1, 16), (0.02, 0.03))
SLOW = Curve((1, 16), (0.2, 0.3))
MESSAGES = (Message("user", "How do tides work?"),)
REQUEST = Request("r1", MESSAGES)


def site(
    name: str, *models: str, curve: Curve = FAST, at_s: float = 0.0, context: int = 4096, **load: int
) -> SiteState:
    states = tuple(ModelState(model, context, 8, curve, **load) for model in models or ("small",))
    return SiteState(name, CLOUD_SITE if name == CLOUD_SITE else "main", 0, states, at_s)


def planner(*sites: SiteState, policy: PlanPolicy | None = None) -> EarliestFinish:
    made = EarliestFinish(policy or PlanPolicy())
    made.see(sites)
    return made


def segment(words: int = 60, index: int = 0) -> Segment:
    point = Point(index, "the moon pulls", words)
    return Segment("r1", 1, index, "expand", MESSAGES, (point,), (point,), words, Sampling(), 100.0)


CLOUD = site(CLOUD_SITE, "big", curve=SLOW)


@pytest.mark.parametrize(
    ("sites", "mode", "reason"),
    [
        ([], "cloud", "no site is up"),
        ([CLOUD], "cloud", "no edge site is up"),
        ([site("paris")], "edge", "the cloud site is not up"),
        ([CLOUD, site("paris"), site("rome")], "progressive", "predicted to be faster"),
        ([site(CLOUD_SITE, "big"), site("paris", curve=SLOW)], "cloud", "not predicted to be faster"),
        ([site(CLOUD_SITE, "big", num_outstanding=8), site("paris", curve=SLOW)], "progressive", "saturated"),
        ([CLOUD, replace(site("paris"), draining=True)], "cloud", "no edge site is up"),
        ([CLOUD, site("paris", context=180)], "cloud", "fits no edge model's context"),
    ],
    ids=["none", "cloud-alone", "edge-alone", "slow-cloud", "slow-edge", "saturated", "draining", "too-long"],
)
def test_mode_follows_from_the_sites(sites: list[SiteState], mode: Mode, reason: str) -> None:
    plan = planner(*sites).decide(REQUEST, 20)
    assert plan.mode == mode
    assert reason in plan.reason


@pytest.mark.parametrize("mode", ["cloud", "edge", "progressive"])
def test_request_that_asks_for_a_mode_gets_it(mode: Mode) -> None:
    plan = planner(CLOUD, site("paris")).decide(replace(REQUEST, mode=mode), 20)
    assert (plan.mode, plan.reason) == (mode, "asked for by the request")


@pytest.mark.parametrize(("asked", "got"), [(None, "cloud"), ("progressive", "cloud"), ("edge", "edge")])
def test_stop_strings_are_left_to_whoever_writes_the_whole_answer(asked: Mode | None, got: Mode) -> None:
    request = replace(REQUEST, sampling=Sampling(stop=("END",)), mode=asked)
    assert planner(CLOUD, site("paris")).decide(request, 20).mode == got


def test_placement_that_was_not_carried_out_leaves_no_load() -> None:
    made = planner(CLOUD, site("paris"), site("rome"))
    first = made.place(segment(), 1.0)
    assert first is not None
    made.withdraw(segment(), first)
    assert _site(made, now_s=2.0) == first.site


def test_expected_length_is_the_median_of_what_was_seen_and_within_the_limit() -> None:
    made = planner(CLOUD, site("paris"))
    for tokens in (140, 280, 1400):
        made.learn(Answer("r", "", "cloud", "stop", 1, Plan("cloud", ""), usage=Usage(num_answer_tokens=tokens)))
    assert made.decide(REQUEST, 20).answer_words == 200
    assert made.decide(replace(REQUEST, sampling=Sampling(max_tokens=70)), 20).answer_words == 50


@given(
    st.lists(st.tuples(st.integers(0, 40), st.floats(0.001, 0.5)), min_size=0, max_size=6),
    st.integers(0, 40),
    st.floats(0.001, 0.5),
)
def test_plan_is_never_predicted_slower_than_the_cloud_unless_that_is_saturated(
    edges: list[tuple[int, float]], outstanding: int, step: float
) -> None:
    sites = [
        site(f"s{i}", curve=Curve((1,), (rate,)), num_outstanding=busy, backlog_tokens=80 * busy)
        for i, (busy, rate) in enumerate(edges)
    ]
    cloud = site(CLOUD_SITE, "big", curve=Curve((1,), (step,)), num_outstanding=outstanding)
    plan = planner(cloud, *sites).decide(REQUEST, 20)
    if plan.mode == "progressive" and outstanding < 8:
        assert plan.t_progressive_s < plan.t_cloud_s


@pytest.mark.parametrize(
    ("num_at_cloud", "num_at_sites", "words"),
    [(0, 0, 50), (8, 0, 38), (80, 0, 38), (0, 8, 63), (8, 8, 50), (4, 0, 44)],
    ids=["idle", "busy cloud", "flooded cloud", "busy sites", "all busy", "half busy cloud"],
)
def test_sketch_is_shorter_while_the_cloud_is_busier_than_the_sites(
    num_at_cloud: int, num_at_sites: int, words: int
) -> None:
    cloud = site(CLOUD_SITE, "big", curve=SLOW, num_outstanding=num_at_cloud)
    plan = planner(cloud, *(site(name, num_outstanding=num_at_sites) for name in ("paris", "rome"))).decide(
        replace(REQUEST, mode="progressive"), 20
    )
    assert plan.sketch_words == words


EDGES = st.lists(st.tuples(st.integers(0, 40), st.floats(0.001, 0.5)), min_size=1, max_size=6)


def edge_sites(edges: list[tuple[int, float]]) -> list[SiteState]:
    return [
        site(f"s{i}", curve=Curve((1, 8), (rate, 2 * rate)), num_outstanding=busy, backlog_tokens=80 * busy)
        for i, (busy, rate) in enumerate(edges)
    ]


@given(EDGES, st.integers(0, 40), st.floats(0.001, 0.5))
def test_one_site_more_never_makes_the_prediction_worse(
    edges: list[tuple[int, float]], outstanding: int, step: float
) -> None:
    cloud = site(CLOUD_SITE, "big", curve=Curve((1,), (step,)), num_outstanding=outstanding)
    fewer, more = (planner(cloud, *edge_sites(some)).decide(REQUEST, 20) for some in (edges[:-1], edges))
    if len(edges) > 1:
        assert more.t_progressive_s <= fewer.t_progressive_s * (1 + 1e-9)
        assert more.t_edge_s <= fewer.t_edge_s


@given(EDGES, st.integers(0, 40), st.integers(1, 4096))
def test_plan_keeps_within_its_bounds(edges: list[tuple[int, float]], outstanding: int, max_tokens: int) -> None:
    policy = PlanPolicy()
    cloud = site(CLOUD_SITE, "big", num_outstanding=outstanding)
    request = replace(REQUEST, sampling=Sampling(max_tokens=max_tokens))
    plan = planner(cloud, *edge_sites(edges), policy=policy).decide(request, 20)
    assert plan.mode in ("cloud", "progressive")
    assert 1 <= plan.candidates <= plan.max_segments <= policy.max_segments
    most = policy.sketch_ratio * (1 + policy.sketch_flex) * plan.answer_words
    assert plan.sketch_words <= max(10, most + 1)


@given(EDGES, st.integers(0, 40))
def test_decisions_are_the_same_for_the_same_inputs(edges: list[tuple[int, float]], outstanding: int) -> None:
    def decided() -> list[object]:
        made = planner(site(CLOUD_SITE, "big", num_outstanding=outstanding), *edge_sites(edges))
        return [made.decide(REQUEST, 20), *(made.place(segment(index=i), float(i)) for i in range(4))]

    assert decided() == decided()


def test_sketch_has_its_usual_length_without_flex() -> None:
    cloud = site(CLOUD_SITE, "big", num_outstanding=8)
    plan = planner(cloud, site("paris"), policy=PlanPolicy(sketch_flex=0.0)).decide(REQUEST, 20)
    assert plan.sketch_words == 50


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(-200, 200)), max_size=8),
    st.integers(0, 20),
    st.integers(0, 2000),
    st.integers(0, 500),
)
def test_option_predicts_as_the_formulas_do_whatever_it_is_given(
    changes: list[tuple[int, int]], outstanding: int, num_prompt_tokens: int, num_tokens: int
) -> None:
    curve = Curve((1, 8), (0.01, 0.03), prefill_s_per_token=0.001, base_s=0.02)
    option = Option(Target("paris", "m"), 0.05, 4096, 8, curve, outstanding, 60 * outstanding)
    for change in [(0, 0), *changes]:
        option.add(*change)
        expected_s = finish_s(option, num_prompt_tokens, num_tokens, 0.05)
        assert option.finish_s(num_prompt_tokens, num_tokens) == pytest.approx(expected_s)
        assert option.copy().finish_s(num_prompt_tokens, num_tokens) == pytest.approx(expected_s)


def test_segment_goes_where_it_is_finished_first() -> None:
    placement = planner(CLOUD, site("paris", curve=SLOW), site("rome")).place(segment(), 5.0)
    assert placement is not None
    assert (placement.site, placement.model, placement.placed_s) == ("rome", "small", 5.0)
    assert placement.expected_s == pytest.approx(5.0 + 60 * 1.4 * 0.02)


def test_segments_spread_as_sites_fill_up() -> None:
    made = planner(CLOUD, site("paris"), site("rome"))
    placed = [made.place(segment(index=i), 0.0) for i in range(4)]
    assert sorted(p.site for p in placed if p) == ["paris", "paris", "rome", "rome"]


def test_cloud_is_used_only_when_no_edge_site_is_left() -> None:
    made = planner(site(CLOUD_SITE, "big"), site("paris", curve=SLOW))
    first = made.place(segment(), 0.0)
    second = made.place(segment(), 0.0, exclude={Target("paris", "small")})
    third = made.place(segment(), 0.0, exclude={Target("paris", "small"), Target(CLOUD_SITE, "big")})
    assert [p and p.site for p in (first, second, third)] == ["paris", CLOUD_SITE, None]


def test_second_opinion_comes_from_another_model_or_not_at_all() -> None:
    made = planner(CLOUD, site("paris", "a", "b"), site("rome", "a"))
    other = made.place(segment(), 0.0, exclude_models={"a"}, where="edge")
    assert other is not None
    assert other.model == "b"
    assert made.place(segment(), 0.0, exclude_models={"a", "b"}, where="edge") is None


def test_segment_too_long_for_a_context_goes_elsewhere() -> None:
    made = planner(site(CLOUD_SITE, "big", curve=SLOW), site("paris", context=128))
    placement = made.place(segment(words=300), 0.0)
    assert placement is not None
    assert placement.site == CLOUD_SITE


def test_placements_count_until_a_later_heartbeat_contains_them() -> None:
    made = planner(CLOUD, site("paris", at_s=1.0), site("rome", at_s=1.0))
    assert [_site(made, now_s=2.0), _site(made, now_s=2.0)] == ["paris", "rome"]
    made.see([CLOUD, site("paris", at_s=1.5), site("rome", at_s=3.0)])
    assert _site(made, now_s=4.0) == "rome"


def test_finished_candidate_makes_its_site_free_again() -> None:
    made = planner(CLOUD, site("paris"), site("rome", curve=Curve((1, 16), (0.021, 0.031))))
    assert _site(made) == "paris"
    made.finished(Candidate("r1", 1, 0, "paris", "small", "", num_output_tokens=84))
    assert _site(made) == "paris"


def test_address_is_kept_for_a_site_that_fell_silent() -> None:
    made = planner(CLOUD, site("paris"))
    made.see([CLOUD])
    assert made.address("paris") == ("main", 0)
    with pytest.raises(KeyError):
        made.address("atlantis")


def _site(made: EarliestFinish, now_s: float = 0.0) -> str | None:
    placement = made.place(segment(), now_s)
    return placement.site if placement else None


def test_plan_wants_as_many_candidates_as_the_policy() -> None:
    made = planner(site(CLOUD_SITE, "large", curve=SLOW), site("a"), site("b"), policy=PlanPolicy(candidates=2))
    assert made.decide(REQUEST, 30).candidates == 2

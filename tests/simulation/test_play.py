"""Traffic on a deployment in virtual time: lengths, modes and paces are those asked for."""

import asyncio
from dataclasses import replace

import pytest

from pice.core import CLOUD_SITE, Candidate, Curve, Mode
from pice.message.codec import encode
from pice.simulation.clock import run_virtual
from pice.simulation.lengths import Known, Sketching
from pice.simulation.links import Links
from pice.simulation.play import Ask, Deployment, Ended, Model, Site, play
from pice.transport.base import CANDIDATES, REQUESTS, segments_topic

STEP_S, NUM_TOKENS = 0.03, 350
CLOUD = Model("big", Curve((1,), (STEP_S,), base_s=0.04), max_inflight=4)
EDGE = Model("small", Curve((1, 8), (0.01, 0.02), base_s=0.01), max_inflight=8)
WHOLE = Deployment(CLOUD, {"a": Site((EDGE,)), "b": Site((EDGE,))})


def asks(*suits: bool, mode: Mode | None = None, gap_s: float = 60.0) -> list[Ask]:
    return [
        Ask(gap_s * number, f"Why {number}?", Known(NUM_TOKENS, suits_sketch), mode)
        for number, suits_sketch in enumerate(suits)
    ]


def played(deployment: Deployment, *suits: bool, mode: Mode | None = None) -> list[Ended]:
    return list(play(deployment, asks(*suits, mode=mode), seed=0).ended)


def test_answer_of_the_cloud_has_the_length_given_and_takes_its_steps() -> None:
    (ended,) = played(WHOLE, True, mode="cloud")
    assert ended.num_answer_tokens == NUM_TOKENS
    assert ended.num_cloud_tokens == NUM_TOKENS
    assert ended.ttft_s == pytest.approx(0.04, abs=1e-6)
    assert ended.e2e_s == pytest.approx(0.04 + (NUM_TOKENS - 1) * STEP_S, abs=1e-6)


def test_answer_of_a_site_has_the_length_given() -> None:
    (ended,) = played(WHOLE, True, mode="edge")
    assert (ended.mode, ended.num_answer_tokens, ended.num_cloud_tokens) == ("edge", NUM_TOKENS, 0)


def test_what_suits_is_sketched_and_the_rest_answered_with_no_call_more() -> None:
    sketched, direct = played(WHOLE, True, False)
    assert (sketched.mode, direct.mode) == ("progressive", "cloud")
    assert direct.num_cloud_tokens == NUM_TOKENS
    assert sketched.num_answer_tokens == pytest.approx(NUM_TOKENS, rel=0.15)


@pytest.mark.parametrize("ratio", [0.1, 0.2, 0.4])
def test_sketch_has_its_share_of_the_answer(ratio: float) -> None:
    deployment = replace(WHOLE, sketching=Sketching(ratio=ratio))
    (ended,) = played(deployment, True, mode="progressive")
    assert ended.num_cloud_tokens == pytest.approx(ratio * NUM_TOKENS, rel=0.15)


def test_cloud_that_expands_its_own_sketch_writes_all_of_it() -> None:
    deployment = replace(WHOLE, sites={}, expands_itself=True)
    found = play(deployment, asks(True, mode="progressive"), seed=0)
    assert found.ended[0].mode == "progressive"
    assert found.num_cloud_tokens == pytest.approx(1.2 * NUM_TOKENS, rel=0.15)


def test_tokens_of_losers_count_where_they_were_written() -> None:
    other = replace(EDGE, name="other")
    deployment = replace(WHOLE, sites={"a": Site((EDGE, other))})
    two = replace(deployment.policies, plan=replace(deployment.policies.plan, candidates=2))
    one, both = (
        play(replace(deployment, policies=policies), asks(True, mode="progressive"), seed=0)
        for policies in (deployment.policies, two)
    )
    assert both.num_edge_tokens == pytest.approx(2 * one.num_edge_tokens, rel=0.1)
    assert both.ended[0].num_answer_tokens == pytest.approx(NUM_TOKENS, rel=0.15)


def test_request_that_no_one_answers_in_time_says_why() -> None:
    found = play(replace(WHOLE, sites={}), asks(True, mode="cloud"), seed=0, timeout_s=2.0)
    assert found.ended[0].error == "deadline_exceeded"


def test_site_that_dies_costs_time_and_no_answer() -> None:
    traffic = asks(*[True] * 8, mode="progressive", gap_s=1.0)
    healthy, dying = (play(replace(WHOLE, deaths=deaths), traffic, seed=0) for deaths in ({}, {"a": 4.0}))
    assert [each.error for each in dying.ended] == [""] * 8
    assert max(each.e2e_s for each in dying.ended) > max(each.e2e_s for each in healthy.ended)


def test_no_more_are_asked_at_once_than_there_are_clients() -> None:
    found = play(replace(WHOLE, sites={}), asks(*[False] * 6, mode="cloud", gap_s=0.0), seed=0, num_at_once=2)
    ends = sorted(each.ended_s for each in found.ended)
    assert sum(each.asked_s < ends[0] for each in found.ended) == 2
    assert max(each.e2e_s for each in found.ended) == pytest.approx(ends[0], rel=0.01)


def test_same_traffic_is_played_the_same() -> None:
    traffic = asks(*[True, False] * 4, gap_s=0.5)
    assert play(WHOLE, traffic, seed=3) == play(WHOLE, traffic, seed=3)


BYTES = encode(Candidate("r", 1, 0, "far", "m", "text"))
BYTES_S = len(BYTES) * 8 / 1e6


@pytest.mark.parametrize(
    ("topic", "partition", "late_s"),
    [
        (segments_topic("main"), 0, 0.01 + BYTES_S),
        (segments_topic("main"), 1, 0.05 + BYTES_S),
        (CANDIDATES, 0, 0.05 + BYTES_S),
        (REQUESTS, 0, 0.0),
        (segments_topic(CLOUD_SITE), 0, 0.0),
    ],
)
def test_link_takes_half_a_round_trip_and_the_time_of_its_bytes(topic: str, partition: int, late_s: float) -> None:
    async def arrival_s() -> float:
        links = Links({"near": 0.02, "far": 0.1}, bits_per_s=1e6)
        subscription = await links.subscribe(topic, group="g", partition=partition)
        await links.publish(topic, BYTES, partition=partition)
        await subscription.receive()
        return asyncio.get_running_loop().time()

    assert run_virtual(arrival_s()) == pytest.approx(late_s)

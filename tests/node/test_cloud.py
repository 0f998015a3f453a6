"""What a cloud node does with a request, and with what goes wrong beside it."""

from dataclasses import replace

import pytest

from pice.core import CLOUD_SITE, Curve, Event, Plan, Request, Sampling
from pice.errors import EngineError, EngineUnavailable
from pice.message.codec import encode
from pice.node.cloud import CloudNode
from pice.node.load import Load
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.store.memory import MemoryStore
from pice.transport.base import REQUESTS
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import SEGMENTS, Site, Stage, a_request, time_passes

SLOW = Curve((1,), (0.2,))
TWENTY = tuple(f"point {number}" for number in range(20))
FORCED = a_request(mode="progressive")
DOWN = EngineUnavailable("the server is down")


async def paris(stage: Stage, *, context_tokens: int = 4096) -> Site:
    """The one edge site, beside a cloud that is slow enough to be worth a sketch."""
    await stage.site(CLOUD_SITE, "big", curve=SLOW)
    return await stage.site("paris", context_tokens=context_tokens)


def texts(events: list[Event], kind: str) -> list[str]:
    return [event.text for event in events if event.kind == kind]


async def test_first_segment_leaves_before_the_third_point_is_written(stage: Stage) -> None:
    site, engine = await paris(stage), ScriptedEngine("big", Script(outline(*TWENTY)))
    stage.cloud(engine)
    await stage.submit(FORCED)
    segment = await site.receive()
    assert [point.text for point in segment.points] == ["point 0"]
    assert engine.text == outline("point 0")


async def test_no_segment_leaves_before_the_whole_sketch_is_written_when_eager_is_off(stage: Stage) -> None:
    site, engine = await paris(stage), ScriptedEngine("big", Script(outline(*TWENTY)))
    stage.cloud(engine, eager=False)
    await stage.submit(FORCED)
    segment = await site.receive()
    assert engine.text == outline(*TWENTY)
    assert len(segment.sketch) == 20


@pytest.mark.parametrize("eager", [True, False])
async def test_segments_hold_every_point_once_and_in_order(stage: Stage, eager: bool) -> None:
    site = await paris(stage)
    stage.plan = PlanPolicy(segment_words=20, max_segments=4)
    engine = ScriptedEngine("big", Script(outline(*TWENTY, words=10)))
    stage.cloud(engine, eager=eager)
    await stage.submit(FORCED)
    segments = [await site.receive() for _ in range(4)]
    assert [point.text for segment in segments for point in segment.points] == list(TWENTY)
    assert [segment.index for segment in segments] == [0, 1, 2, 3]
    record = await stage.record()
    assert (record.num_segments, len(record.sketch), record.sketch_output_tokens) == (4, 20, 1 + 4 * 20)
    assert record.sketch_prompt_tokens == await engine.count_tokens(engine.prompts[0])


async def test_each_segment_draws_with_a_seed_of_its_own(stage: Stage) -> None:
    site = await paris(stage)
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    seeded = Request("r", FORCED.messages, sampling=Sampling(seed=2**32 - 2), mode="progressive")
    await stage.submit(seeded)
    assert [(await site.receive()).sampling.seed for _ in range(2)] == [2**32 - 2, 0]


async def test_direct_answer_streams_and_ends_the_request_as_the_clouds(stage: Stage) -> None:
    await paris(stage)
    stage.cloud(ScriptedEngine("big", Script("Because the moon pulls at the water.", step_s=0.1)), text_interval_s=0.35)
    await stage.submit(a_request())
    events = await stage.events("r")
    assert texts(events, "answer_text") == ["Because ", "the moon pulls at ", "the water."]
    assert texts(events, "sketch_text") == []
    answer = await stage.answer()
    assert (answer.mode, answer.text, answer.finish_reason) == ("cloud", "Because the moon pulls at the water.", "stop")
    assert answer.plan.reason == "the cloud model chose to answer directly"
    assert (answer.usage.num_cloud_output_tokens, answer.usage.num_cloud_prompt_tokens > 0) == (7, True)
    assert (answer.times.queue_s, answer.times.ttft_s) == pytest.approx((0.0, 0.1))
    assert answer.times.e2e_s == pytest.approx(0.7)


async def test_sketch_streams_as_it_is_written(stage: Stage) -> None:
    site = await paris(stage)
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two", "three"))), text_interval_s=5.0)
    stage.collector()
    await stage.submit(FORCED)
    for _ in range(3):
        segment = await site.receive()
        await site.send(segment, f"{segment.points[0].text}: the tide comes and it goes twice in a day.")
    events = await stage.events("r")
    assert "".join(texts(events, "sketch_text")) == outline("one", "two", "three")
    assert [event.kind for event in events][:2] == ["planned", "sketch_text"]


async def test_sketch_that_was_asked_for_needs_no_marker_and_no_last_line_end(stage: Stage) -> None:
    site = await paris(stage)
    stage.cloud(ScriptedEngine("big", Script("- one thing\n- another")))
    await stage.submit(FORCED)
    segment = await site.receive()
    assert [point.text for point in segment.points] == ["one thing"]
    assert [point.text for point in (await site.receive()).points] == ["another"]


@pytest.mark.parametrize("sketch_grammar", [True, False])
async def test_sketch_that_was_asked_for_is_held_to_the_grammar_when_that_is_on(
    stage: Stage, sketch_grammar: bool
) -> None:
    site, engine = await paris(stage), ScriptedEngine("big", Script(outline("one")))
    stage.cloud(engine, sketch_grammar=sketch_grammar)
    await stage.submit(FORCED)
    await site.receive()
    assert bool(engine.prompts[0].grammar) is sketch_grammar


class TwoOpinions(EarliestFinish):
    """Wants two candidates of each segment."""

    def decide(self, request: Request, num_prompt_tokens: int) -> Plan:
        return replace(super().decide(request, num_prompt_tokens), candidates=2)


async def test_candidates_that_the_plan_wants_are_asked_of_different_models(stage: Stage) -> None:
    site, _, rome = await paris(stage), await stage.site("rouen"), await stage.site("rome", "tiny", curve=SLOW)
    stage.cloud(ScriptedEngine("big", Script(outline("one"))), planner=TwoOpinions(PlanPolicy()))
    await stage.submit(FORCED)
    taken = [await site.receive(), await rome.receive()]
    assert [(it.index, it.site, it.model) for it in taken] == [(0, "paris", "small"), (0, "rome", "tiny")]
    assert (await stage.record()).num_segments == 1


async def test_plan_learns_how_long_answers_are(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", Script("word " * 28)))
    for name in ("first", "second"):
        await stage.submit(a_request(name))
        await stage.answer(name)
    first, second = [await stage.answer(name) for name in ("first", "second")]
    assert (first.plan.answer_words, second.plan.answer_words) == (250, 20)


async def test_load_counts_down_as_the_model_writes(stage: Stage) -> None:
    load = Load()
    stage.cloud(ScriptedEngine("big", Script("word " * 28, step_s=1.0)), load=load)
    await stage.submit(a_request())
    await time_passes(10.5)
    assert (load.num_outstanding, load.backlog_tokens) == (1, 350 - 10)


async def test_sketch_without_points_is_followed_by_a_direct_answer(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script("OUTLINE\n"), Script("The moon."))
    stage.cloud(engine)
    await stage.submit(FORCED)
    answer = await stage.answer()
    assert (answer.mode, answer.text, answer.plan.reason) == ("cloud", "The moon.", "the sketch had no points")
    assert [prompt.kind for prompt in engine.prompts] == ["sketch", "answer"]


async def test_tokens_of_a_sketch_that_came_to_nothing_are_counted(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script("OUTLINE\n"), Script("The moon."))
    stage.cloud(engine)
    await stage.submit(FORCED)
    usage = (await stage.answer()).usage
    assert (usage.num_cloud_output_tokens, usage.num_answer_tokens) == (3, 2)
    assert usage.num_cloud_prompt_tokens == sum([await engine.count_tokens(prompt) for prompt in engine.prompts])


async def test_model_that_writes_nothing_is_asked_once_more_and_then_believed(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script(""))
    stage.cloud(engine)
    await stage.submit(a_request())
    answer = await stage.answer()
    assert (answer.text, answer.finish_reason, len(engine.prompts)) == ("", "stop", 2)


async def test_sketch_prompt_too_long_for_the_context_is_followed_by_a_direct_answer(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script("The moon."), context_tokens=1024 + 50)
    stage.cloud(engine)
    await stage.submit(FORCED)
    answer = await stage.answer()
    assert (answer.text, answer.plan.mode) == ("The moon.", "cloud")
    assert answer.plan.reason == "the sketch prompt does not fit the cloud model's context"


async def test_question_too_long_for_the_context_fails_the_request_and_names_both_numbers(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon."), context_tokens=1030)
    stage.cloud(engine)
    await stage.submit(a_request(question="why " * 7))
    failure = await stage.failure()
    assert (failure.code, failure.retriable) == ("context_length_exceeded", False)
    assert "7 tokens" in failure.message
    assert "1030" in failure.message
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_engine_that_is_down_for_a_while_is_waited_for(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon."))
    engine.down = DOWN
    stage.cloud(engine)
    await stage.submit(a_request())
    await time_passes(0.25)
    engine.down = None
    answer = await stage.answer()
    assert (answer.text, answer.attempt) == ("The moon.", 3)
    assert answer.times.e2e_s == pytest.approx(0.1 + 0.2 + 0.02)


async def test_engine_that_stays_down_fails_the_request_after_all_deliveries_and_its_message_is_kept(
    stage: Stage,
) -> None:
    engine = ScriptedEngine("big", Script(""))
    engine.down = DOWN
    stage.cloud(engine, max_deliveries=3)
    await stage.submit(a_request())
    failure = await stage.failure()
    assert (failure.code, failure.retriable, failure.message) == ("engine_unavailable", True, "the server is down")
    assert stage.store.now() == pytest.approx(0.1 + 0.2)
    dead = await stage.dead()
    assert dead.payload == encode(a_request())
    assert dead.headers["reason"] == b"failed 3 times: the server is down"
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_engine_error_that_is_not_retriable_fails_the_request_at_once(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon", error=EngineError("out of memory")))
    stage.cloud(engine)
    await stage.submit(a_request())
    failure = await stage.failure()
    assert (failure.code, failure.message, len(engine.prompts)) == ("engine_error", "out of memory", 1)
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_request_that_ends_every_node_it_comes_to_is_put_aside_and_fails(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon", error=ZeroDivisionError()))
    await stage.submit(a_request())
    for _ in range(3):
        node = stage.cloud(engine, max_deliveries=3)
        with pytest.raises(ExceptionGroup):
            await node.task
        stage.running.remove(node)
    stage.cloud(engine, max_deliveries=3)
    failure = await stage.failure()
    assert (failure.code, len(engine.prompts)) == ("internal_error", 3)
    assert "3 times before" in failure.message
    assert (await stage.dead()).payload == encode(a_request())
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_undecodable_request_is_put_aside_whole_and_the_next_one_is_served(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", Script("The moon.")), max_inflight=1)
    await stage.transport.publish(REQUESTS, b"\xc1junk", key="k", headers={"trace": b"7"})
    await stage.submit(a_request())
    assert (await stage.answer()).text == "The moon."
    dead = await stage.dead()
    assert (dead.payload, dead.key, dead.headers["trace"]) == (b"\xc1junk", "k", b"7")
    assert (dead.headers["topic"], dead.headers["partition"], dead.headers["position"]) == (
        REQUESTS.encode(),
        b"0",
        b"0",
    )
    assert dead.headers["reason"]


async def test_request_that_nobody_opened_is_dropped(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon."))
    node = stage.cloud(engine)
    await stage.publish_request(a_request())
    await time_passes(1)
    await node.stop()
    assert engine.prompts == []
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_sketch_stops_when_its_request_is_cancelled(stage: Stage) -> None:
    site, engine, load = await paris(stage), ScriptedEngine("big", Script(outline(*TWENTY))), Load()
    stage.cloud(engine, load=load)
    async for event in stage.client.stream(FORCED):
        if event.kind == "segment_released":
            break
    await site.receive()
    await time_passes(0.1)
    assert (engine.num_running, engine.num_finished) == (0, 0)
    assert (load.num_outstanding, load.backlog_tokens) == (0, 0)
    assert stage.transport.num_messages(REQUESTS) == 0


class FencingStore(MemoryStore):
    """Another node takes every request up before it is planned."""

    async def planned(self, request_id: str, attempt: int, plan: Plan) -> bool:
        await self.begin(request_id)
        return await super().planned(request_id, attempt, plan)


async def test_attempt_that_is_fenced_while_it_is_planned_asks_nothing_of_the_engine(stage: Stage) -> None:
    stage.store, engine = FencingStore(), ScriptedEngine("big", Script("The moon."))
    stage.cloud(engine)
    await stage.submit(a_request())
    await time_passes(1)
    assert (engine.prompts, (await stage.record()).attempt) == ([], 2)


class StuckStore(MemoryStore):
    """Takes its time over the events of a sketch."""

    async def emit(self, event: Event) -> None:
        if event.kind == "sketch_text":
            await time_passes(10)
        await super().emit(event)


async def test_sketch_cancelled_while_an_event_of_it_is_stored_frees_its_sequence(stage: Stage) -> None:
    stage.store = StuckStore()
    await paris(stage)
    engine, load = ScriptedEngine("big", Script(outline(*TWENTY))), Load()
    node = stage.cloud(engine, load=load)
    await stage.submit(FORCED)
    await time_passes(1)
    assert engine.num_running == 1
    await node.kill()
    assert (engine.num_running, load.num_outstanding) == (0, 0)


async def test_sketch_that_runs_away_is_stopped_at_four_times_its_budget(stage: Stage) -> None:
    await paris(stage)
    stage.plan = PlanPolicy(assumed_answer_words=10)
    engine = ScriptedEngine("big", Script(outline(*(f"point {n}" for n in range(500)))))
    stage.cloud(engine, max_points=400)
    await stage.submit(FORCED)
    await time_passes(10)
    assert (await stage.record()).num_segments
    assert (len(engine.text.split()), engine.num_finished, engine.num_running) == (200, 0, 0)


async def test_second_delivery_of_a_request_fences_the_first_attempt(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon pulls.", step_s=1.0), Script("The sun pulls."))
    stage.cloud(engine)
    await stage.submit(a_request())
    await time_passes(1.5)
    await stage.publish_request(a_request())
    answer = await stage.answer()
    assert (answer.text, answer.attempt) == ("The sun pulls.", 2)
    await time_passes(5)
    assert (engine.num_running, engine.num_finished) == (0, 1)
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_redelivery_after_a_death_mid_sketch_makes_an_attempt_of_its_own(stage: Stage) -> None:
    site = await paris(stage)
    dying = stage.cloud(ScriptedEngine("big", Script(outline("old one", "old two", "old three"))))
    stage.collector()
    await stage.submit(FORCED)
    old = await site.receive()
    await dying.kill()
    stage.cloud(ScriptedEngine("big", Script(outline("new one", "new two"))))
    new = [await site.receive() for _ in range(2)]
    for segment in (old, *new):
        await site.send(segment, f"{segment.points[0].text}: the tide comes and it goes twice in a day.")
    answer = await stage.answer()
    assert (answer.attempt, [point.text for point in answer.sketch]) == (2, ["new one", "new two"])
    assert [span.points[0].text for span in answer.spans] == ["new one", "new two"]
    assert [scored.candidate.attempt for span in answer.spans for scored in span.candidates] == [2, 2]


async def test_sealed_sketch_is_not_written_again_for_a_repeated_request(stage: Stage) -> None:
    site, engine = await paris(stage), ScriptedEngine("big", Script(outline("one")))
    stage.cloud(engine)
    await stage.submit(FORCED)
    await site.receive()
    await time_passes(1)
    await stage.publish_request(FORCED)
    await time_passes(1)
    assert (len(engine.prompts), (await stage.record()).attempt) == (1, 1)
    assert stage.transport.num_messages(REQUESTS) == 0


async def test_drain_finishes_what_runs_and_takes_no_more(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon.", step_s=1.0))
    node = stage.cloud(engine, max_inflight=1)
    await stage.submit(a_request("first"))
    await stage.submit(a_request("second"))
    await time_passes(0.5)
    assert isinstance(node.node, CloudNode)
    assert node.node.num_in_hand == 1
    await node.stop()
    assert node.node.num_in_hand == 0
    assert (await stage.answer("first")).text == "The moon."
    assert (await stage.record("second")).attempt == 0
    assert stage.transport.num_messages(REQUESTS) == 1


async def test_request_unfinished_at_the_end_of_the_drain_is_served_by_another_node(stage: Stage) -> None:
    node = stage.cloud(ScriptedEngine("big", Script("The moon.", step_s=10.0)), drain_s=2.0)
    await stage.submit(a_request())
    await time_passes(1)
    await node.stop()
    assert stage.store.now() == pytest.approx(3.0)
    assert stage.transport.num_messages(REQUESTS) == 1
    stage.cloud(ScriptedEngine("big", Script("The sun.")))
    answer = await stage.answer()
    assert (answer.text, answer.attempt) == ("The sun.", 2)


async def test_points_beyond_the_token_limit_are_not_expanded_and_the_answer_is_cut(stage: Stage) -> None:
    site = await paris(stage)
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two", "three"))))
    stage.collector()
    sampling = Sampling(max_tokens=180)
    await stage.submit(Request("r", FORCED.messages, sampling, mode="progressive"))
    segments = [await site.receive() for _ in range(2)]
    for segment in segments:
        await site.send(segment, f"{segment.points[0].text}: the tide comes and it goes twice in a day.")
    answer = await stage.answer()
    assert [segment.sampling.max_tokens for segment in segments] == [167, 90]
    assert (answer.finish_reason, len(answer.spans), len(answer.sketch)) == ("length", 2, 3)


async def test_direct_answer_stopped_by_the_token_limit_is_cut(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", Script("The moon pulls at the water.")))
    await stage.submit(Request("r", FORCED.messages, Sampling(max_tokens=3)))
    answer = await stage.answer()
    assert (answer.text, answer.finish_reason, answer.spans[0].finish_reason) == ("The moon pulls", "length", "length")


async def test_cloud_engine_is_told_the_deadline_on_the_loops_clock(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon."))
    stage.cloud(engine)
    await stage.submit(Request("r", FORCED.messages, timeout_s=30.0))
    await stage.answer()
    assert engine.deadlines_s == pytest.approx([30.0])


async def test_request_with_stop_strings_is_answered_at_the_cloud(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script("The moon."))
    stage.cloud(engine)
    await stage.submit(Request("r", FORCED.messages, Sampling(stop=("END",))))
    answer = await stage.answer()
    assert (answer.mode, engine.prompts[0].kind, engine.samplings[0].stop) == ("cloud", "answer", ("END",))


async def test_stop_strings_are_kept_to_even_where_a_sketch_was_asked_for(stage: Stage) -> None:
    await paris(stage)
    engine = ScriptedEngine("big", Script("The moon."))
    stage.cloud(engine)
    await stage.submit(Request("r", FORCED.messages, Sampling(stop=("END",)), mode="progressive"))
    answer = await stage.answer()
    assert (answer.mode, engine.prompts[0].kind, engine.samplings[0].stop) == ("cloud", "answer", ("END",))


async def test_request_asked_for_at_the_edge_goes_there_whole(stage: Stage) -> None:
    site, engine = await paris(stage), ScriptedEngine("big", Script(""))
    stage.cloud(engine)
    await stage.submit(a_request(mode="edge"))
    segment = await site.receive()
    assert (segment.kind, segment.points, segment.sampling) == ("answer", (), a_request().sampling)
    assert ((await stage.record()).num_segments, engine.prompts) == (1, [])


async def test_segment_that_fits_no_edge_model_goes_to_the_clouds_own_site(stage: Stage) -> None:
    cloud = await stage.site(CLOUD_SITE, "big", curve=SLOW)
    await stage.site("paris", context_tokens=200)
    stage.cloud(ScriptedEngine("big", Script(outline("one", words=300))))
    await stage.submit(FORCED)
    assert (await cloud.receive()).site == CLOUD_SITE


async def test_sketch_whose_segments_no_site_can_take_is_followed_by_a_direct_answer(stage: Stage) -> None:
    await stage.site(CLOUD_SITE, "big", context_tokens=200)
    await stage.site("paris", context_tokens=200)
    stage.cloud(ScriptedEngine("big", Script(outline("one", words=300)), Script("The moon.")))
    await stage.submit(FORCED)
    answer = await stage.answer()
    assert (answer.text, answer.mode, answer.attempt) == ("The moon.", "cloud", 1)
    assert "no site can take the segment" in answer.plan.reason


async def test_request_too_large_for_its_own_segments_is_answered_at_the_cloud(stage: Stage) -> None:
    await paris(stage)
    request = a_request(question="why " * 200, mode="progressive")
    stage.transport._max_bytes = len(encode(request)) + 8
    stage.cloud(ScriptedEngine("big", Script(outline("one")), Script("The moon.")))
    await stage.submit(request)
    assert (await stage.answer()).text == "The moon."


@pytest.mark.parametrize("max_tokens", [12, 1024], ids=["by-its-limit", "running-away"])
async def test_answer_from_a_sketch_that_was_cut_says_so(stage: Stage, max_tokens: int) -> None:
    site = await paris(stage)
    stage.plan = PlanPolicy(assumed_answer_words=10)
    text = outline(*(f"point {number} of the tides" for number in range(80)), words=1)
    stage.cloud(ScriptedEngine("big", Script(text)), max_points=100)
    stage.collector()
    await stage.submit(Request("r", FORCED.messages, Sampling(max_tokens=max_tokens), mode="progressive"))
    while (record := await stage.store.record("r")) and record.num_segments is None:
        segment = await site.receive()
        await site.send(segment, "The tide.", num_output_tokens=1)
    assert record is not None
    assert record.sketch_cut


async def test_more_requests_than_may_run_wait_in_the_queue(stage: Stage) -> None:
    engine = ScriptedEngine("big", Script("The moon.", step_s=1.0))
    stage.cloud(engine, max_inflight=2)
    for number in range(3):
        await stage.submit(a_request(f"r{number}"))
    await time_passes(1.5)
    assert engine.num_running == 2
    assert (await stage.record("r2")).attempt == 0
    assert (await stage.answer("r2")).times.queue_s == pytest.approx(2.0)


async def test_answer_that_became_longer_than_its_limit_ends_at_it(stage: Stage) -> None:
    site = await paris(stage)
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    stage.collector()
    await stage.submit(Request("r", FORCED.messages, Sampling(max_tokens=200), mode="progressive"))
    for segment in [await site.receive() for _ in range(2)]:
        text = f"{segment.points[0].text}: the tide comes in. Then it goes out again, twice in a day."
        await site.send(segment, text, num_output_tokens=150)
    answer = await stage.answer()
    assert answer.text.endswith("twice in a day.\n\ntwo: the tide comes")
    assert (answer.finish_reason, answer.usage.num_answer_tokens) == ("length", 200)


async def test_site_whose_queue_is_full_is_passed_over(stage: Stage) -> None:
    stage.transport = MemoryTransport(max_messages=2)
    big = await stage.site(CLOUD_SITE, "big", curve=SLOW)
    await stage.site("paris")
    for _ in range(2):
        await stage.transport.publish(SEGMENTS, b"in the way", partition=0)
    stage.cloud(ScriptedEngine("big", Script(outline("one"))))
    await stage.submit(FORCED)
    assert [point.text for point in (await big.receive()).points] == ["one"]

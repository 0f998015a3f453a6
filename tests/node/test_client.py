"""What a client is told, and what its going away does."""

import asyncio
from contextlib import aclosing
from typing import Any, cast

import pytest

from pice.core import CLOUD_SITE, Curve, Failure, Message, Request, Sampling
from pice.errors import (
    Cancelled,
    DeadlineExceeded,
    InputError,
    Overloaded,
    RequestFailed,
    TransportError,
    Unavailable,
)
from pice.message.codec import MAX_ITEMS, decode_as
from pice.message.trace import headers
from pice.node.client import as_error
from pice.store.memory import MemoryStore
from pice.transport.base import REQUESTS, Subscription
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import Stage, a_request, time_passes

ANSWER = Script("The moon pulls.", step_s=1.0)


async def test_question_is_answered(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    answer = await stage.client.ask(a_request())
    assert (answer.text, answer.request_id) == ("The moon pulls.", "r")


async def test_question_is_answered_by_a_cloud_and_its_sites(stage: Stage) -> None:
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    stage.edge("paris", ScriptedEngine("small", Script("Water rises and falls twice a day, as everybody knows.")))
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    stage.collector(second_opinion_below=0.0)
    await asyncio.sleep(0)
    async with aclosing(stage.client.stream(a_request())) as events:
        seen = [event.kind async for event in events]
    assert seen[0] == "planned"
    assert (seen.count("segment_released"), seen.count("segment_chosen"), seen[-1]) == (2, 2, "answered")
    assert (await stage.answer()).degraded == ()


async def test_request_whose_stream_is_closed_is_cancelled(stage: Stage) -> None:
    engine = ScriptedEngine("big", ANSWER)
    stage.cloud(engine)
    async with aclosing(stage.client.stream(a_request())) as events:
        async for event in events:
            if event.kind == "answer_text":
                break
    assert (await stage.failure()).code == "cancelled"
    await time_passes(0.1)
    assert (engine.num_running, engine.num_finished, stage.transport.num_messages(REQUESTS)) == (0, 0, 0)


async def test_request_whose_asker_is_cancelled_is_cancelled(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5):
            await stage.client.ask(a_request())
    assert (await stage.failure()).code == "cancelled"


async def test_request_that_nobody_ends_fails_soon_after_its_deadline(stage: Stage) -> None:
    with pytest.raises(DeadlineExceeded, match="do cloud and collector run"):
        await stage.client.ask(a_request(timeout_s=10.0))
    assert stage.store.now() == pytest.approx(15.0)
    assert (await stage.failure()).code == "deadline_exceeded"


async def test_request_beyond_those_that_may_be_open_is_refused_and_told_when_to_come_back(stage: Stage) -> None:
    stage.store = MemoryStore(max_open=1)
    await stage.submit(a_request("open"))
    with pytest.raises(Overloaded) as refused:
        await stage.client.ask(a_request())
    assert (refused.value.retry_after_s, refused.value.failure_code) == (1.0, "queue_full")
    assert stage.transport.num_messages(REQUESTS) == 1
    await stage.store.close_request("open", None, Failure("open", "cancelled", "gone"))
    stage.cloud(ScriptedEngine("big", ANSWER))
    assert (await stage.client.ask(a_request())).text == "The moon pulls."


async def test_request_that_the_queue_has_no_room_for_is_refused_and_ended(stage: Stage) -> None:
    stage.transport = MemoryTransport(max_messages=0)
    with pytest.raises(Overloaded) as refused:
        await stage.client.ask(a_request())
    assert refused.value.retry_after_s == 1.0
    assert (await stage.failure()).code == "queue_full"


async def test_request_too_large_for_the_queue_is_refused_and_ended(stage: Stage) -> None:
    stage.transport = MemoryTransport(max_bytes=10)
    with pytest.raises(TransportError):
        await stage.client.ask(a_request())
    assert (await stage.failure()).code == "message_too_large"


class AwayTransport(MemoryTransport):
    """Refuses so many messages before it takes one."""

    def __init__(self, num_refused: int) -> None:
        super().__init__()
        self.num_refused = num_refused

    async def publish(self, topic: str, payload: bytes, **options: Any) -> None:
        if self.num_refused:
            self.num_refused -= 1
            raise TransportError("nobody answers")
        await super().publish(topic, payload, **options)


async def test_request_waits_for_a_queue_that_is_away(stage: Stage) -> None:
    stage.transport = AwayTransport(4)
    stage.cloud(ScriptedEngine("big", ANSWER))
    assert (await stage.client.ask(a_request())).text == "The moon pulls."


async def test_request_whose_queue_stays_away_ends_as_its_time_does(stage: Stage) -> None:
    stage.transport = AwayTransport(1000)
    with pytest.raises(TransportError):
        await stage.client.ask(a_request())
    assert (await stage.failure()).code == "transport_error"


async def test_known_request_that_nothing_has_begun_is_published_again(stage: Stage) -> None:
    assert await stage.store.open(a_request())
    stage.cloud(ScriptedEngine("big", ANSWER))
    assert (await stage.client.ask(a_request())).text == "The moon pulls."


async def test_request_asked_twice_is_followed_and_not_run_twice(stage: Stage) -> None:
    engine = ScriptedEngine("big", ANSWER)
    stage.cloud(engine)
    async with asyncio.TaskGroup() as tasks:
        first = tasks.create_task(stage.client.ask(a_request()))
        await time_passes(0.5)
        second = tasks.create_task(stage.client.ask(a_request()))
    third = await stage.client.ask(a_request())
    assert first.result() == second.result() == third
    assert len(engine.prompts) == 1


async def test_request_that_was_opened_and_never_published_is_published_by_who_asks_again(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    await stage.store.open(a_request())
    assert (await stage.client.ask(a_request())).text == "The moon pulls."


async def test_follower_that_leaves_does_not_end_the_request(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    asked = asyncio.ensure_future(stage.client.ask(a_request()))
    await asyncio.sleep(0)
    async with aclosing(stage.client.stream(a_request())) as events:
        await anext(events)
    assert (await asked).text == "The moon pulls."


async def test_follower_whose_own_time_is_up_does_not_end_the_request(stage: Stage) -> None:
    asked = asyncio.ensure_future(stage.client.ask(a_request(timeout_s=20.0)))
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded, match="within its 1 s"):
        await stage.client.ask(a_request(timeout_s=1.0))
    assert (await stage.record()).outcome is None
    with pytest.raises(DeadlineExceeded, match="within its 20 s"):
        await asked


async def test_closed_client_cancels_what_is_asked_and_takes_no_more(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    client = stage.client
    asked = asyncio.ensure_future(client.ask(a_request()))
    await time_passes(0.5)
    await client.close()
    with pytest.raises(Cancelled, match="pipeline is closed"):
        await asked
    with pytest.raises(InputError, match="pipeline is closed"):
        await client.ask(a_request("later"))
    assert (stage.store.now(), await stage.store.record("later")) == (0.5, None)


async def test_closed_client_leaves_what_others_asked_and_what_has_ended(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER))
    client, other = stage.client, stage.client
    answer = await client.ask(a_request("ended"))
    asked = asyncio.ensure_future(other.ask(a_request()))
    await time_passes(0.5)
    await client.close()
    assert (await asked).text == "The moon pulls."
    assert await stage.answer("ended") == answer


async def test_follower_is_told_when_client_and_store_are_closed(stage: Stage) -> None:
    await stage.submit(a_request())
    client = stage.client
    asked = asyncio.ensure_future(client.ask(a_request()))
    await time_passes(0.5)
    await client.close()
    await stage.store.close()
    with pytest.raises(Cancelled, match="pipeline is closed"):
        await asked
    assert stage.store.now() == 0.5


UNREADABLE: dict[str, tuple[Any, str]] = {
    "timeout that is no number": ({"timeout_s": float("nan")}, "timeout_s: expected .* above 0, got nan"),
    "timeout without end": ({"timeout_s": float("inf")}, "timeout_s: expected a finite .* got inf"),
    "no time": ({"timeout_s": 0}, "timeout_s: expected .* above 0, got 0"),
    "time before now": ({"timeout_s": -1.0}, "timeout_s: expected .* above 0, got -1.0"),
    "timeout in words": ({"timeout_s": "5"}, "a field of the request is of a wrong type"),
    "half a surrogate pair": ({"question": "\ud800"}, "surrogates not allowed"),
    "temperature nan": ({"sampling": Sampling(temperature=float("nan"))}, "finite number, got nan"),
    "unknown mode": ({"mode": "bogus"}, "mode: expected one of cloud, edge, progressive, got 'bogus'"),
    "sampling that is a dict": ({"sampling": {"max_tokens": 5}}, "a field of the request is of a wrong type"),
    "text for a number": ({"sampling": Sampling(max_tokens=cast("Any", "5"))}, "max_tokens: expected an integer"),
}


@pytest.mark.parametrize(("fields", "says"), UNREADABLE.values(), ids=UNREADABLE)
async def test_request_that_no_node_could_read_is_refused_before_it_is_opened(
    stage: Stage, fields: dict[str, Any], says: str
) -> None:
    await _is_refused(stage, a_request(**fields), says)


@pytest.mark.parametrize(
    ("message", "count", "says"),
    [
        (Message(cast("Any", "robot"), "hi"), 1, "messages.role: expected one of .* got 'robot'"),
        (Message("user", "hi"), MAX_ITEMS + 1, "messages: expected at most 4096, got 4097"),
    ],
)
async def test_conversation_that_no_node_could_read_is_refused(
    stage: Stage, message: Message, count: int, says: str
) -> None:
    await _is_refused(stage, Request("r", (message,) * count), says)


async def _is_refused(stage: Stage, request: Request, says: str) -> None:
    with pytest.raises(InputError, match=says):
        await stage.client.ask(request)
    assert await stage.store.record("r") is None
    assert (stage.transport.num_messages(REQUESTS), stage.store.now()) == (0, 0.0)


async def _kinds(stage: Stage) -> list[str]:
    async with aclosing(stage.client.stream(a_request())) as events:
        return [event.kind async for event in events]


async def test_late_follower_sees_every_event(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER), text_interval_s=0.0)
    for _ in range(2):
        assert await _kinds(stage) == ["planned", "answer_text", "answer_text", "answer_text", "answered"]


@pytest.mark.parametrize("sketched", [False, True], ids=["answered at the cloud", "sketched"])
async def test_who_asks_for_the_answer_alone_is_sent_no_text(stage: Stage, sketched: bool) -> None:
    script = Script(outline("one", "two")) if sketched else ANSWER
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    stage.edge("paris", ScriptedEngine("small", Script("Water rises and falls twice a day, as everybody knows.")))
    stage.cloud(ScriptedEngine("big", script), text_interval_s=0.0)
    stage.collector(second_opinion_below=0.0)
    await asyncio.sleep(0)
    assert (await stage.client.ask(a_request())).text
    texts = {"sketch_text", "segment_text", "answer_text"}
    assert texts.isdisjoint(seen := await _kinds(stage))
    assert seen.count("segment_chosen") == 2 * sketched


async def test_failure_is_raised_as_what_it_says(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER, context_tokens=10))
    with pytest.raises(RequestFailed) as failed:
        await stage.client.ask(a_request())
    assert failed.value.failure_code == "context_length_exceeded"


async def test_stream_of_a_request_that_fails_ends_with_the_failure(stage: Stage) -> None:
    stage.cloud(ScriptedEngine("big", ANSWER, context_tokens=10))
    async with aclosing(stage.client.stream(a_request())) as events:
        seen = [event.kind async for event in events]
    assert seen == ["planned", "failed"]


@pytest.mark.parametrize(
    ("code", "retriable", "error"),
    [
        ("deadline_exceeded", True, DeadlineExceeded),
        ("cancelled", False, Cancelled),
        ("engine_unavailable", True, Unavailable),
        ("engine_error", False, RequestFailed),
    ],
)
def test_failure_has_an_error_that_says_the_same(code: str, retriable: bool, error: type[RequestFailed]) -> None:
    raised = as_error(Failure("r", code, "because", retriable))
    assert (type(raised), raised.failure_code, str(raised)) == (error, code, "because")


async def test_request_is_published_under_its_own_key(stage: Stage) -> None:
    subscription: Subscription = await stage.transport.subscribe(REQUESTS, group="test")
    async with aclosing(stage.client.stream(a_request())) as events:
        waiting = asyncio.ensure_future(anext(events))
        delivery = await subscription.receive()
        waiting.cancel()
        await asyncio.wait([waiting])
    assert delivery.headers == headers("r", REQUESTS)
    assert (delivery.key, type(decode_as(type(a_request()), delivery.payload))) == ("r", type(a_request()))

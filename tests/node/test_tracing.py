"""Every message of a request can be found by its headers, wherever it ends."""

from collections.abc import Mapping

from pice.core import CLOUD_SITE, Curve
from pice.errors import EngineError
from pice.message.trace import headers
from pice.transport.base import CANDIDATES, REQUESTS
from pice.transport.memory import MemoryTransport
from tests.node.scripted import Script, ScriptedEngine, outline
from tests.node.stage import SEGMENTS, Stage, a_request, time_passes

TEXT = "Water rises and falls twice a day, as everybody knows."


class Postmarks(MemoryTransport):
    """Keeps the headers of what is published, by topic."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, list[dict[str, bytes]]] = {}

    async def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        key: str = "",
        partition: int | None = None,
        headers: Mapping[str, bytes] | None = None,
    ) -> None:
        self.seen.setdefault(topic, []).append(dict(headers or {}))
        await super().publish(topic, payload, key=key, partition=partition, headers=headers)


async def progressive(stage: Stage, *names: str) -> Postmarks:
    """Requests of two segments each, answered one after another."""
    stage.transport = postmarks = Postmarks()
    await stage.site(CLOUD_SITE, "big", curve=Curve((1,), (0.2,)))
    stage.edge("paris", ScriptedEngine("small", Script(TEXT)))
    stage.cloud(ScriptedEngine("big", Script(outline("one", "two"))))
    stage.collector(second_opinion_below=0.0)
    for name in names:
        await stage.client.ask(a_request(name, mode="progressive"))
    await time_passes(1)
    return postmarks


async def test_messages_of_a_request_share_its_trace_and_have_spans_of_their_own(stage: Stage) -> None:
    seen = (await progressive(stage, "r", "s")).seen
    assert {topic: len(all_of) for topic, all_of in seen.items()} == {REQUESTS: 2, SEGMENTS: 4, CANDIDATES: 4}
    traces: dict[bytes, set[bytes]] = {}
    spans = set()
    for marks in [marks for topic in seen for marks in seen[topic]]:
        _, trace_id, span_id, _ = marks["traceparent"].split(b"-")
        traces.setdefault(marks["request_id"], set()).add(trace_id)
        spans.add(span_id)
    assert {request_id: len(ids) for request_id, ids in traces.items()} == {b"r": 1, b"s": 1}
    assert len(spans) == 10


async def test_headers_follow_from_what_a_message_is_and_not_from_who_sent_it(stage: Stage) -> None:
    seen = (await progressive(stage, "r")).seen
    assert seen[REQUESTS] == [headers("r", REQUESTS)]
    assert seen[SEGMENTS] == [headers("r", SEGMENTS, 1, index, "paris", "small") for index in range(2)]
    assert seen[CANDIDATES] == [headers("r", CANDIDATES, 1, index, "paris", "small") for index in range(2)]


async def test_news_that_there_will_be_no_candidate_can_be_followed_too(stage: Stage) -> None:
    stage.transport = postmarks = Postmarks()
    stage.edge("paris", ScriptedEngine("small", Script("", error=EngineError("out of memory"))))
    stage.cloud(ScriptedEngine("big", Script("")))
    await stage.submit(a_request())
    await time_passes(1)
    assert postmarks.seen[CANDIDATES][0]["request_id"] == b"r"

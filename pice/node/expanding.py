"""One segment -> the candidate of one model."""

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass

from pice.core import Candidate, Event, Segment
from pice.engine.base import Engine, Piece
from pice.node.inflight import Work
from pice.node.load import Load, Share
from pice.node.text import TextEvents
from pice.plan.order import WaitingSegments
from pice.sketch.prompts import PromptSet
from pice.store.base import Store
from pice.transport.base import Delivery


@dataclass(slots=True)
class Model:
    """One engine of a site and what waits for it."""

    engine: Engine
    load: Load
    prompts: PromptSet
    waiting: WaitingSegments["Expansion"]
    num_running: int = 0

    @property
    def has_work(self) -> bool:
        """Whether something waits that the engine has room for."""
        return bool(len(self.waiting)) and self.num_running < self.engine.info.max_inflight


@dataclass(slots=True, eq=False)
class Expansion:
    """A segment in hand, from its delivery to its candidate."""

    segment: Segment
    delivery: Delivery
    share: Share
    queued_s: float
    dropped: bool = False
    task: asyncio.Task[None] | None = None

    def work(self) -> Work:
        segment = self.segment
        return Work(segment.request_id, segment.attempt, segment.index, self.delivery, self.drop)

    def drop(self) -> None:
        self.dropped = True
        self.share.end()
        if self.task is not None:
            self.task.cancel()


async def expand(model: Model, expansion: Expansion, site: str, store: Store, *, text_interval_s: float) -> Candidate:
    """What the model writes, which is shown as it comes.

    Raises:
        EngineError, InputError: as `Engine.generate`.
        TransportError: it cannot be shown.
    """
    segment, clock = expansion.segment, asyncio.get_running_loop()
    started_s, num_tokens = clock.time(), 0
    events = _text_events(segment, site, store, text_interval_s)
    text, logprobs, last = list[str](), list[float](), Piece("")
    deadline_s = started_s + segment.deadline_s - store.now()
    prompt = model.prompts.expand(segment)
    async with aclosing(model.engine.generate(prompt, segment.sampling, deadline_s=deadline_s)) as pieces:
        async for piece in pieces:
            num_tokens += piece.num_tokens
            expansion.share.wrote(piece.num_tokens)
            text.append(piece.text)
            logprobs.extend(piece.logprobs)
            if piece.finish_reason is None and events.hold(piece.text):
                await events.flush()
            last = piece
    return Candidate(
        segment.request_id,
        segment.attempt,
        segment.index,
        site,
        segment.model,
        "".join(text),
        last.finish_reason or "stop",
        last.num_prompt_tokens,
        last.num_cached_tokens,
        num_tokens,
        math.fsum(logprobs) / len(logprobs) if logprobs else None,
        min(logprobs, default=None),
        queue_s=started_s - expansion.queued_s + last.queue_s,
        service_s=clock.time() - started_s - last.queue_s,
    )


def _text_events(segment: Segment, site: str, store: Store, interval_s: float) -> TextEvents:
    event = Event(
        segment.request_id, "segment_text", 0.0, segment.attempt, segment.index, site=site, model=segment.model
    )
    return TextEvents(store, event, interval_s=interval_s, is_wanted=segment.stream)

"""One attempt at one request at the cloud: the answer itself, or a sketch and its segments."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field, replace

from pice.core import (
    CLOUD_SITE,
    NUM_SEEDS,
    Answer,
    Event,
    EventKind,
    FinishReason,
    Plan,
    Point,
    Prompt,
    PromptKind,
    Record,
    Sampling,
    Segment,
    Span,
    Times,
    Usage,
)
from pice.engine.base import Engine
from pice.errors import Full, MessageTooLarge, NoSite, PromptTooLong
from pice.node.load import Load
from pice.node.placing import Placer
from pice.node.telemetry import Telemetry
from pice.node.text import TextEvents
from pice.plan.base import TOKENS_PER_WORD, Planner, Target, Where
from pice.sketch.parser import Direct, Item, SketchParser
from pice.sketch.prompts import PromptSet
from pice.sketch.segments import SegmentBuilder, expected_tokens, merge_points, token_budget
from pice.store.base import Store


@dataclass(frozen=True, slots=True)
class Tools:
    """What every attempt of one cloud node works with."""

    store: Store
    engine: Engine
    load: Load
    planner: Planner
    placer: Placer
    prompts: PromptSet
    max_points: int
    text_interval_s: float
    telemetry: Telemetry


@dataclass(slots=True)
class _Written:
    """What one generation has come to so far."""

    text: list[str] = field(default_factory=list)
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    first_s: float = 0.0
    finish_reason: FinishReason = "stop"


class Attempt:
    """Carries one plan out. Every change of the record is refused once a later attempt has begun (P4)."""

    def __init__(self, tools: Tools, record: Record, plan: Plan, ending: Callable[[], object]) -> None:
        """`ending` is called before the request is closed here: the news of that is not for who made it."""
        self._tools = tools
        self._ending = ending
        self._record = record
        self._request = record.request
        self._plan = plan
        self._points: list[Point] = []
        self._num_segments = 0
        self._tokens_left = record.request.sampling.max_tokens
        self._written = _Written()
        self._in_vain = _Written()
        self._answer_events = self._events("answer_text")
        self._sketch_events = self._events("sketch_text")

    async def answer_here(self) -> None:
        """The cloud model answers in full. What a sketch took that came to nothing still counts."""
        self._in_vain, self._written = self._written, _Written()
        prompt = self._tools.prompts.answer(self._request.messages)
        words = self._plan.answer_words
        async with contextlib.aclosing(self._generate(prompt, self._request.sampling, words)) as texts:
            async for text in texts:
                await self._show(text)
        await self._close()

    async def answer_at_edge(self) -> None:
        """One small model answers in full."""
        await self._send(self._segment("answer", (), self._plan.answer_words, self._request.sampling))
        await self._seal()

    async def sketch(self, *, eager: bool, constrained: bool) -> None:
        """The cloud model's first words decide: a direct answer, or a sketch whose segments leave as soon as they
        are complete (with `eager`) or when the whole sketch is known. What the prompts of sketch and segments add
        may be too much where the question itself is not: then it is answered here."""
        try:
            await self._sketch(eager=eager, constrained=constrained)
        except PromptTooLong:
            await self._replan("the sketch prompt does not fit the cloud model's context")
            await self.answer_here()
        except NoSite as error:
            if self._num_segments:
                raise
            await self._replan(str(error))
            await self.answer_here()

    async def _sketch(self, *, eager: bool, constrained: bool) -> None:
        forced = self._request.mode == "progressive"
        parser = SketchParser(forced=forced, max_points=self._tools.max_points)
        builder = self._builder() if eager else None
        prompt, limit = self._sketch_prompt(forced=forced, constrained=constrained), self._sketch_limit()
        texts = self._generate(prompt, self._request.sampling, self._plan.sketch_words)
        async with contextlib.aclosing(texts):
            async for text in texts:
                await self._take(parser.feed(text), builder)
                if parser.kind != "direct":
                    await self._sketch_events.write(text)
                if parser.kind == "sketch" and self._written.num_output_tokens >= limit:
                    self._written.num_prompt_tokens = await self._tools.engine.count_tokens(prompt)
                    self._written.finish_reason = "length"
                    break
        await self._take(parser.finish(), builder)
        await self._sketch_events.flush()
        await self._conclude(parser.kind == "direct", builder)

    async def _take(self, items: list[Item], builder: SegmentBuilder | None) -> None:
        for item in items:
            if isinstance(item, Direct):
                await self._show(item.text)
                continue
            self._points.append(item)
            for group in builder.add(item) if builder else ():
                await self._release(group)

    async def _conclude(self, direct: bool, builder: SegmentBuilder | None) -> None:
        if direct and self._written.text:
            await self._replan("the cloud model chose to answer directly")
            await self._close()
        elif self._points:
            for group in self._last_groups(builder):
                await self._release(group)
            await self._seal()
        else:
            await self._replan("the sketch had no points")
            await self.answer_here()

    async def _replan(self, reason: str) -> None:
        self._plan = replace(self._plan, mode="cloud", reason=reason)
        await self._tools.store.planned(self._request.request_id, self._record.attempt, self._plan)

    def _last_groups(self, builder: SegmentBuilder | None) -> list[tuple[Point, ...]]:
        """What has not been released: the rest of an eager sketch, or all of one that was waited for."""
        if builder is not None:
            return builder.finish()
        words = sum(point.words for point in self._points)
        wanted = max(1, min(self._plan.max_segments, round(words / self._plan.segment_words)))
        return merge_points(self._points, max_segments=wanted)

    async def _release(self, points: tuple[Point, ...]) -> None:
        """Sends one segment to as many sites as the plan wants candidates. What the segments are expected to take
        together stays within the request's token limit: points beyond it are not expanded, and the answer says that
        it was cut. A single segment is allowed more than expected, as far as the limit goes."""
        if self._tokens_left <= 0:
            return
        words, sample = sum(point.words for point in points), points[0].text
        max_tokens = min(self._tokens_left, token_budget(words, text_sample=sample))
        self._tokens_left -= expected_tokens(words, text_sample=sample)
        seed = self._request.sampling.seed
        sampling = replace(
            self._request.sampling,
            max_tokens=max_tokens,
            seed=None if seed is None else (seed + self._num_segments) % NUM_SEEDS,
        )
        await self._send(self._segment("expand", points, words, sampling))

    async def _send(self, segment: Segment) -> None:
        """To as many sites as the plan wants candidates; a site whose queue is full is passed over."""
        tried: set[Target] = set()
        num_sent = 0
        while num_sent < self._plan.candidates:
            models = {target.model for target in tried} if num_sent else ()
            where: Where = "edge" if num_sent else "anywhere"
            now_s = self._tools.store.now()
            placement = self._tools.planner.place(segment, now_s, exclude=tried, exclude_models=models, where=where)
            if placement is None:
                break
            tried.add(Target(placement.site, placement.model))
            with contextlib.suppress(Full, MessageTooLarge):
                await self._tools.placer.send(segment, placement)
                num_sent += 1
        if not num_sent:
            raise NoSite("no site can take the segment: none is up or has room, or its prompt fits no model's context")
        self._num_segments += 1

    def _segment(self, kind: PromptKind, points: tuple[Point, ...], words: int, sampling: Sampling) -> Segment:
        return Segment(
            self._request.request_id,
            self._record.attempt,
            self._num_segments,
            kind,
            self._request.messages,
            tuple(self._points),
            points,
            words,
            sampling,
            self._record.deadline_s,
            stream=self._request.stream,
        )

    async def _seal(self) -> None:
        await self._tools.store.seal(
            self._request.request_id,
            self._record.attempt,
            self._points,
            self._num_segments,
            num_prompt_tokens=self._written.num_prompt_tokens,
            num_output_tokens=self._written.num_output_tokens,
            cut=self._written.finish_reason == "length",
        )

    async def _generate(self, prompt: Prompt, sampling: Sampling, words: int) -> AsyncGenerator[str, None]:
        """Text of the cloud model as it comes, about `words` of it, counted in `_written` and in the engine's load."""
        written, share = self._written, self._tools.load.add(round(words * TOKENS_PER_WORD))
        left_s = self._record.deadline_s - self._tools.store.now()
        deadline_s = asyncio.get_running_loop().time() + left_s
        try:
            pieces = self._tools.engine.generate(prompt, sampling, deadline_s=deadline_s)
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    share.wrote(piece.num_tokens)
                    written.num_output_tokens += piece.num_tokens
                    if piece.finish_reason is not None:
                        written.finish_reason = piece.finish_reason
                        written.num_prompt_tokens = piece.num_prompt_tokens
                    yield piece.text
        finally:
            share.end()

    async def _show(self, text: str) -> None:
        if text:
            self._written.first_s = self._written.first_s or self._tools.store.now()
            self._written.text.append(text)
            await self._answer_events.write(text)

    async def _close(self) -> None:
        """Ends the request with what the cloud model wrote."""
        await self._answer_events.flush()
        now_s, written, in_vain = self._tools.store.now(), self._written, self._in_vain
        text = "".join(written.text).strip()
        span = Span(0, text, CLOUD_SITE, self._tools.engine.info.model, 0.0, written.finish_reason, chosen_s=now_s)
        answer = Answer(
            self._request.request_id,
            text,
            "cloud",
            written.finish_reason,
            self._record.attempt,
            self._plan,
            spans=(span,),
            usage=Usage(
                num_cloud_prompt_tokens=in_vain.num_prompt_tokens + written.num_prompt_tokens,
                num_cloud_output_tokens=in_vain.num_output_tokens + written.num_output_tokens,
                num_answer_tokens=written.num_output_tokens,
            ),
            times=self._times(now_s),
        )
        self._ending()
        if await self._tools.store.close_request(self._request.request_id, self._record.attempt, answer):
            self._tools.telemetry.closed(answer)
            self._tools.planner.learn(answer)

    def _times(self, now_s: float) -> Times:
        opened_s = self._record.opened_s
        return Times(
            queue_s=self._record.begun_s - opened_s,
            ttft_s=(self._written.first_s or now_s) - opened_s,
            e2e_s=now_s - opened_s,
        )

    def _sketch_prompt(self, *, forced: bool, constrained: bool) -> Prompt:
        words, points = self._plan.sketch_words, self._tools.max_points
        messages, prompts = self._request.messages, self._tools.prompts
        if forced:
            return prompts.sketch(messages, sketch_words=words, max_points=points, constrained=constrained)
        return prompts.gate(messages, sketch_words=words, max_points=points)

    def _sketch_limit(self) -> int:
        """Tokens after which a sketch is taken to run away: four times its budget, at least 200."""
        return max(200, round(4 * self._plan.sketch_words * TOKENS_PER_WORD))

    def _builder(self) -> SegmentBuilder:
        return SegmentBuilder(segment_words=self._plan.segment_words, max_segments=self._plan.max_segments)

    def _events(self, kind: EventKind) -> TextEvents:
        event = Event(self._request.request_id, kind, 0.0, self._record.attempt)
        interval_s = self._tools.text_interval_s
        return TextEvents(self._tools.store, event, interval_s=interval_s, is_wanted=self._request.stream)

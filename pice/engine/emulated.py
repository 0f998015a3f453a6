"""An engine without a model: seeded text at the pace of a given timing curve. The reference for every engine.

It waits on loop timers alone, so it runs under a virtual clock as it runs live. A token is a word with the blank
after it.
"""

import asyncio
import math
import random
import re
import zlib
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import accumulate, count, pairwise
from typing import Literal

from pice.core import Curve, FinishReason, Prompt, Sampling
from pice.engine.base import EngineInfo, Piece
from pice.errors import ConfigError, EngineError, EngineUnavailable, InputError, PromptTooLong, UnsupportedParameter

_TOKEN = re.compile(r"\S+\s*")
_CONTENT_WORD = re.compile(r"[^\W\d_]{4,}")
_VOCABULARY = _CONTENT_WORD.findall(
    """
    about across after again almost along always among answer around aside basic because before begin below between
    both bring build careful case cause change choose clear close common consider cost daily deep detail differ
    early easy effect either enough even example expect fact feel few find first follow form further gain general
    give good grow hand help hold idea improve keep kind large later lead learn less likely little local long main
    make many matter mean measure method most move much need never next note often open order other over part people
    place plan point possible practice reach reason result right several share short simple since small some start
    step still strong such sure take then thing through time together under until use value very view want way well
    when while whole wide with within without word work
    """,
)
_SKETCH = ("OUTLINE\n", "- ({words}) {text}\n")
_ODD_SKETCHES = (
    ("", "{number}. {text} ({words} words)\n"),
    ("**Outline:**\n\n", "* **{text}** ~{words}\n"),
    ("OUTLINE\n", "{text}; "),
    ("Sure! Here is an outline:\n", "- {text}\n"),
    ("OUTLINE\n", ""),
)
_FAITHFUL, _OTHER = 0.3, 1.6
"""Mean negative log-probability of a word the prompt holds, and of any other."""
_STEP_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class TextStyle:
    """What an emulated model writes. Pairs are an inclusive range; rates are shares of generations, 0 to 1.

    A `Prompt` that names its words gets about as many; else `answer_words` and, for each point or expansion,
    `words_per_point` say how many. `direct_rate` is how often a sketch prompt is answered in full instead,
    `fidelity` the share of words taken from the prompt's last message (those are also more probable). The other
    rates are for tests: a failure midway, no text at all, one phrase until the token limit, a sketch out of format.
    """

    points: tuple[int, int] = (4, 8)
    words_per_point: tuple[int, int] = (30, 80)
    answer_words: tuple[int, int] = (150, 400)
    direct_rate: float = 0.0
    fidelity: float = 0.6
    error_rate: float = 0.0
    empty_rate: float = 0.0
    loop_rate: float = 0.0
    malformed_rate: float = 0.0


class EmulatedEngine:
    """An `Engine` whose text depends only on (`seed`, `model`, the messages, `Sampling.seed`).

    The prompt is evaluated in `base_s` + tokens x `prefill_s_per_token`, holding up nobody, and ends with the first
    token; from then on the generation is one of the b that share a decode step of `curve.step_s` at b (between the
    given batch sizes on a straight line, beyond them on the last one's, below them constant). Generations beyond
    `max_inflight` wait inside, first come first served. A curve of zeros sets no timer at all. Text comes in pieces
    of `piece_tokens`, that of a sketch also ends a piece at each line. A grammar is taken for that of a sketch: it
    rules out direct and malformed ones.

    Raises:
        ConfigError: a setting is out of range.
    """

    def __init__(
        self,
        *,
        model: str,
        curve: Curve,
        seed: int,
        context_tokens: int = 8192,
        max_inflight: int = 16,
        piece_tokens: int = 1,
        style: TextStyle | None = None,
    ) -> None:
        if max_inflight < 1 or piece_tokens < 1:
            raise ConfigError(
                f"max_inflight and piece_tokens of {model} must be >= 1, got {max_inflight}, {piece_tokens}"
            )
        if not curve.batch or len(curve.batch) != len(curve.step_s):
            raise ConfigError(f"the curve of {model} must give one step_s for each batch size, and at least one")
        self._info = EngineInfo(model=model, context_tokens=context_tokens, max_inflight=max_inflight, curve=curve)
        self._seed = seed
        self._piece_tokens = piece_tokens
        self._style = style or TextStyle()
        self._batch = _Batch(curve, max_inflight)
        self._failure: EngineError | None = EngineUnavailable(f"{model} was not started: await start() first")
        self._closed = False

    @property
    def info(self) -> EngineInfo:
        return self._info

    async def start(self) -> None:
        self.resume()

    async def count_tokens(self, prompt: Prompt) -> int:
        return _count_tokens(prompt)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        num_prompt_tokens = self._admit(prompt, sampling)
        pieces, error = self._write(prompt, sampling, num_prompt_tokens)
        sequence = self._batch.enter([piece.num_tokens for piece in pieces], num_prompt_tokens)
        try:
            if self._batch.instant:
                await asyncio.sleep(0)
            for index, piece in enumerate(pieces):
                if sequence.num_ready <= index:
                    await sequence.ready(index)
                yield piece
            if error is not None:
                raise error
        finally:
            self._batch.leave(sequence)

    async def close(self) -> None:
        self._closed = True
        self.fail_with(EngineUnavailable(f"{self._info.model} is closed"))

    def pause(self) -> None:
        """Freezes every generation where it is until `resume`: a hung device."""
        self._batch.pause()

    def fail_with(self, error: EngineError) -> None:
        """Ends what runs and waits with `error`, and all that comes until `resume`: a crashed device."""
        self._failure = error
        self._batch.fail(error)

    def resume(self) -> None:
        """Ends `pause` and `fail_with`; a closed engine stays closed."""
        if not self._closed:
            self._failure = None
        self._batch.resume()

    def _admit(self, prompt: Prompt, sampling: Sampling) -> int:
        if self._failure is not None:
            raise self._failure.with_traceback(None)
        _check(prompt, sampling)
        num_prompt_tokens = _count_tokens(prompt)
        if num_prompt_tokens + sampling.max_tokens > self._info.context_tokens:
            raise PromptTooLong(
                model=self._info.model,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=sampling.max_tokens,
                context_tokens=self._info.context_tokens,
            )
        return num_prompt_tokens

    def _write(
        self, prompt: Prompt, sampling: Sampling, num_prompt_tokens: int
    ) -> tuple[list[Piece], EngineError | None]:
        """The whole generation, or its first half and the error that ends it."""
        rng = self._rng(prompt, sampling)
        fails = rng.random() < self._style.error_rate
        source = _CONTENT_WORD.findall(prompt.messages[-1].content) or _VOCABULARY
        text = _Writer(self._style, source, rng).text(prompt, sampling.max_tokens)
        tokens, finish_reason = _cut(_TOKEN.findall(text), sampling)
        logprobs = _logprobs(tokens, source, rng)
        bounds = _bounds(tokens, self._piece_tokens, by_line=prompt.kind == "sketch")
        pieces = [Piece("".join(tokens[i:k]), k - i, logprobs[i:k]) for i, k in pairwise(bounds[:-1])]
        if fails:
            return pieces[: len(bounds) // 2] or [Piece("")], EngineError(f"{self._info.model} failed midway")
        i, k = bounds[-2:]
        pieces.append(Piece("".join(tokens[i:k]), k - i, logprobs[i:k], finish_reason, num_prompt_tokens))
        return pieces, None

    def _rng(self, prompt: Prompt, sampling: Sampling) -> random.Random:
        """Seeded by a hash that is the same in every process."""
        said = (text for message in prompt.messages for text in (message.role, message.content))
        key = "\0".join((str(self._seed), self._info.model, str(sampling.seed), *said))
        return random.Random(zlib.crc32(key.encode()))


def _check(prompt: Prompt, sampling: Sampling) -> None:
    if not prompt.messages:
        raise InputError("expected at least one message, got none")
    if sampling.max_tokens < 1:
        raise InputError(f"max_tokens must be >= 1, got {sampling.max_tokens}")
    if sampling.temperature < 0:
        raise InputError(f"temperature must be >= 0, got {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise InputError(f"top_p must be above 0 and at most 1, got {sampling.top_p}")
    if "" in sampling.stop:
        raise InputError('a stop string must have at least one character, got ""')
    if prompt.grammar and prompt.kind != "sketch":
        raise UnsupportedParameter("grammar", "an emulated engine keeps to a grammar only when it writes a sketch")


def _count_tokens(prompt: Prompt) -> int:
    return sum(len(message.content.split()) for message in prompt.messages)


def _cut(tokens: list[str], sampling: Sampling) -> tuple[list[str], FinishReason]:
    """The tokens up to the first stop string or the token limit; the one a stop string begins in is cut there."""
    kept = tokens[: sampling.max_tokens]
    text = "".join(kept)
    stops = [at for at in map(text.find, sampling.stop) if at >= 0]
    if not stops:
        return kept, "length" if len(kept) < len(tokens) else "stop"
    ends = list(accumulate(map(len, kept)))
    last = bisect_right(ends, min(stops))
    return [*kept[:last], kept[last][: min(stops) - ends[last] + len(kept[last])]], "stop"


def _bounds(tokens: Sequence[str], piece_tokens: int, *, by_line: bool) -> list[int]:
    """Where pieces begin and end: 0, ..., the number of tokens."""
    lines = [i for i, token in enumerate(tokens[:-1], 1) if token.endswith("\n")] if by_line else []
    spans = pairwise((0, *lines, len(tokens)))
    return [0, *(cut for start, end in spans for cut in (*range(start + piece_tokens, end, piece_tokens), end))]


def _logprobs(tokens: Sequence[str], source: Sequence[str], rng: random.Random) -> tuple[float, ...]:
    known = set(map(str.lower, source))
    draw, log = rng.random, math.log
    return tuple(
        [(_FAITHFUL if token.strip(" \n.").lower() in known else _OTHER) * log(1.0 - draw()) for token in tokens]
    )


class _Writer:
    """Writes one text; every choice in it comes from `rng`."""

    def __init__(self, style: TextStyle, source: Sequence[str], rng: random.Random) -> None:
        self._style = style
        self._source = source
        self._rng = rng

    def text(self, prompt: Prompt, max_tokens: int) -> str:
        style = self._style
        if self._happens(style.empty_rate):
            return ""
        if self._happens(style.loop_rate):
            return " ".join(self._rng.choices(_VOCABULARY, k=5) * max_tokens)
        if prompt.kind == "expand":
            return self._prose(prompt.words, style.words_per_point)
        if prompt.kind == "answer":
            return self._prose(prompt.words, style.answer_words)
        if not prompt.grammar and self._happens(style.direct_rate):
            return self._prose(0, style.answer_words)
        odd = not prompt.grammar and self._happens(style.malformed_rate)
        return self._sketch(prompt.words, *(self._rng.choice(_ODD_SKETCHES) if odd else _SKETCH))

    def _happens(self, rate: float) -> bool:
        return rate > 0.0 and self._rng.random() < rate

    def _words(self, num_words: int) -> list[str]:
        fidelity, draw = self._style.fidelity, self._rng.random
        faithful, free = (self._rng.choices(words, k=num_words) for words in (self._source, _VOCABULARY))
        return [one if draw() < fidelity else other for one, other in zip(faithful, free, strict=True)]

    def _prose(self, asked: int, usual: tuple[int, int]) -> str:
        """Sentences of 7 to 14 words: within 15 % of the words asked for, or as many as usual."""
        rng = self._rng
        words = self._words(max(1, round(asked * rng.uniform(0.85, 1.15))) if asked else rng.randint(*usual))
        sentences = []
        while words:
            size = rng.randint(7, 14)
            sentences.append(" ".join(words[:size]).capitalize() + ".")
            words = words[size:]
        return " ".join(sentences)

    def _sketch(self, asked: int, header: str, line: str) -> str:
        """An outline of about the words asked for, `line` for each point."""
        rng = self._rng
        num_points = rng.randint(*self._style.points)
        num_words = max(1, asked // num_points) if asked else rng.randint(3, 6)
        return header + "".join(
            line.format(
                number=number, words=rng.randint(*self._style.words_per_point), text=" ".join(self._words(num_words))
            )
            for number in range(1, num_points + 1)
        )


class _Sequence:
    """One generation as the batch sees it: which piece ends with which token, and how many pieces are ready.

    `joined` is the batch's step at its first token.
    """

    __slots__ = ("ends", "error", "joined", "num_ready", "number", "state", "ttft_s", "waiter")

    def __init__(self, number: int, num_tokens: Iterable[int], ttft_s: float) -> None:
        self.number = number
        self.ends = tuple(accumulate(num_tokens))
        self.ttft_s = ttft_s
        self.num_ready = 0
        self.joined = 0.0
        self.state: Literal["waiting", "prefilling", "decoding", "gone"] = "waiting"
        self.error: EngineError | None = None
        self.waiter: asyncio.Future[None] | None = None

    def due_step(self) -> float:
        return self.joined + self.ends[self.num_ready] - 1

    async def ready(self, index: int) -> None:
        while self.num_ready <= index:
            if self.error is not None:
                raise self.error.with_traceback(None)
            self.waiter = asyncio.get_running_loop().create_future()
            await self.waiter

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


_Heap = list[tuple[float, int, _Sequence]]


class _Batch:
    """The sequences that share a model, as a fluid: while b of them decode, a step passes every `step_s` at b.

    One loop timer stands at the next event, the end of a prefill or of a piece. `_now_s` is on the batch's own
    clock, which stands still in a pause; `_steps` have passed in all. Sequences that are gone stay
    in the heaps until they come up.
    """

    def __init__(self, curve: Curve, max_inflight: int) -> None:
        self.instant = not any((curve.base_s, curve.prefill_s_per_token, *curve.step_s))
        self._curve = curve
        self._step_s = [_step_s(curve, size) for size in range(max_inflight + 1)]
        self._num_free = max_inflight
        self._num_decoding = 0
        self._numbers = count()
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: _Heap = []
        self._decoding: _Heap = []
        self._steps = 0.0
        self._now_s = 0.0
        self._behind_s = 0.0
        self._paused = False
        self._timer: asyncio.TimerHandle | None = None

    def enter(self, num_tokens: Iterable[int], num_prompt_tokens: int) -> _Sequence:
        ttft_s = self._curve.base_s + self._curve.prefill_s_per_token * num_prompt_tokens
        sequence = _Sequence(next(self._numbers), num_tokens, ttft_s)
        if self.instant and not self._paused:
            sequence.num_ready, sequence.state = len(sequence.ends), "gone"
        else:
            self._catch_up()
            self._waiting.append(sequence)
            self._advance()
        return sequence

    def leave(self, sequence: _Sequence) -> None:
        if sequence.state != "gone":
            self._catch_up()
            self._release(sequence)
            self._advance()

    def fail(self, error: EngineError) -> None:
        self._catch_up()
        for sequence in (*self._waiting, *(entry[2] for entry in (*self._prefilling, *self._decoding))):
            if sequence.state != "gone":
                self._release(sequence)
                sequence.num_ready, sequence.error = 0, error
                sequence.wake()
        self._advance()

    def pause(self) -> None:
        self._catch_up()
        self._paused = True
        self._set_timer(math.inf)

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._behind_s = asyncio.get_running_loop().time() - self._now_s
            self._advance()

    def _advance(self, due_s: float = 0.0) -> None:
        """Catches up, at least to `due_s` (a clock may be rounded), and sets the timer to what comes next."""
        self._catch_up(due_s)
        self._set_timer(math.inf if self._paused else self._next_s())

    def _catch_up(self, due_s: float = 0.0) -> None:
        if self._paused:
            return
        now_s = max(due_s, asyncio.get_running_loop().time() - self._behind_s)
        self._admit()
        while (event_s := self._next_s()) <= now_s:
            self._happen(event_s)
            self._admit()
        self._pass(now_s)

    def _set_timer(self, event_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if event_s < math.inf:
            self._timer = asyncio.get_running_loop().call_at(event_s + self._behind_s, self._advance, event_s)

    def _next_s(self) -> float:
        return min(_first(self._prefilling), self._piece_s())

    def _piece_s(self) -> float:
        """When the next piece ends, at the pace of now."""
        steps = _first(self._decoding) - self._steps
        return self._now_s + max(0.0, steps) * self._step_s[self._num_decoding] if steps < math.inf else math.inf

    def _happen(self, event_s: float) -> None:
        is_piece = self._piece_s() <= event_s
        self._pass(event_s)
        if is_piece:
            self._steps = max(self._steps, self._decoding[0][0])
        self._emit()
        self._join()

    def _pass(self, now_s: float) -> None:
        step_s = self._step_s[self._num_decoding]
        if self._num_decoding and step_s:
            self._steps += max(0.0, now_s - self._now_s) / step_s
        self._now_s = now_s

    def _emit(self) -> None:
        while self._decoding and self._decoding[0][0] <= self._steps + _STEP_TOLERANCE:
            sequence = heappop(self._decoding)[2]
            if sequence.state == "gone":
                continue
            sequence.num_ready += 1
            sequence.wake()
            if sequence.num_ready == len(sequence.ends):
                self._release(sequence)
            else:
                heappush(self._decoding, (sequence.due_step(), sequence.number, sequence))

    def _join(self) -> None:
        while _first(self._prefilling) <= self._now_s:
            sequence = heappop(self._prefilling)[2]
            sequence.state, sequence.joined = "decoding", self._steps
            self._num_decoding += 1
            heappush(self._decoding, (sequence.due_step(), sequence.number, sequence))

    def _admit(self) -> None:
        while self._num_free and self._waiting:
            sequence = self._waiting.popleft()
            if sequence.state == "waiting":
                sequence.state = "prefilling"
                self._num_free -= 1
                heappush(self._prefilling, (self._now_s + sequence.ttft_s, sequence.number, sequence))

    def _release(self, sequence: _Sequence) -> None:
        self._num_free += sequence.state in ("prefilling", "decoding")
        self._num_decoding -= sequence.state == "decoding"
        sequence.state = "gone"


def _first(heap: _Heap) -> float:
    while heap and heap[0][2].state == "gone":
        heappop(heap)
    return heap[0][0] if heap else math.inf


def _step_s(curve: Curve, size: int) -> float:
    if size <= curve.batch[0] or len(curve.batch) == 1:
        return curve.step_s[0]
    end = min(bisect_left(curve.batch, size), len(curve.batch) - 1)
    (left, right), (low_s, high_s) = curve.batch[end - 1 : end + 1], curve.step_s[end - 1 : end + 1]
    return max(0.0, low_s + (high_s - low_s) * (size - left) / (right - left))

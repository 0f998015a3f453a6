"""What the thread that owns a llama.cpp model does: takes calls in, steps, and says what came of it."""

import asyncio
import logging
import math
import queue
import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pice.core import NUM_SEEDS, FinishReason, Prompt, Sampling
from pice.engine.base import Piece
from pice.engine.llama.batch import Batch
from pice.engine.llama.pace import Pace
from pice.engine.llama.sequence import Chunk, Sequence
from pice.engine.llama.text import Text
from pice.errors import EngineError, InputError, PiceError, PromptTooLong

if TYPE_CHECKING:
    from pice.engine.llama.draw import Sampler
    from pice.engine.llama.model import Model

TAKE_S = 0.02
"""For how long calls are made tokens while others wait for their next step."""

Answer = Piece | int | PiceError

_logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Call:
    """Something asked of the owner: without `sampling`, the number of prompt tokens; else text.

    The loop's side sets `cancelled`; the owner answers.
    """

    prompt: Prompt
    sampling: Sampling | None = None
    deadline_s: float = math.inf
    cancelled: bool = False
    answers: "asyncio.Queue[Answer]" = field(default_factory=asyncio.Queue)


@dataclass(eq=False, slots=True)
class _Generation:
    """A call for text under way. `num_tokens` and `logprobs` have not been handed out yet."""

    call: Call
    sequence: Sequence
    sampler: "Sampler"
    text: Text
    came_s: float
    begun_s: float | None = None
    num_failures: int = 0
    num_tokens: int = 0
    logprobs: list[float] = field(default_factory=list)


class Owner:
    """Runs in the thread that owns the model; all its state is that thread's own."""

    def __init__(self, name: str, model: "Model", batch: Batch, pace: Pace, rng: random.Random) -> None:
        self._name = name
        self._model = model
        self._batch = batch
        self._rng = rng
        self._pace = pace
        self._rebuilt = False
        self._generations: dict[Sequence, _Generation] = {}
        self._said: list[tuple[Call, Answer]] = []

    def serve(
        self,
        inbox: "queue.SimpleQueue[Call | None]",
        stopping: threading.Event,
        say: Callable[[list[tuple[Call, Answer]]], None],
    ) -> None:
        """Works until `stopping` is set; None in the inbox wakes it for that."""
        try:
            while not stopping.is_set():
                self._take_in(inbox)
                self._drop_cancelled()
                if self._generations:
                    self._step()
                said, self._said = self._said, []
                if said:
                    say(said)
        finally:
            for generation in self._generations.values():
                generation.sampler.free()

    def _take_in(self, inbox: "queue.SimpleQueue[Call | None]") -> None:
        """Begins calls that have come, for a while; waits for one only when there is nothing else to do."""
        begun_s = time.monotonic()
        with suppress(queue.Empty):
            while not self._batch.running or time.monotonic() < begun_s + TAKE_S:
                call = inbox.get(block=not (self._generations or self._said))
                if call is None:
                    return
                if not call.cancelled:
                    self._begin(call)

    def _begin(self, call: Call) -> None:
        try:
            vocabulary, sampling = self._model.vocabulary, call.sampling
            if sampling is None:
                self._said.append((call, len(vocabulary.tokens(call.prompt))))
                return
            if least := vocabulary.least_tokens(call.prompt):
                self._check_fits(least, sampling)
            tokens = vocabulary.tokens(call.prompt, lambda least: self._check_fits(least, sampling))
            self._add(call, sampling, tokens)
        except InputError as error:
            self._said.append((call, error))
        except Exception as error:
            _logger.exception("%s: a call cannot be begun", self._name)
            self._said.append((call, EngineError(f"{self._name}: this call cannot be begun: {error!r}")))

    def _add(self, call: Call, sampling: Sampling, tokens: list[int]) -> None:
        self._check_fits(len(tokens), sampling)
        seed = self._rng.randrange(NUM_SEEDS) if sampling.seed is None else sampling.seed
        sampler = self._model.sampler(sampling, call.prompt.grammar, seed)
        sequence = Sequence(tokens, sampling.max_tokens, call.deadline_s)
        self._generations[sequence] = _Generation(
            call, sequence, sampler, Text(sampling.stop, thinking=not call.prompt.grammar), time.monotonic()
        )
        self._batch.add(sequence)

    def _check_fits(self, num_prompt_tokens: int, sampling: Sampling) -> None:
        if num_prompt_tokens + sampling.max_tokens > self._model.context_tokens:
            raise PromptTooLong(
                model=self._name,
                num_prompt_tokens=num_prompt_tokens,
                max_tokens=sampling.max_tokens,
                context_tokens=self._model.context_tokens,
            )

    def _drop_cancelled(self) -> None:
        for generation in list(self._generations.values()):
            if generation.call.cancelled:
                self._free(generation)

    def _step(self) -> None:
        self._model.change(self._batch.admit())
        chunks = self._batch.chunks()
        self._note_begun(chunks)
        if not self._decode(chunks):
            return
        self._batch.done(chunks)
        ready = [self._generations[chunk.sequence] for chunk in chunks if chunk.last]
        drawn = self._model.draw([generation.sampler for generation in ready])
        for generation, choice in zip(ready, drawn, strict=True):
            if choice is None:
                self._fail(generation, "the grammar or the model's numbers leave no token to draw")
            else:
                self._advance(generation, *choice)

    def _note_begun(self, chunks: list[Chunk]) -> None:
        now_s = time.monotonic()
        for chunk in chunks:
            generation = self._generations[chunk.sequence]
            if generation.begun_s is None:
                generation.begun_s = now_s

    def _decode(self, chunks: list[Chunk]) -> bool:
        """Whether the chunks were evaluated; if not, something was done about it."""
        begun_s = time.monotonic()
        try:
            if self._model.decode(chunks):
                self._rebuilt = False
                self._keep_pace(chunks, begun_s)
                return True
        except EngineError as error:
            self._start_over(error)
            return False
        changes = self._batch.make_room()
        self._model.change(changes)
        if not changes:
            self._fail(self._generations[self._batch.running[0]], "its memory does not fit the context")
        return False

    def _keep_pace(self, chunks: list[Chunk], begun_s: float) -> None:
        """Only steps without prompts are alike enough to be compared."""
        if all(len(chunk.tokens) == 1 for chunk in chunks):
            pace, now_s = self._pace, time.monotonic()
            num_threads = pace.now_threads
            pace.observe(len(chunks), now_s - begun_s, now_s)
            if pace.now_threads != num_threads:
                self._model.set_threads(pace.now_threads)

    def _start_over(self, error: EngineError) -> None:
        """Makes the context anew; what runs is evaluated again from its first token and goes on where it was. What
        was running at an earlier failure too fails.

        Raises:
            EngineError: the one given, when no step was made since the last time.
        """
        if self._rebuilt:
            raise error
        self._rebuilt = True
        _logger.warning("%s: %s: its context is made anew", self._name, error)
        running = [self._generations[sequence] for sequence in self._batch.running]
        self._batch.start_over()
        self._model.renew_context()
        self._model.set_threads(self._pace.now_threads)
        for generation in running:
            generation.num_failures += 1
            if generation.num_failures > 1:
                self._fail(generation, str(error))

    def _advance(self, generation: _Generation, token: int, logprob: float) -> None:
        """Appends a token; says its text, as far as that is certain, or that this was the last."""
        sequence, text = generation.sequence, generation.text
        sequence.tokens.append(token)
        generation.num_tokens += 1
        generation.logprobs.append(logprob)
        complete = self._model.vocabulary.ends(token)
        new = "" if complete else text.feed(self._model.vocabulary.piece(token))
        reason: FinishReason | None = None
        if complete or text.stopped:
            reason = "stop"
        elif sequence.num_drawn == sequence.max_tokens:
            reason = "length"
        if reason:
            new += text.rest()
        if new or reason:
            self._say(generation, new, reason)
        if reason:
            self._free(generation)

    def _say(self, generation: _Generation, text: str, reason: FinishReason | None) -> None:
        piece = Piece(
            text,
            num_tokens=generation.num_tokens,
            logprobs=tuple(generation.logprobs),
            finish_reason=reason,
            num_prompt_tokens=generation.sequence.num_prompt_tokens if reason else 0,
            num_cached_tokens=(generation.sequence.num_cached or 0) if reason else 0,
            queue_s=generation.begun_s - generation.came_s if reason and generation.begun_s else 0.0,
        )
        generation.num_tokens, generation.logprobs = 0, []
        self._said.append((generation.call, piece))

    def _fail(self, generation: _Generation, message: str) -> None:
        self._said.append((generation.call, EngineError(f"{self._name}: {message}")))
        self._free(generation)

    def _free(self, generation: _Generation) -> None:
        sequence = generation.sequence
        self._model.change(self._batch.end(sequence))
        del self._generations[sequence]
        generation.sampler.free()

"""An engine of the settings, timed through its port: a model file, a server and an emulated model all in one way."""

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from string import ascii_lowercase

from pice.app.engines import start_engines
from pice.core import CLOUD_SITE, Message, Prompt, Sampling
from pice.engine.base import Engine
from pice.errors import InputError
from pice.plan.curve import LEAST_TOKENS, Run, Timing, Workload
from pice.settings import Settings

_WORD_LETTERS = 4
_NUM_TRIAL_WORDS = 64
_NUM_OWN_WORDS = 2
_MOST_TRIES = 8
_TASK = "Go on with this list of words for as long as you can, and do not come to an end:"


@dataclass(frozen=True, slots=True)
class Profile:
    """What an engine was timed at; `load_s` is from nothing to ready."""

    engine: str
    model: str
    load_s: float
    timing: Timing


async def profile(
    settings: Settings, name: str, workload: Workload, seed: int, on_run: Callable[[Run], object]
) -> Profile:
    """Starts the engine alone, times it, and closes it; `on_run` is called after each run. How long a prompt is the
    engine's own count says, so it is as long as `workload` asks but for a word.

    Raises:
        InputError: there is no such engine, it decodes fewer at once, or its texts end too soon.
        PiceError: what the engine raises.
    """
    if name not in settings.engines:
        raise InputError(f"engines: expected one of {', '.join(sorted(settings.engines))}, got {name!r}")
    clock, rng = asyncio.get_running_loop(), random.Random(seed)
    async with AsyncExitStack() as stack:
        began_s = clock.time()
        started = await start_engines(settings, {CLOUD_SITE: [name]}, rng, stack)
        load_s = clock.time() - began_s
        (engine,) = started[CLOUD_SITE]
        if workload.most > engine.info.max_inflight:
            raise InputError(
                f"engines.{name} decodes {engine.info.max_inflight} at once: expected a batch of at most that, got "
                f"{workload.most}"
            )
        timed = _Timed(engine, name, rng)
        await timed.measure(workload)
        runs = list[Run]()
        await timed.run(workload, workload.most)  # warms up
        for number in range(workload.num_runs):
            for size in sorted(set(workload.sizes), reverse=number % 2 == 1):
                runs.append(await timed.run(workload, size))
                on_run(runs[-1])
        return Profile(name, engine.info.model, load_s, Timing(workload, True, tuple(runs)))


@dataclass(slots=True)
class _Drawn:
    """When the pieces of one text came, and how many tokens were drawn for each."""

    pieces: list[tuple[float, int]] = field(default_factory=list)

    @property
    def first_s(self) -> float:
        return self.pieces[0][0]

    @property
    def last_s(self) -> float:
        return self.pieces[-1][0]

    def num_between(self, after_s: float, until_s: float) -> int:
        return sum(num for at_s, num in self.pieces if after_s < at_s <= until_s)


class _Timed:
    """An engine, and prompts for it."""

    def __init__(self, engine: Engine, name: str, rng: random.Random) -> None:
        self._engine = engine
        self._name = name
        self._rng = rng
        self._num_words: Mapping[int, int] = {}

    async def measure(self, workload: Workload) -> None:
        """Finds how many words make a prompt of half the tokens and of all.

        Raises:
            InputError: half of them is less than a prompt has without any.
        """
        whole = workload.num_prompt_tokens
        least = await self._count(0)
        each = max(1.0, (await self._count(_NUM_TRIAL_WORDS) - least) / _NUM_TRIAL_WORDS)
        if whole // 2 < least + each:
            raise InputError(
                f"prompt_tokens must be >= {2 * math.ceil(least + each)} for engines.{self._name}, whose prompts have "
                f"{least} of task and template, got {whole}"
            )
        self._num_words = {tokens: round((tokens - least) / each) for tokens in (whole // 2, whole)}

    async def run(self, workload: Workload, size: int) -> Run:
        """One run, with prompts that were never seen. A step's time is that of the time in which all texts were written
        at once; where one ended too soon, they are written again."""
        whole = workload.num_prompt_tokens
        half_s = await self._first_s(self._words(self._num_words[whole // 2]))
        words = self._words(self._num_words[whole])
        first_s = await self._first_s(words)
        for _ in range(_MOST_TRIES):
            began_s = asyncio.get_running_loop().time()
            texts = [f"{words} {self._words(_NUM_OWN_WORDS)}" for _ in range(size)]
            drawn = await asyncio.gather(*(self._write(text, workload.num_tokens) for text in texts))
            filled_s, ended_s = max(each.first_s for each in drawn), min(each.last_s for each in drawn)
            num_steps = sum(each.num_between(filled_s, ended_s) for each in drawn) / size
            if num_steps >= LEAST_TOKENS / 2:
                step_s = (ended_s - filled_s) / num_steps
                return Run(size, half_s, first_s, filled_s - began_s, step_s * workload.num_tokens)
        raise InputError(
            f"engines.{self._name}: {_MOST_TRIES} times {size} texts were written at once for fewer than "
            f"{LEAST_TOKENS // 2} tokens, too few to be timed: ask for more --tokens, and let a vLLM server not end "
            f"them, by engines.{self._name}.extra_body.ignore_eos = true"
        )

    async def _first_s(self, words: str) -> float:
        began_s = asyncio.get_running_loop().time()
        return (await self._write(words, 1)).first_s - began_s

    async def _write(self, words: str, num_tokens: int) -> _Drawn:
        drawn, clock = _Drawn(), asyncio.get_running_loop()
        sampling = Sampling(max_tokens=num_tokens, temperature=1.0, top_p=1.0, top_k=0)
        async with aclosing(self._engine.generate(_prompt(words), sampling)) as pieces:
            async for piece in pieces:
                if piece.num_tokens:
                    drawn.pieces.append((clock.time(), piece.num_tokens))
        if not drawn.pieces:
            raise InputError(f"engines.{self._name} wrote nothing: expected a text, got its end at once")
        return drawn

    async def _count(self, num_words: int) -> int:
        return await self._engine.count_tokens(_prompt(self._words(num_words)))

    def _words(self, num: int) -> str:
        return " ".join("".join(self._rng.choices(ascii_lowercase, k=_WORD_LETTERS)) for _ in range(num))


def _prompt(words: str) -> Prompt:
    return Prompt((Message("user", f"{_TASK} {words}"),))

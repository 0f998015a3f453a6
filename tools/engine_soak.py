"""Works a llama.cpp engine at the limit of its memory for a long time, kills it on the way, and checks every text.

    python tools/engine_soak.py --minutes 30 --kills 10

Clients ask for greedy texts of prompts whose systems and questions change, of all lengths, with stop strings and
without, and give some of them up. The model has float weights and float memory, so each text is known beforehand from
an engine that writes it alone. A text that differs counts as a tie where the two differ in a token of
equal probability, else as wrong. In the first half of the time the engine's process is ended by SIGKILL again and
again; what was being written is asked for once more.

Exit code 0 when every segment was answered, none wrong, memory did not grow and the event loop was never at work for
longer than 20 ms without a pause. A second process that only measures how late its own timers are shows how late
they are on this machine anyway.
"""

import argparse
import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median

import orjson

sys.path.insert(0, str(Path(__file__).parents[1]))

from pice.core import Message, Prompt, Sampling
from pice.engine.llama.options import LlamaOptions
from pice.engine.process import ProcessEngine
from pice.errors import EngineUnavailable
from pice.loop import run_once
from tools.tiny_gguf import NEVER, PRESETS, WORDS, write_tiny_gguf

NUM_SYSTEMS, NUM_QUESTIONS, NUM_TAILS = 6, 6, 6
MAX_TOKENS = 120
N_CTX, N_SEQ_MAX, NUM_CLIENTS = 2048, 8, 16
"""A prompt has 60 to 700 tokens: eight sequences do not fit the memory, and not all clients have a place."""
PAUSE_S = 0.15
LOST_S = 120.0
"""A text that takes longer will not come."""
FEW_TIES = 0.01
SAME_LOGPROB = 1e-3
BLOCKED_S = 0.020
TICK_S = 0.005
SAMPLE_S = 5.0
GROWTH_BYTES = 4 * 1024 * 1024
"""Less is the noise of an allocator; so much in a few minutes is a leak."""


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt and its greedy text, token by token."""

    prompt: Prompt
    texts: tuple[str, ...]
    logprobs: tuple[float, ...]


@dataclass(slots=True)
class Tally:
    """What happened so far."""

    asked: int = 0
    answered: int = 0
    given_up: int = 0
    lost: int = 0
    asked_again: int = 0
    ties: int = 0
    wrong: list[str] = field(default_factory=list)
    tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    queue_s: list[float] = field(default_factory=list)
    kills: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory at a time, of the parent and of the engine's process."""

    at_s: float
    own_bytes: int
    engine_bytes: int
    kills: int


@dataclass(slots=True)
class Lateness:
    """How late a timer of an event loop was, at worst, how often by more than the bound, and how often because its
    own thread was at work for so long; else others had the core."""

    most_s: float = 0.0
    num_late: int = 0
    num_blocked: int = 0
    num: int = 0

    async def watch(self) -> None:
        """Measures until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due_s, at_work_s = loop.time() + TICK_S, time.thread_time()
            await asyncio.sleep(TICK_S)
            late_s, at_work_s = time.monotonic() - due_s, time.thread_time() - at_work_s
            self.most_s = max(self.most_s, late_s)
            self.num_late += late_s > BLOCKED_S
            self.num_blocked += min(late_s, at_work_s) > BLOCKED_S
            self.num += 1


def prompts(rng: random.Random) -> list[Prompt]:
    """Every system with every question with every tail; a word is about a token."""
    words = WORDS.split()

    def text(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    systems = [text(10, 250) for _ in range(NUM_SYSTEMS)]
    questions = [text(10, 250) for _ in range(NUM_QUESTIONS)]
    tails = [text(3, 60) for _ in range(NUM_TAILS)]
    return [
        Prompt((Message("system", system), Message("user", f"{question} {tail}")))
        for system in systems
        for question in questions
        for tail in tails
    ]


@asynccontextmanager
async def started(path: Path, **options: object) -> AsyncIterator[ProcessEngine]:
    exact = LlamaOptions(path=path, kv_type="f32", flash_attn="off", n_threads=1, shares_cores=True)
    engine = ProcessEngine(replace(exact, **options))  # type: ignore[arg-type]  # of mixed types
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()


async def know(path: Path, asked: Sequence[Prompt]) -> list[Known]:
    """What each prompt's text is when nothing else runs and nothing is shared."""
    known = []
    async with started(path, n_ctx=N_CTX, n_seq_max=1, prefix_cache_tokens=0) as engine:
        for prompt in asked:
            pieces = [piece async for piece in engine.generate(prompt, Sampling(MAX_TOKENS, temperature=0.0))]
            assert all(piece.num_tokens == 1 for piece in pieces)
            logprobs = tuple(logprob for piece in pieces for logprob in piece.logprobs)
            known.append(Known(prompt, tuple(piece.text for piece in pieces), logprobs))
    return known


def verdict(known: Known, text: str, logprobs: Sequence[float], expected: str) -> str:
    """ "" where the text is as expected, "tie", or what is wrong."""
    if text == expected:
        return ""
    pairs = zip(text, expected, strict=False)
    num_same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    index = sum(end <= num_same for end in itertools.accumulate(map(len, known.texts)))
    if index < len(logprobs) and abs(logprobs[index] - known.logprobs[index]) < SAME_LOGPROB:
        return "tie"
    return f"expected {expected[num_same:][:40]!r} after {num_same} characters, got {text[num_same:][:40]!r}"


class Soak:
    """Clients, a killer and what they found."""

    def __init__(self, engine: ProcessEngine, known: Sequence[Known], rng: random.Random, end_s: float) -> None:
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.lateness = Lateness()
        self._engine = engine
        self._known = known
        self._rng = rng
        self._end_s = end_s

    async def run(self, num_kills: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            background = [tasks.create_task(self._sample()), tasks.create_task(self.lateness.watch())]
            clients = [tasks.create_task(self._client()) for _ in range(NUM_CLIENTS)]
            await self._kill(num_kills)
            await asyncio.wait(clients)
            for task in background:
                task.cancel()

    async def _client(self) -> None:
        loop = asyncio.get_running_loop()
        while loop.time() < self._end_s:
            await asyncio.sleep(self._rng.expovariate(1 / PAUSE_S))
            await self._ask(self._draw(loop.time()))

    def _draw(self, now_s: float) -> Known:
        """Mostly of the two systems that are asked for at this time."""
        per_system = NUM_QUESTIONS * NUM_TAILS
        hot = (int(now_s / 20) + self._rng.randint(0, 1)) % NUM_SYSTEMS
        system = hot if self._rng.random() < 0.8 else self._rng.randrange(NUM_SYSTEMS)
        return self._known[system * per_system + self._rng.randrange(per_system)]

    async def _ask(self, known: Known) -> None:
        rng, tally = self._rng, self.tally
        num_tokens = rng.randint(1, MAX_TOKENS)
        expected = "".join(known.texts[:num_tokens])
        stop: tuple[str, ...] = ()
        if rng.random() < 0.3:
            begin = rng.randrange(len(expected))
            stop = (expected[begin : begin + rng.randint(1, 12)],)
            expected = expected[: expected.index(stop[0])]
        give_up_after = rng.randint(1, num_tokens) if rng.random() < 0.15 else None
        within_s = rng.uniform(0, 0.3) if rng.random() < 0.1 else None
        tally.asked += 1
        while True:
            try:
                sampling = Sampling(num_tokens, temperature=0.0, stop=stop)
                async with asyncio.timeout(within_s if within_s is not None else LOST_S):
                    await self._generate(known, sampling, expected, give_up_after)
            except EngineUnavailable:
                tally.asked_again += 1
                continue
            except TimeoutError:
                tally.given_up += within_s is not None
                tally.lost += within_s is None
            return

    async def _generate(self, known: Known, sampling: Sampling, expected: str, give_up_after: int | None) -> None:
        tally, texts, logprobs = self.tally, list[str](), list[float]()
        deadline_s = asyncio.get_running_loop().time() + self._rng.uniform(1, 30)
        async with aclosing(self._engine.generate(known.prompt, sampling, deadline_s=deadline_s)) as pieces:
            async for piece in pieces:
                texts.append(piece.text)
                logprobs.extend(piece.logprobs)
                if give_up_after is not None and len(logprobs) >= give_up_after and piece.finish_reason is None:
                    tally.given_up += 1
                    return
        tally.answered += 1
        tally.tokens += len(logprobs)
        tally.prompt_tokens += piece.num_prompt_tokens
        tally.cached_tokens += piece.num_cached_tokens
        tally.queue_s.append(piece.queue_s)
        found = verdict(known, "".join(texts), logprobs, expected)
        if found == "tie":
            tally.ties += 1
        elif found:
            tally.wrong.append(found)

    async def _kill(self, num_kills: int) -> None:
        loop = asyncio.get_running_loop()
        begin_s = loop.time()
        half_s = (self._end_s - begin_s) / 2
        for at_s in sorted(self._rng.uniform(0.02, 1) * half_s for _ in range(num_kills)):
            await asyncio.sleep(max(0.0, begin_s + at_s - loop.time()))
            while not await self._kill_once():
                pass
            self.tally.kills += 1

    async def _kill_once(self) -> bool:
        """Ends the process that serves; False if it was just ending by itself. What it asks first, to see whether it
        serves, is the most urgent there is, or an overload would put it off."""
        now_s = asyncio.get_running_loop().time()
        with suppress(EngineUnavailable, ProcessLookupError):
            async for _ in self._engine.generate(self._known[0].prompt, Sampling(1), deadline_s=now_s):
                pass
            if self._engine.pid is not None:
                os.kill(self._engine.pid, signal.SIGKILL)
                return True
        return False

    async def _sample(self) -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            if (pid := self._engine.pid) is not None:
                at_s = asyncio.get_running_loop().time()
                self.samples.append(Sample(at_s, rss_bytes(os.getpid()), rss_bytes(pid), self.tally.kills))


def rss_bytes(pid: int) -> int:
    """Resident memory; 0 when the process is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def growth_bytes(values: Sequence[int]) -> float:
    """From the second quarter to the last, by medians: the first is warming up."""
    if not values:
        return 0.0
    quarter = max(1, len(values) // 4)
    return median(values[-quarter:]) - median(values[quarter : 2 * quarter] or values)


async def control(seconds: float) -> Lateness:
    """How late timers are in a loop that does nothing else."""
    lateness = Lateness()
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await lateness.watch()
    return lateness


async def soak(minutes: float, num_kills: int, seed: int) -> dict[str, object]:
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "endless.gguf")
        write_tiny_gguf(path, seed=1, shape=replace(PRESETS["edge"], end_bias=NEVER))
        known = await know(path, prompts(rng))
        async with started(path, n_ctx=N_CTX, n_seq_max=N_SEQ_MAX, n_batch=256) as engine:
            worked = Soak(engine, known, rng, asyncio.get_running_loop().time() + minutes * 60)
            begun_s = time.monotonic()
            beside = await asyncio.create_subprocess_exec(
                sys.executable, __file__, "--control-s", str(minutes * 60), stdout=asyncio.subprocess.PIPE
            )
            await worked.run(num_kills)
            elapsed_s = time.monotonic() - begun_s
            output, _ = await beside.communicate()
    return figures(worked, elapsed_s, orjson.loads(output), num_kills)


def figures(worked: Soak, elapsed_s: float, beside: dict[str, float], num_kills: int) -> dict[str, object]:
    tally = worked.tally
    last = [sample for sample in worked.samples if sample.kills == tally.kills]
    own, engine = growth_bytes([it.own_bytes for it in last]), growth_bytes([it.engine_bytes for it in last])
    flat_over_s = last[-1].at_s - last[0].at_s if last else 0.0
    queue_s = sorted(tally.queue_s) or [0.0]
    checks = {
        "every segment answered or given up": not tally.lost and tally.answered + tally.given_up == tally.asked,
        "none wrong": not tally.wrong and tally.ties <= FEW_TIES * tally.answered,
        "killed as often as asked": tally.kills == num_kills,
        "memory flat, watched for a quarter of the time": max(own, engine) < GROWTH_BYTES
        and flat_over_s > elapsed_s / 4,
        "event loop never blocked over 20 ms": worked.lateness.num_blocked == 0,
    }
    return {
        "elapsed_s": elapsed_s,
        **{name: value for name, value in asdict(tally).items() if name not in ("queue_s", "wrong")},
        "wrong": len(tally.wrong),
        "wrong_examples": tally.wrong[:5],
        "queue_p50_s": queue_s[len(queue_s) // 2],
        "queue_p95_s": queue_s[len(queue_s) * 95 // 100],
        "own_growth_bytes": own,
        "engine_growth_bytes": engine,
        "engine_bytes": last[-1].engine_bytes if last else 0,
        "flat_over_s": flat_over_s,
        "loop_late_most_s": worked.lateness.most_s,
        "loop_blocked_over_20_ms": worked.lateness.num_blocked,
        "loop_late_over_20_ms": worked.lateness.num_late,
        "control_late_most_s": beside["most_s"],
        "control_late_over_20_ms": beside["num_late"],
        "ticks": worked.lateness.num,
        "checks": checks,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Soak a llama.cpp engine at its memory limit, with kills.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long")
    parser.add_argument("--kills", type=int, default=10, help="of the engine's process, in the first half")
    parser.add_argument("--seed", type=int, default=0, help="of everything drawn")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--control-s", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.control_s is not None:
        print(orjson.dumps(asdict(asyncio.run(control(arguments.control_s)))).decode())
        return 0
    found = run_once(lambda: soak(arguments.minutes, arguments.kills, arguments.seed))
    if arguments.json:
        arguments.json.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    for name, value in found.items():
        print(f"{name}: {value:,.4f}" if isinstance(value, float) else f"{name}: {value}")
    checks = found["checks"]
    assert isinstance(checks, dict)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())

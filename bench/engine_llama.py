"""What this project's engine is measured against: `Llama.create_completion`, and llama.cpp's own programs."""

import asyncio
import socket
import subprocess
import time
from typing import Any

import httpx
import orjson

from bench.engine_prompts import OWN_TOKENS, SHARED_TOKENS
from bench.engine_work import MAX_TOKENS, Asked, Done, Job, Setup, Unfair, Written, decode_per_s
from bench.lifeline import killed_with_parent

START_S = 60.0


class OneAfterAnother:
    """`Llama.create_completion`, a segment at a time; it evaluates no prefix again that the segment before had too.

    With the attention and the layers on a GPU that the others choose by themselves."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def start(self) -> None:
        import llama_cpp

        setup = self._setup
        self._perf = llama_cpp.llama_perf_context
        self._llama = llama_cpp.Llama(
            str(setup.model),
            n_ctx=setup.n_ctx,
            n_threads=setup.n_threads,
            n_threads_batch=setup.n_threads,
            n_batch=setup.n_batch,
            n_ubatch=setup.n_ubatch,
            n_gpu_layers=-1,
            flash_attn=True,
            verbose=False,
        )

    async def run(self, job: Job) -> Done:
        began_s = time.perf_counter()
        written = [self._write(asked, job, number, began_s) for number, asked in enumerate(job.segments)]
        decoding_s = sum(each.end_s - each.first_s for each in written)
        return Done(sum(each.num_tokens - 1 for each in written) / decoding_s, tuple(written))

    async def close(self) -> None:
        self._llama.close()

    def _write(self, asked: Asked, job: Job, number: int, began_s: float) -> Written:
        """llama.cpp itself says how long the prompt took; with that the first token is there."""
        sampling, from_s = job.sampling, time.perf_counter() - began_s
        before = self._perf(self._llama.ctx)
        answer: Any = self._llama.create_completion(
            list(asked.tokens),
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            repeat_penalty=sampling.repeat_penalty,
            seed=job.seed + number,
        )
        end_s, after = time.perf_counter() - began_s, self._perf(self._llama.ctx)
        usage = answer["usage"]
        num_evaluated = after.n_p_eval - before.n_p_eval
        first_s = from_s + (after.t_p_eval_ms - before.t_p_eval_ms) / 1e3
        num_prompt = usage["prompt_tokens"]
        return Written(first_s, end_s, usage["completion_tokens"], num_prompt, num_prompt - num_evaluated)


class Server:
    """`llama-server` with a slot for each segment, asked over HTTP for all at once.

    Each answer comes as a whole: were it streamed, events and who reads them would take cores from the server."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def start(self) -> None:
        port = _free_port()
        self._client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=None, trust_env=False)
        self._process = subprocess.Popen(  # noqa: ASYNC220 - returns when the program has begun
            [_program(self._setup, "llama-server"), *_common(self._setup), *self._arguments(port)],
            stdout=subprocess.DEVNULL,
            **killed_with_parent(),
        )
        async with asyncio.timeout(START_S):
            await self._ready()
        await self._check()

    async def run(self, job: Job) -> Done:
        began_s = time.perf_counter()
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._write(asked, job, number, began_s)) for number, asked in enumerate(job.segments)
            ]
        written = [task.result() for task in running]
        return Done(decode_per_s([arrivals for _, arrivals in written]), tuple(segment for segment, _ in written))

    async def close(self) -> None:
        await self._client.aclose()
        self._process.terminate()
        await asyncio.to_thread(self._process.wait)

    def _arguments(self, port: int) -> list[str]:
        slots = ["--parallel", str(self._setup.size), "--kv-unified", "--cache-ram", "0"]
        return [*slots, "--host", "127.0.0.1", "--port", str(port), "--log-verbosity", "1"]

    async def _ready(self) -> None:
        while True:
            if self._process.poll() is not None:
                raise Unfair(f"llama-server ended with {self._process.returncode} before it was ready")
            try:
                if (await self._client.get("/health")).status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(0.05)

    async def _check(self) -> None:
        """Raises `Unfair` unless it has the slots and the memory that it was asked for."""
        found = (await self._client.get("/props")).json()
        slots, n_ctx = found["total_slots"], found["default_generation_settings"]["n_ctx"]
        if slots != self._setup.size or n_ctx != self._setup.n_ctx:
            raise Unfair(
                f"expected llama-server with {self._setup.size} slots of {self._setup.n_ctx}, got {slots} of {n_ctx}"
            )

    async def _write(self, asked: Asked, job: Job, number: int, began_s: float) -> tuple[Written, list[float]]:
        """The server says how long it drew; its tokens are taken to have come evenly in that time."""
        response = await self._client.post("/completion", json=_body(asked, job, number))
        end_s = time.perf_counter() - began_s
        timings = response.raise_for_status().json()["timings"]
        num_tokens, num_cached = timings["predicted_n"], timings["cache_n"]
        step_s = timings["predicted_ms"] / 1e3 / (num_tokens - 1)
        arrivals = [end_s - step_s * num_later for num_later in range(num_tokens - 1, -1, -1)]
        return Written(arrivals[0], end_s, num_tokens, timings["prompt_n"] + num_cached, num_cached), arrivals


class Ceiling:
    """`llama-batched-bench`: what llama.cpp's evaluation alone can do. It draws nothing and writes nothing."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    async def start(self) -> None:
        self._program = _program(self._setup, "llama-batched-bench")

    async def run(self, job: Job) -> Done:  # noqa: ARG002 - it makes its own prompts
        command = [self._program, *_common(self._setup), *self._arguments()]
        ran = await asyncio.to_thread(
            lambda: subprocess.run(command, check=True, capture_output=True, text=True, **killed_with_parent())
        )
        lines = [line for line in ran.stdout.splitlines() if line.startswith("{")]
        if len(lines) != 1:
            raise Unfair(f"expected one line of JSON from llama-batched-bench, got {len(lines)}: {ran.stderr[-500:]}")
        return Done(orjson.loads(lines[0])["speed_tg"])

    async def close(self) -> None:
        """Each run was a process of its own."""

    def _arguments(self) -> list[str]:
        prompt = ["-npp", str(SHARED_TOKENS + OWN_TOKENS), "-pps", "--kv-unified"]
        return [*prompt, "-ntg", str(MAX_TOKENS), "-npl", str(self._setup.size), "--output-format", "jsonl"]


def _common(setup: Setup) -> list[str]:
    sizes = ["--ctx-size", str(setup.n_ctx), "--batch-size", str(setup.n_batch), "--ubatch-size", str(setup.n_ubatch)]
    threads = ["--threads", str(setup.n_threads), "--threads-batch", str(setup.n_threads)]
    return ["--model", str(setup.model), *sizes, *threads]


def _body(asked: Asked, job: Job, number: int) -> dict[str, Any]:
    """Samplers are named, so that none is at work that the others do not have."""
    sampling = job.sampling
    return {
        "prompt": list(asked.tokens),
        "cache_prompt": True,
        "n_predict": sampling.max_tokens,
        "samplers": ["top_k"] if job.greedy else ["top_k", "top_p", "temperature"],
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "seed": job.seed + number,
    }


def _program(setup: Setup, name: str) -> str:
    assert setup.tools is not None, "contenders that need a program are left out without it"
    return str(setup.tools / name)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])

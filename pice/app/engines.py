"""Settings -> engines, started; and what a model file is timed at."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

from pice.core import CLOUD_SITE, NUM_SEEDS, Curve
from pice.engine.base import Engine
from pice.engine.llama.options import ROUGH_CURVE, num_cores
from pice.engine.llama.options import LlamaOptions as LlamaOptions
from pice.plan.curve import Run as TimedRun
from pice.plan.curve import Workload
from pice.settings import EmulatedSettings, EngineSettings, LlamaCppSettings, OpenAISettings, Settings

if TYPE_CHECKING:
    from pice.engine.llama.measure_process import Measured

ASSUMED_CLOUD_CURVE = Curve(batch=(1, 16), step_s=(0.03, 0.05), prefill_s_per_token=0.0002, base_s=0.05)
"""Of a server whose curve is not configured; an assumption, about a 70B model on eight accelerators."""


def all_sites(settings: Settings) -> dict[str, tuple[str, ...]]:
    """The engines of each site by name, the cloud's own site first."""
    return {CLOUD_SITE: (settings.cloud.engine,)} | {name: site.engines for name, site in settings.sites.items()}


async def start_engines(
    settings: Settings, wanted: Mapping[str, Sequence[str]], rng: random.Random, stack: AsyncExitStack
) -> dict[str, list[Engine]]:
    """The engines of the sites in `wanted`, loaded and ready; `stack` closes them.

    Raises:
        ModelLoadError: one cannot be used.
    """
    chosen = [settings.engines[name] for names in wanted.values() for name in names]
    local = [each for each in chosen if isinstance(each, LlamaCppSettings)]
    num_threads, shares_cores = _threads(local, num_cores())
    make = partial(make_engine, rng=rng, num_threads=num_threads, shares_cores=shares_cores)
    engines = {site: [make(settings.engines[name]) for name in names] for site, names in wanted.items()}
    await _start_together([engine for site in engines.values() for engine in site], stack)
    return engines


def _threads(local: Sequence[LlamaCppSettings], num_cores: int) -> tuple[int, bool]:
    """For each engine whose threads are left open its part of the cores that the others leave; and whether all threads
    are more than the cores. Where all are left open it is two at least: an engine that is the only busy one gains
    more by the second than all of them lose who sleep for one another (`python -m bench threads`)."""
    num_given = sum(each.n_threads for each in local)
    num_open = sum(not each.n_threads for each in local)
    least = 1 if num_given else min(2, num_cores)
    num_threads = max(least, (num_cores - num_given) // max(1, num_open))
    return num_threads, num_given + num_open * num_threads > num_cores


async def _start_together(engines: Sequence[Engine], stack: AsyncExitStack) -> None:
    """Raises what the first to fail raises, as itself."""
    for engine in engines:
        stack.push_async_callback(engine.close)
    try:
        async with asyncio.TaskGroup() as tasks:
            for engine in engines:
                tasks.create_task(engine.start())
    except BaseExceptionGroup as group:
        raise group.exceptions[0] from None


def make_engine(
    settings: EngineSettings, rng: random.Random, *, num_threads: int, shares_cores: bool = False
) -> Engine:
    """The engine that settings describe, not started. `num_threads` is used where the settings leave it open;
    `shares_cores` says that the threads of all engines are more than the cores."""
    curve = settings.curve.curve() if settings.curve else None
    match settings:
        case EmulatedSettings():
            from pice.engine.emulated import EmulatedEngine, TextStyle

            return EmulatedEngine(
                model=settings.model,
                curve=settings.curve.curve(),
                seed=settings.seed,
                context_tokens=settings.context_tokens,
                max_inflight=settings.max_inflight,
                piece_tokens=settings.piece_tokens,
                style=TextStyle(**settings.style.model_dump()),
            )
        case LlamaCppSettings():
            from pice.engine.llama_cpp import LlamaCppEngine
            from pice.engine.process import ProcessEngine

            options = _llama_options(settings, rng, num_threads=num_threads, shares_cores=shares_cores)
            if settings.isolation == "thread":
                return LlamaCppEngine(options)
            return ProcessEngine(options)
        case OpenAISettings():
            from pice.engine.openai import OpenAIEngine

            return OpenAIEngine(
                base_url=settings.base_url,
                model=settings.model,
                api_key=settings.api_key.get_secret_value() if settings.api_key else "",
                context_tokens=settings.context_tokens,
                max_inflight=settings.max_inflight,
                curve=curve or ASSUMED_CLOUD_CURVE,
                rng=rng,
                connect_s=settings.connect_timeout_s,
                first_token_s=settings.first_token_timeout_s,
                between_tokens_s=settings.between_tokens_timeout_s,
                extra_body=settings.extra_body,
                max_retries=settings.max_retries,
                dialect=settings.dialect,
            )


def _llama_options(
    settings: LlamaCppSettings, rng: random.Random, *, num_threads: int, shares_cores: bool
) -> LlamaOptions:
    return LlamaOptions(
        path=settings.path,
        n_ctx=settings.n_ctx,
        n_seq_max=settings.n_seq_max,
        n_threads=settings.n_threads or num_threads,
        n_batch=settings.n_batch,
        n_ubatch=settings.n_ubatch,
        n_gpu_layers=settings.n_gpu_layers,
        kv_type=settings.kv_type,
        flash_attn=settings.flash_attn,
        mmap=settings.mmap,
        prefix_cache_tokens=settings.prefix_cache_tokens,
        chat_template=settings.chat_template or None,
        curve=settings.curve.curve() if settings.curve else ROUGH_CURVE,
        seed=rng.randrange(NUM_SEEDS),
        shares_cores=shares_cores,
    )


def bench_model(options: LlamaOptions, workload: Workload, on_run: Callable[[TimedRun], None]) -> "Measured":
    """What a GGUF file is timed at; `on_run` is called after each run.

    Raises:
        ModelLoadError, ConfigError, InputError: the file, an option or the workload is wrong.
        EngineError: llama.cpp failed on the way.
    """
    from pice.engine.llama.measure_process import measure_apart

    return measure_apart(options, workload, on_run)

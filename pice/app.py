"""Settings -> running objects: the only place that names adapters."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pice.answer.score import Weights
from pice.answer.steps import EnsemblePolicy
from pice.config import load_settings
from pice.core import CLOUD_SITE, NUM_SEEDS, Curve
from pice.engine.base import Engine
from pice.engine.llama.options import ROUGH_CURVE, num_cores
from pice.engine.llama.options import LlamaOptions as LlamaOptions
from pice.errors import InputError
from pice.node.client import Client
from pice.node.cloud import CloudNode, CloudPolicy
from pice.node.collector import CollectorNode
from pice.node.edge import Address, EdgeNode, EdgePolicy
from pice.node.load import Load
from pice.pipeline import Pipeline
from pice.plan.base import Planner
from pice.plan.curve import Run as TimedRun
from pice.plan.curve import Workload
from pice.plan.planner import EarliestFinish, PlanPolicy
from pice.settings import EmulatedSettings, EngineSettings, LlamaCppSettings, OpenAISettings, Settings
from pice.sketch.prompts import load_prompts
from pice.store.base import Store
from pice.store.memory import MemoryStore
from pice.transport.base import Transport
from pice.transport.memory import MemoryTransport

if TYPE_CHECKING:
    from pice.engine.llama.measure_process import Measured

ASSUMED_CLOUD_CURVE = Curve(batch=(1, 16), step_s=(0.03, 0.05), prefill_s_per_token=0.0002, base_s=0.05)
"""Of a server whose curve is not configured; an assumption, about a 70B model on eight accelerators."""


def settings_of(config: str | Path | None, overrides: Sequence[str]) -> Settings:
    """The settings in a TOML file, or the defaults, with overrides.

    Raises:
        InputError: `overrides` is one string, of which each letter would be taken for a setting.
        ConfigError: a setting is wrong.
    """
    if isinstance(overrides, str):
        raise InputError(f"overrides: expected a list of KEY=VALUE strings, got {overrides!r}: put it in [ ]")
    return load_settings(None if config is None else Path(config), overrides)


@asynccontextmanager
async def open_pipeline(settings: Settings) -> AsyncIterator[Pipeline]:
    """All nodes in this process on the in-memory transport, ready to answer. On leaving, what is still asked ends as
    `cancelled`, and the nodes are drained and closed. They share one planner, so what the collector learns of answers
    and places informs the cloud node's plans.

    Raises:
        ModelLoadError: an engine cannot be used.
    """
    rng = random.Random(int.from_bytes(os.urandom(16)))
    async with AsyncExitStack() as stack:
        engines = await _start_engines(settings, rng, stack)
        ports = _Ports(
            MemoryTransport(max_bytes=settings.limits.max_message_bytes),
            MemoryStore(max_open=settings.limits.max_open_requests, record_ttl_s=settings.limits.record_ttl_s),
        )
        stack.push_async_callback(ports.store.close)
        stack.push_async_callback(ports.transport.close)
        load, planner = Load(), EarliestFinish(_plan_policy(settings))
        cloud = _cloud_node(settings, ports, planner, engines[CLOUD_SITE][0], load)
        edges = _edge_nodes(settings, ports, engines, load)
        for edge in edges:
            await edge.announce()
        async with _running([cloud.run, _collector(settings, ports, planner).run, *(edge.run for edge in edges)]):
            client = Client(ports.transport, ports.store)
            try:
                yield Pipeline(settings, client, cloud, rng)
            finally:
                await client.close()


@dataclass(frozen=True, slots=True)
class _Ports:
    transport: Transport
    store: Store


def _cloud_node(settings: Settings, ports: _Ports, planner: Planner, engine: Engine, load: Load) -> CloudNode:
    return CloudNode(
        transport=ports.transport,
        store=ports.store,
        engine=engine,
        load=load,
        planner=planner,
        prompts=load_prompts(settings.cloud.prompts),
        policy=_cloud_policy(settings),
    )


def _collector(settings: Settings, ports: _Ports, planner: Planner) -> CollectorNode:
    return CollectorNode(
        transport=ports.transport,
        store=ports.store,
        planner=planner,
        policy=_ensemble_policy(settings),
        drain_s=settings.limits.drain_s,
    )


def _edge_nodes(
    settings: Settings, ports: _Ports, engines: Mapping[str, Sequence[Engine]], cloud_load: Load
) -> list[EdgeNode]:
    """A node per site. The cloud engine's own site is the first; it shares its load with the cloud node."""
    limits = settings.limits
    policy = EdgePolicy(max_deliveries=limits.max_deliveries, drain_s=limits.drain_s)
    cloud_prompts = load_prompts(settings.cloud.prompts)
    nodes = [
        EdgeNode(
            Address(CLOUD_SITE, CLOUD_SITE, 0),
            transport=ports.transport,
            store=ports.store,
            engines=[(engines[CLOUD_SITE][0], cloud_load, cloud_prompts)],
            policy=policy,
        )
    ]
    for partition, (name, site) in enumerate(settings.sites.items()):
        prompts = load_prompts(site.prompts)
        nodes.append(
            EdgeNode(
                Address(name, site.pool, partition, site.rtt_s),
                transport=ports.transport,
                store=ports.store,
                engines=[(engine, Load(), prompts) for engine in engines[name]],
                policy=replace(policy, window=site.window, order=site.order),
            )
        )
    return nodes


Run = Callable[[asyncio.Event], Coroutine[Any, Any, None]]


@asynccontextmanager
async def _running(nodes: Sequence[Run]) -> AsyncIterator[None]:
    """Runs nodes until the block ends, then drains them. An error of a node ends the block; one error comes out as
    itself, not as a group."""
    stopping = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as tasks:
            for node in nodes:
                tasks.create_task(node(stopping))
            yield
            stopping.set()
    except BaseExceptionGroup as group:
        if len(group.exceptions) == 1:
            raise group.exceptions[0] from None
        raise


async def _start_engines(settings: Settings, rng: random.Random, stack: AsyncExitStack) -> dict[str, list[Engine]]:
    """Each site's own engines, the cloud's among them, loaded and ready."""
    wanted = {CLOUD_SITE: [settings.cloud.engine]} | {name: list(site.engines) for name, site in settings.sites.items()}
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


def _plan_policy(settings: Settings) -> PlanPolicy:
    planner = settings.planner
    return PlanPolicy(
        margin=planner.margin,
        sketch_ratio=planner.sketch_ratio,
        segment_words=planner.segment_words,
        max_segments=planner.max_segments,
        assumed_answer_words=planner.assumed_answer_words,
        candidates=planner.candidates,
    )


def _cloud_policy(settings: Settings) -> CloudPolicy:
    return CloudPolicy(
        max_inflight=settings.cloud.max_inflight,
        max_deliveries=settings.limits.max_deliveries,
        drain_s=settings.cloud.drain_s,
        max_points=settings.planner.max_points,
        eager=settings.planner.eager,
        sketch_grammar=settings.cloud.sketch_grammar,
    )


def _ensemble_policy(settings: Settings) -> EnsemblePolicy:
    ensemble, planner = settings.ensemble, settings.planner
    return EnsemblePolicy(
        weights=Weights(**ensemble.weights.model_dump()),
        max_candidates=ensemble.max_candidates,
        second_opinion_below=ensemble.second_opinion_below,
        hedge_factor=planner.hedge_factor,
        hedge_min_s=planner.hedge_min_s,
    )

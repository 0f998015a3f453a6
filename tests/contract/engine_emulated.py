"""The emulated engine, at a pace that leaves time to interrupt it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pice.core import Curve
from pice.engine.base import Engine
from pice.engine.emulated import EmulatedEngine

CURVE = Curve(batch=(1, 8), step_s=(0.0005, 0.001), prefill_s_per_token=0.00001, base_s=0.001)


@asynccontextmanager
async def make_engine() -> AsyncIterator[Engine]:
    engine = EmulatedEngine(model="emulated", curve=CURVE, seed=1, context_tokens=2048, max_inflight=8)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()

"""llama.cpp in a process of its own, on the model of `engine_llama.py`."""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pice.engine.base import Engine
from pice.engine.llama.options import LlamaOptions
from pice.engine.process import ProcessEngine
from tools.tiny_gguf import NEVER, PRESETS, write_tiny_gguf

ENDLESS = replace(PRESETS["edge"], end_bias=NEVER)


@asynccontextmanager
async def make_engine() -> AsyncIterator[Engine]:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_gguf(path, seed=1, shape=ENDLESS)
        engine = ProcessEngine(LlamaOptions(path=path, n_ctx=2048, n_seq_max=4, n_threads=1, n_batch=256))
        await engine.start()
        try:
            yield engine
        finally:
            await engine.close()

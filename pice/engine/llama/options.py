"""How a GGUF file is run."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from pice.core import Curve
from pice.errors import ConfigError

DEFAULT_N_CTX = 8192
"""Tokens of memory where none are asked for; a model's own maximum can be far more than a small machine has."""

ROUGH_CURVE = Curve(batch=(1, 8), step_s=(0.05, 0.08), prefill_s_per_token=0.005, base_s=0.05)
"""A 1-billion-parameter model on a few cores, within a factor of some: `pice models bench` measures the real one."""

MAX_SEQUENCES = 256
"""llama.cpp's own bound on sequence ids."""

MOST, MOST_BATCH, MOST_THREADS = 1 << 22, 1 << 16, 1024
"""Well above what is of use, and below what llama.cpp's 32-bit numbers would take for something else."""

NUM_CACHE_SEQUENCES = 32
"""Sequence ids kept for prefixes that stay in memory when nobody uses them."""

PREFIX_CACHE_PART = 16
"""What part of the memory such prefixes may take. Every step looks at each of their cells: beside eight sequences 512
of them took 1 % of the speed of a 0.5B shape on two cores, 2,048 took 4 %, 4,096 took 17 %."""

KVType = Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]


@dataclass(frozen=True, slots=True)
class LlamaOptions:
    """Names are llama.cpp's own where it has one.

    Args:
        path: the model file.
        model: its name; the file's stem if not given.
        n_ctx: tokens of memory, shared by all running sequences; None is the model's own, at most `DEFAULT_N_CTX`.
        n_seq_max: sequences decoded at once; further ones wait.
        n_threads: None is one per core. Engines that share cores must share them out.
        n_batch: tokens evaluated in one step at most; bounds how long a step, and so a cancellation, can take.
        n_ubatch: tokens evaluated in one go within a step; bounds the memory for it.
        n_gpu_layers: -1 is all, where llama.cpp was built for a GPU.
        kv_type: of the memory's cells.
        flash_attn: whether attention is computed in one pass; "auto" leaves it to llama.cpp.
        mmap: the file is mapped, and so shared with other processes, not read.
        prefix_cache_tokens: of `n_ctx`, how many may hold prefixes that no sequence uses; None is a sixteenth.
        chat_template: a template's name in the file, or "chatml"; None is the file's default.
        curve: its timing, if measured.
        seed: of the seeds of generations that bring none.
        shares_cores: others compute on the cores that its threads are meant for.

    Raises:
        ConfigError: a number is out of range.
    """

    path: Path
    model: str = ""
    n_ctx: int | None = None
    n_seq_max: int = 8
    n_threads: int | None = None
    n_batch: int = 512
    n_ubatch: int = 512
    n_gpu_layers: int = -1
    kv_type: KVType = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    mmap: bool = True
    prefix_cache_tokens: int | None = None
    chat_template: str | None = None
    curve: Curve = ROUGH_CURVE
    seed: int = 0
    shares_cores: bool = False

    def __post_init__(self) -> None:
        most_sequences, cached = MAX_SEQUENCES - NUM_CACHE_SEQUENCES, self.prefix_cache_tokens
        rules = {
            "n_ctx": (self.n_ctx, self.n_ctx is None or 1 <= self.n_ctx <= MOST, f"from 1 to {MOST}"),
            "n_seq_max": (self.n_seq_max, 1 <= self.n_seq_max <= most_sequences, f"from 1 to {most_sequences}"),
            "n_threads": (
                self.n_threads,
                self.n_threads is None or 1 <= self.n_threads <= MOST_THREADS,
                f"from 1 to {MOST_THREADS}",
            ),
            "kv_type": (self.kv_type, self.kv_type in get_args(KVType), f"one of {', '.join(get_args(KVType))}"),
            "n_batch": (
                self.n_batch,
                self.n_seq_max <= self.n_batch <= MOST_BATCH,
                f"from n_seq_max ({self.n_seq_max}) to {MOST_BATCH}",
            ),
            "n_ubatch": (self.n_ubatch, 1 <= self.n_ubatch <= MOST_BATCH, f"from 1 to {MOST_BATCH}"),
            "n_gpu_layers": (self.n_gpu_layers, -1 <= self.n_gpu_layers <= MOST, f"from -1 to {MOST}"),
            "flash_attn": (
                self.flash_attn,
                self.flash_attn != "off" or self.kv_type in ("f32", "f16"),
                f'"auto" or "on" with kv_type {self.kv_type}',
            ),
            "prefix_cache_tokens": (cached, cached is None or cached >= 0, ">= 0"),
        }
        for name, (value, right, expected) in rules.items():
            if not right:
                raise ConfigError(f"{name} must be {expected}, got {value!r}")

    @property
    def name(self) -> str:
        return self.model or self.path.stem

    @property
    def num_threads(self) -> int:
        return self.n_threads or num_cores()


def num_cores() -> int:
    """Cores that this process may use: in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

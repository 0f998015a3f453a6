"""Times a GGUF file in a process of its own, which llama.cpp ends where it finds something wrong with the file."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import orjson

from pice.engine.llama.measure import Done, Loaded, Said, fits
from pice.engine.llama.options import DEFAULT_N_CTX, MAX_SEQUENCES, NUM_CACHE_SEQUENCES, LlamaOptions
from pice.engine.llama.waiting import waiting
from pice.engine.process_life import how_ended
from pice.engine.process_wire import Fault, error_of
from pice.errors import DecodeError, EngineError, InputError, ModelLoadError, PiceError
from pice.message.fields import Mismatch, reader
from pice.plan.curve import Run, Timing, Workload

PROGRAM = ("-P", "-m", "pice.engine.llama.measure")
"""What Python is told to run; by `-P` no file of the current folder is taken for a module."""
TIMED_OPTIONS = (
    "n_ctx",
    "n_seq_max",
    "n_threads",
    "n_batch",
    "n_ubatch",
    "n_gpu_layers",
    "kv_type",
    "flash_attn",
    "mmap",
)
MAX_LINE_BYTES = 65_536
MAX_LAST_WORDS = 300
END_WAIT_S = 10.0
"""What a process may take to end when it has closed its output."""
LEAST_S, MOST_S = 1e-9, 1e9
"""A clock's tick, and what nobody waits for: rates of times between them are finite."""

_READ = {cls.__name__: reader(cls) for cls in (Loaded, Run, Done, Fault)}


@dataclass(frozen=True, slots=True)
class Measured:
    """What a model was timed at, how it was run, and what it took; `rss_bytes` at the end of all."""

    options: LlamaOptions
    loaded: Loaded
    timing: Timing
    rss_bytes: int

    def summary(self) -> str:
        """What it took, in a line."""
        before, after = (num_bytes / 2**20 for num_bytes in (self.loaded.rss_bytes_before, self.rss_bytes))
        prompts = "" if self.timing.shared else "; this model shares no prompt: each sequence had its own"
        return (
            f"loaded in {self.loaded.load_s:.2f} s; memory {before:.0f} MiB before, {after:.0f} MiB after; "
            f"{self.options.num_threads} threads; medians of {self.timing.workload.num_runs} runs{prompts}"
        )

    def document(self) -> dict[str, object]:
        """All of it but the file's name, for JSON."""
        return {
            "options": _own(self.options) | {"n_threads": self.options.num_threads},
            "machine": self.loaded.machine,
            "load_s": self.loaded.load_s,
            "rss_bytes_before": self.loaded.rss_bytes_before,
            "rss_bytes": self.rss_bytes,
            "timing": self.timing,
            "rows": list(self.timing.rows()),
            "curve": self.timing.curve(),
        }


def fitted(options: LlamaOptions, workload: Workload) -> LlamaOptions:
    """The options with a place for each sequence; where no `n_ctx` is asked for, with the usual one or what it takes.

    Raises:
        InputError: there are not so many places, or so much memory.
    """
    most_places, needed = MAX_SEQUENCES - NUM_CACHE_SEQUENCES, workload.num_cells(workload.most)
    if workload.most > most_places:
        raise InputError(f"batch must be <= {most_places}, got {workload.most}")
    num_cells = options.n_ctx or max(DEFAULT_N_CTX, needed)
    fits(workload, num_cells)
    return replace(options, n_seq_max=workload.most, n_ctx=num_cells)


def measure_apart(options: LlamaOptions, workload: Workload, on_run: Callable[[Run], None]) -> Measured:
    """Times a model; `on_run` is called after each run. When this is left early, the process ends too.

    Raises:
        ModelLoadError: the file cannot be used; says what llama.cpp said, or how its process ended.
        ConfigError: llama-cpp-python is not installed.
        InputError: the workload does not fit the model, or the options the workload.
        EngineError: llama.cpp failed; says how its process ended.
        DecodeError: the process said what makes no sense.
    """
    options = fitted(options, workload)
    with tempfile.TemporaryFile() as errors, _begun(options, workload, errors) as process:
        assert process.stdout is not None
        try:
            measured = _collected(options, workload, _said(process.stdout), on_run)
            if isinstance(measured, Measured):
                return measured
            _wait(process)
            raise _ended(options, process.returncode, errors, was_loaded=measured is not None)
        finally:
            process.kill()


def _collected(
    options: LlamaOptions, workload: Workload, said: Iterator[Said], on_run: Callable[[Run], None]
) -> Measured | Loaded | None:
    """Everything, or where that ends too soon how far it came.

    Raises:
        DecodeError: the process says what was not asked for, or what cannot be.
        PiceError: the process says so.
    """
    loaded, runs = None, list[Run]()
    for each in said:
        match each:
            case Loaded() if not loaded:
                loaded = each
            case Run() if loaded:
                _check_run(each, runs, workload)
                runs.append(each)
                on_run(each)
            case Done() if loaded and len(runs) == workload.num_runs * len(set(workload.sizes)):
                return Measured(options, loaded, Timing(workload, loaded.shared, tuple(runs)), each.rss_bytes)
            case Fault():
                raise error_of(each)
            case _:
                raise DecodeError(f"expected {workload.num_runs} runs of each size, got {len(runs)} in all")
    return loaded


def _check_run(run: Run, runs: Sequence[Run], workload: Workload) -> None:
    times = (run.half_s, run.first_s, run.prefill_s, run.decode_s)
    if run.batch not in workload.sizes or [each.batch for each in runs].count(run.batch) == workload.num_runs:
        raise DecodeError(
            f"expected {workload.num_runs} runs of each batch size of {list(workload.sizes)} from the measuring "
            f"process, got one more of {run.batch}"
        )
    if not all(LEAST_S <= each <= MOST_S for each in times):
        raise DecodeError(f"expected times from {LEAST_S} to {MOST_S} s from the measuring process, got {run}")


def _wait(process: subprocess.Popen[bytes]) -> None:
    """Raises `DecodeError` if the process, which will say no more, goes on."""
    try:
        process.wait(END_WAIT_S)
    except subprocess.TimeoutExpired as error:
        raise DecodeError(
            f"expected the measuring process to end with its output, but it went on for {END_WAIT_S:g} s: it is killed"
        ) from error


def _begun(options: LlamaOptions, workload: Workload, errors: IO[bytes]) -> subprocess.Popen[bytes]:
    """The process. It is in a session of its own, out of reach of a terminal's Ctrl-C, and ends with its input."""
    asked = orjson.dumps({"options": _own(options), "workload": workload}).decode()
    return subprocess.Popen(  # noqa: S603  (this Python and a module of ours; no shell)
        [sys.executable, *PROGRAM, options.path, asked],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        env=_environment(os.environ),
        start_new_session=True,
    )


def _own(options: LlamaOptions) -> dict[str, Any]:
    """What of the options bears on a time, but for the file's name."""
    return {name: getattr(options, name) for name in TIMED_OPTIONS}


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Threads wait for one another as an engine's do that has the cores for itself."""
    return {
        "GGML_NO_BACKTRACE": "1",
        **waiting(own, shares_cores=False),
        **own,
        "PYTHONPATH": os.pathsep.join(sys.path),
    }


def _said(output: IO[bytes]) -> Iterator[Said]:
    """What the process says, until it ends. A model file is not trusted, so neither is the process that reads it."""
    while line := output.readline(MAX_LINE_BYTES):
        if line.endswith(b"\n") or len(line) == MAX_LINE_BYTES:
            yield _read(line)


def _read(line: bytes) -> Said:
    try:
        name, body = orjson.loads(line)
        said: Said = _READ[name](body)
    except (ValueError, TypeError, KeyError, Mismatch) as error:
        raise DecodeError(f"the measuring process said what makes no sense: {_plain(str(error))}") from error
    return said


def _ended(options: LlamaOptions, returncode: int, errors: IO[bytes], *, was_loaded: bool) -> PiceError:
    words = f": {last_words}" if (last_words := _last_words(errors)) else ""
    how = f"the measuring process ended {how_ended(returncode)}{words}"
    if was_loaded:
        return EngineError(f"{options.path}: {how}")
    return ModelLoadError(f"{options.path}: while it loaded the model, {how}")


def _last_words(errors: IO[bytes]) -> str:
    """The end of what a process printed, as text that a terminal does not act on: its words may be a model file's."""
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - MAX_LAST_WORDS))
    return _plain("; ".join(filter(None, map(str.strip, errors.read().decode(errors="replace").splitlines()))))


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:MAX_LAST_WORDS])

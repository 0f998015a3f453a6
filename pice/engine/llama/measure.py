"""Times a GGUF file: a shared prompt, then steps of several sequences, drawn from as the engine draws.

    python -m pice.engine.llama.measure FILE JSON

measures what the JSON asks for and says what came of it as lines of JSON on standard output. It ends with its standard
input, so with whoever began it.
"""

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import orjson

from pice.core import Sampling
from pice.engine.llama.batch import Batch
from pice.engine.llama.machine import Machine, rss_bytes, this_machine
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama.sequence import Chunk, Sequence
from pice.engine.process_wire import Fault, fault_of
from pice.errors import ConfigError, EngineError, InputError, PiceError, PromptTooLong
from pice.plan.curve import LEAST_TOKENS, Run, Workload

if TYPE_CHECKING:
    from pice.engine.llama.draw import Sampler
    from pice.engine.llama.model import Model

SEED = 0
"""Of the prompts' tokens and of what is drawn after them."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model. `shared` says whether its sequences can have one prompt in memory."""

    load_s: float
    rss_bytes_before: int
    shared: bool
    machine: Machine


@dataclass(frozen=True, slots=True)
class Done:
    """All runs were made."""

    rss_bytes: int


Said = Loaded | Run | Done | Fault


def fits(workload: Workload, num_cells: int, *, shared: bool = True) -> None:
    """Raises `InputError`, with the memory it takes, where so many cells are too few for a workload."""
    size, needed = workload.most, workload.num_cells(workload.most, shared=shared)
    if num_cells < needed:
        prompts = "" if shared else f"{size} x "
        raise InputError(
            f"n_ctx must be >= {needed} for a batch of {size} ({prompts}{workload.num_prompt_tokens} tokens of prompt "
            f"and {size} x {workload.num_tokens} after it), got {num_cells}"
        )


def measure(options: LlamaOptions, workload: Workload, now_s: Callable[[], float], say: Callable[[Said], None]) -> None:
    """Loads the model in this thread, warms it up, and makes all runs of the workload; in every other round in reverse
    order, so that a drift of the machine meets all sizes alike.

    Raises:
        ModelLoadError: the file cannot be used.
        ConfigError: llama-cpp-python is not installed.
        InputError: the workload does not fit the model.
        EngineError: llama.cpp failed.
    """
    model_class = _model_class()
    rss_bytes_before, began_s = rss_bytes(), now_s()
    model = model_class(options, stopped=lambda: False)
    try:
        bench = Bench(model, options, workload, now_s)
        say(Loaded(now_s() - began_s, rss_bytes_before, bench.shared, this_machine()))
        bench.run(workload.most, LEAST_TOKENS)
        for number in range(workload.num_runs):
            for size in sorted(set(workload.sizes), reverse=number % 2 == 1):
                say(bench.run(size, workload.num_tokens))
        say(Done(rss_bytes()))
    finally:
        model.close()


class Bench:
    """A loaded model that a workload is timed on.

    Raises:
        PromptTooLong, InputError: the workload does not fit it.
    """

    def __init__(self, model: "Model", options: LlamaOptions, workload: Workload, now_s: Callable[[], float]) -> None:
        self._model = model
        self._options = options
        self._num_prompt_tokens = workload.num_prompt_tokens
        self._now_s = now_s
        self._rng = random.Random(SEED)
        self.shared = workload.num_prompt_tokens < model.window
        if workload.num_prompt_tokens + workload.num_tokens > model.context_tokens:
            raise PromptTooLong(
                model=options.name,
                num_prompt_tokens=workload.num_prompt_tokens,
                max_tokens=workload.num_tokens,
                context_tokens=model.context_tokens,
            )
        fits(workload, model.num_cells, shared=self.shared)

    def run(self, size: int, num_tokens: int) -> Run:
        """One run with a prompt that was never seen. Texts do not end: any token may be drawn."""
        with self._trial() as trial:
            began_s = self._now_s()
            trial.evaluate(trial.begin(self._tokens(self._num_prompt_tokens // 2), 1))
            half_s = self._now_s() - began_s
        prompt = self._tokens(self._num_prompt_tokens)
        with self._trial() as trial:
            began_s = self._now_s()
            trial.evaluate(trial.begin(prompt, num_tokens))
            first_s = self._now_s()
            for _ in range(size - 1):
                trial.evaluate(trial.begin(prompt + self._tokens(1), num_tokens - 1), num_kept=1)
            filled_s = self._now_s()
            for _ in range(num_tokens):
                trial.step()
            return Run(size, half_s, first_s - began_s, filled_s - began_s, self._now_s() - filled_s)

    def _tokens(self, num: int) -> list[int]:
        return self._rng.choices(range(self._model.vocabulary.num_tokens), k=num)

    @contextmanager
    def _trial(self) -> Iterator["_Trial"]:
        trial = _Trial(self._model, self._options)
        try:
            yield trial
        finally:
            trial.end()


class _Trial:
    """Sequences that run at once, and what draws for each."""

    def __init__(self, model: "Model", options: LlamaOptions) -> None:
        self._model = model
        self._n_batch = options.n_batch
        self._batch = Batch(model.num_cells, options.n_seq_max, options.n_batch, window=model.window)
        self._samplers: dict[Sequence, Sampler] = {}

    def begin(self, tokens: list[int], max_tokens: int) -> Sequence:
        """A sequence that has all of its prompt in common with another shares it."""
        sequence = Sequence(list(tokens), max_tokens)
        self._samplers[sequence] = self._model.sampler(Sampling(), "", SEED + len(self._samplers))
        self._batch.add(sequence)
        self._model.change(self._batch.admit())
        assert sequence in self._batch.running
        return sequence

    def evaluate(self, sequence: Sequence, num_kept: int = 0) -> None:
        """Evaluates its prompt but for the last `num_kept` tokens; the whole of it gives its first token."""
        end = len(sequence.tokens) - num_kept
        while sequence.num_evaluated < end:
            start = sequence.num_evaluated
            tokens = sequence.tokens[start : min(start + self._n_batch, end)]
            self._evaluate([Chunk(sequence, start, tokens, last=start + len(tokens) == len(sequence.tokens))])

    def step(self) -> None:
        """One more token for each sequence."""
        self._evaluate(self._batch.chunks())

    def end(self) -> None:
        for sequence, sampler in self._samplers.items():
            self._model.change(self._batch.end(sequence))
            sampler.free()

    def _evaluate(self, chunks: list[Chunk]) -> None:
        if not self._model.decode(chunks):
            raise EngineError("llama.cpp found no room in the model's memory, though there must be: raise n_ctx")
        self._batch.done(chunks)
        ready = [chunk.sequence for chunk in chunks if chunk.last]
        drawn = self._model.draw([self._samplers[sequence] for sequence in ready])
        for sequence, choice in zip(ready, drawn, strict=True):
            if choice is None:
                raise EngineError("the model's numbers leave no token to draw: the file may be damaged")
            sequence.tokens.append(choice[0])


def line(said: Said) -> bytes:
    """As it is sent."""
    return orjson.dumps([type(said).__name__, asdict(said)]) + b"\n"


def main() -> None:
    """Does what the arguments say. What anything else prints goes to standard error."""
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked = orjson.loads(sys.argv[2])
    try:
        options = LlamaOptions(path=Path(sys.argv[1]), **asked["options"])
        workload = Workload(**{**asked["workload"], "sizes": tuple(asked["workload"]["sizes"])})
        measure(options, workload, time.perf_counter, lambda said: _write(out, said))
    except PiceError as error:
        _write(out, fault_of(error))


def _write(out: Any, said: Said) -> None:
    out.write(line(said))


def _end_with_parent() -> NoReturn:
    while os.read(0, 1):
        pass
    os._exit(1)


def _model_class() -> "type[Model]":
    try:
        from pice.engine.llama.model import Model
    except ImportError as error:
        raise ConfigError(f'a GGUF model needs llama-cpp-python: pip install "pice[llama]" ({error})') from error
    return Model


if __name__ == "__main__":
    main()

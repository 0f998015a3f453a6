"""`ProcessEngine`: real llama.cpp in a process of its own, which is killed, aborts, or talks nonsense."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from pice.core import Message, Prompt, Sampling
from pice.engine import process_life, process_wire
from pice.engine.base import Engine, Piece
from pice.engine.llama.options import LlamaOptions
from pice.engine.llama_cpp import LlamaCppEngine
from pice.engine.process import ProcessEngine, environment, next_pause_s
from pice.errors import ConfigError, EngineError, EngineUnavailable, InputError, ModelLoadError
from pice.message.codec import MAX_ITEMS

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from tools.tiny_gguf import NEVER, PRESETS, write_tiny_gguf

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60.0
ENDLESS = replace(PRESETS["edge"], end_bias=NEVER)
NO_LAYERS = replace(ENDLESS, layers=0)
"""A whole file, of a model on which llama.cpp fails an assertion."""
SHORT = Sampling(max_tokens=8, temperature=0.0)
LONG = Sampling(max_tokens=4000, temperature=0.0)

LOOPS, LOOP_IDS = [asyncio.new_event_loop, uvloop.new_event_loop], ["asyncio", "uvloop"]


def asking(text: str = "Explain how the ocean warms the land.") -> Prompt:
    return Prompt(messages=(Message("user", text),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, seed=1, shape=ENDLESS)
    return path


def engine_on(path: Path, **settings: Any) -> ProcessEngine:
    return ProcessEngine(LlamaOptions(path=path, n_ctx=16640, n_seq_max=4, n_threads=1, **settings))


@asynccontextmanager
async def started(engine: ProcessEngine | LlamaCppEngine) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(DEADLINE_S):
            await engine.start()
        yield
    finally:
        async with asyncio.timeout(DEADLINE_S):
            await engine.close()


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[ProcessEngine]:
    engine = engine_on(model)
    async with started(engine):
        yield engine


async def generate(engine: Engine, sampling: Sampling = SHORT, prompt: Prompt | None = None) -> list[Piece]:
    async with asyncio.timeout(DEADLINE_S):
        return [piece async for piece in engine.generate(prompt or asking(), sampling)]


async def begin(engine: Engine) -> AsyncGenerator[Piece, None]:
    pieces = engine.generate(asking(), LONG)
    async with asyncio.timeout(DEADLINE_S):
        await anext(pieces)
    return pieces


def whole(pieces: list[Piece], sampling: Sampling = SHORT) -> bool:
    return sum(piece.num_tokens for piece in pieces) == sampling.max_tokens and pieces[-1].finish_reason == "length"


def pid_of(engine: ProcessEngine) -> int:
    assert engine.pid is not None
    return engine.pid


async def next_pid(engine: ProcessEngine) -> int:
    """Of the process that is being started."""
    for _ in range(1_000_000):
        if engine.pid is not None:
            break
        await asyncio.sleep(0)
    return pid_of(engine)


def assert_gone(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def runs(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """From now on processes run this, instead of an engine."""
    monkeypatch.setattr(process_life, "PROGRAM", ("-c", script))


def breaks(monkeypatch: pytest.MonkeyPatch, decode: str) -> None:
    """From now on processes run engines whose `Model.decode` is this, as lines of Python."""
    body = decode.replace("\n", "\n    ")
    runs(
        monkeypatch,
        "import os\n"
        "from pice.engine.llama import model\n"
        "from pice.errors import EngineError\n"
        "decode = model.Model.decode\n"
        f"def broken(self, chunks):\n    {body}\n"
        "model.Model.decode = broken\n"
        "from pice.engine.process_child import main\n"
        "main()\n",
    )


@pytest.mark.parametrize("loop_factory", LOOPS, ids=LOOP_IDS)
def test_killed_process_ends_its_generations_as_unavailable_and_the_next_one_works(
    model: Path, caplog: pytest.LogCaptureFixture, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        engine = engine_on(model)
        async with started(engine):
            killed = pid_of(engine)
            running = [await begin(engine) for _ in range(4)]
            waiting = asyncio.create_task(generate(engine, LONG))
            os.kill(killed, signal.SIGKILL)
            for pieces in running:
                with pytest.raises(EngineUnavailable, match=r"tiny: the engine process ended by SIGKILL"):
                    await drained(pieces)
            with pytest.raises(EngineUnavailable):
                await waiting
            assert whole(await generate(engine))
            assert pid_of(engine) != killed
            assert_gone(killed)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert len([record for record in caplog.records if "SIGKILL" in record.getMessage()]) == 1


async def drained(pieces: AsyncGenerator[Piece, None]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        async for _ in pieces:
            pass


async def kill(engine: ProcessEngine) -> None:
    """Kills the process; that is known when this returns."""
    running = await begin(engine)
    os.kill(pid_of(engine), signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="ended by SIGKILL"):
        await drained(running)


def move(path: Path, to: Path) -> None:
    path.rename(to)


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def recovered(engine: ProcessEngine) -> None:
    """Asks until it is answered."""
    pieces: list[Piece] = []
    async with asyncio.timeout(DEADLINE_S):
        while not pieces:
            with suppress(EngineUnavailable):
                pieces = await generate(engine)
    assert whole(pieces)


async def test_process_killed_ten_times_in_a_row_is_started_ten_times(engine: ProcessEngine) -> None:
    pids = set()
    for _ in range(10):
        pids.add(pid_of(engine))
        await kill(engine)
        assert whole(await generate(engine))
    assert len(pids) == 10
    for pid in pids:
        assert_gone(pid)


async def test_count_ends_as_unavailable_when_the_process_dies(engine: ProcessEngine) -> None:
    counted = asyncio.create_task(engine.count_tokens(asking()))
    await asyncio.sleep(0)
    os.kill(pid_of(engine), signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match="SIGKILL"):
        await counted
    async with asyncio.timeout(DEADLINE_S):
        assert await engine.count_tokens(asking()) > 10


async def test_text_and_log_probabilities_are_those_of_an_engine_in_this_process(
    model: Path, engine: ProcessEngine
) -> None:
    beside = LlamaCppEngine(LlamaOptions(path=model, n_ctx=16640, n_seq_max=4, n_threads=1))
    sampling = Sampling(max_tokens=64, temperature=1.0, seed=5, stop=("ocean of",))
    async with started(beside):
        there, here = await generate(engine, sampling), await generate(beside, sampling)
        assert [replace(piece, queue_s=0.0) for piece in there] == [replace(piece, queue_s=0.0) for piece in here]
        assert engine.info == beside.info
        assert await engine.count_tokens(asking()) == await beside.count_tokens(asking())


async def test_assertion_of_llama_cpp_ends_the_generation_with_its_words_and_others_can_follow(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(
        monkeypatch,
        "tokens = (model.llama_cpp.llama_token * 1024)()\n"
        "model.llama_cpp.llama_decode(self._context, model.llama_cpp.llama_batch_get_one(tokens, 1024))",
    )
    await kill(engine)
    with pytest.raises(EngineUnavailable, match=r"ended by SIGABRT: .*GGML_ASSERT\(n_tokens_all <= .*\) failed"):
        await generate(engine)
    monkeypatch.undo()
    await recovered(engine)


async def test_engine_that_fails_for_good_is_started_again(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, "raise EngineError('llama_decode returned -3')")
    await kill(engine)
    with pytest.raises(EngineUnavailable, match=r"ended with exit code 1: .*llama_decode returned -3"):
        await generate(engine)
    monkeypatch.undo()
    await recovered(engine)


async def test_model_that_aborts_llama_cpp_is_a_model_load_error_with_its_words(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "flat.gguf", seed=1, shape=NO_LAYERS)
    engine = engine_on(tmp_path / "flat.gguf")
    with pytest.raises(ModelLoadError, match=r"flat: while it loaded .* ended by SIGABRT: .*GGML_ASSERT\(.*\) failed"):
        async with started(engine):
            pass
    assert engine.pid is None
    with pytest.raises(ModelLoadError, match="GGML_ASSERT"):
        await generate(engine)


async def test_process_killed_while_loading_is_a_model_load_error(model: Path) -> None:
    engine = engine_on(model)
    starting = asyncio.create_task(engine.start())
    pid = await next_pid(engine)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ModelLoadError, match="while it loaded the model, the engine process ended by SIGKILL"):
        await starting
    assert_gone(pid)
    await engine.close()


@pytest.mark.parametrize(
    ("settings", "error"),
    [({"chat_template": "none"}, ConfigError), ({"kv_type": "q4_0"}, ModelLoadError)],
    ids=["no such template", "no such context"],
)
async def test_what_cannot_be_loaded_is_refused_as_in_this_process(
    model: Path, settings: dict[str, Any], error: type[Exception]
) -> None:
    said = []
    for kind in (ProcessEngine, LlamaCppEngine):
        with pytest.raises(error) as refused:
            async with started(kind(LlamaOptions(path=model, **settings))):
                pass
        said.append(str(refused.value))
    assert said[0] == said[1]


@pytest.mark.parametrize("loop_factory", LOOPS, ids=LOOP_IDS)
def test_engines_of_several_threads_start_at_the_same_time(
    model: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main(ready: threading.Barrier) -> int:
        ready.wait(DEADLINE_S)
        async with started(engine := engine_on(model)):
            return await engine.count_tokens(asking())

    def run(ready: threading.Barrier) -> int:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            return runner.run(main(ready))

    ready = threading.Barrier(4)
    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(run, [ready] * 4))) == 1


async def test_engine_that_could_not_be_started_again_makes_nobody_wait(
    model: Path, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pice.engine.process.RESTART_WAIT_S", 10 * DEADLINE_S)
    monkeypatch.setattr("pice.engine.process.next_pause_s", lambda last_s, _: 10 * DEADLINE_S if last_s else 0.01)
    move(model, model.with_suffix(".away"))
    await kill(engine)
    for _ in range(2):
        with pytest.raises(EngineUnavailable, match="No such file"):
            await generate(engine)


async def test_model_gone_after_a_crash_is_tried_until_it_is_back(
    model: Path, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pice.engine.process.RESTART_WAIT_S", 10 * DEADLINE_S)
    move(model, away := model.with_suffix(".away"))
    await kill(engine)
    with pytest.raises(EngineUnavailable, match=r"tiny\.gguf: cannot be read: No such file"):
        await generate(engine)
    move(away, model)
    await recovered(engine)


async def test_call_that_waits_for_a_restart_gives_up_in_time_or_when_cancelled(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, "import sys; open(int(sys.argv[1]), 'rb').read()")
    await kill(engine)
    given_up = asyncio.create_task(generate(engine))
    await asyncio.sleep(0)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    monkeypatch.setattr("pice.engine.process.RESTART_WAIT_S", 0.01)
    with pytest.raises(EngineUnavailable, match="ended by SIGKILL; it is being started again"):
        await generate(engine)


HELLO = """
import socket, struct, sys, time
from pice.core import Curve
from pice.engine.base import EngineInfo, Piece
from pice.engine.process_wire import *
sock = socket.socket(fileno=int(sys.argv[1]))
def send(payload): sock.sendall(struct.pack("!I", len(payload)) + payload)
ready = packed(Ready(EngineInfo("tiny", 2048, 4, Curve((1,), (0.1,)))))
def take():
    (size,) = struct.unpack("!I", sock.recv(4, socket.MSG_WAITALL))
    return unpacked(sock.recv(size, socket.MSG_WAITALL), "process")
take(); send(ready); ask = take()
"""


@pytest.mark.parametrize(
    "nonsense",
    [
        "send(b'GET / HTTP/1.1')",
        "sock.sendall(struct.pack('!I', 2**31))",
        "send(ready)",
        "send(packed(Said(ask.call_id)))",
        "send(packed(Said(ask.call_id, num_tokens=3)))",
        "send(packed(Said(ask.call_id, fault=Fault('queue_full', ''))))",
        "send(packed(Cancel(ask.call_id)))",
        "sock.sendall(struct.pack('!I', 2**20 + 1))",
        "send(packed(Said(ask.call_id, Piece('a', 9))))",
        "send(packed(Said(ask.call_id, Piece('a', 4)))); send(packed(Said(ask.call_id, Piece('a', 5, (), 'stop'))))",
        "send(packed(Said(ask.call_id, Piece('a', -9, (-0.1,) * 9, 'length'))))",
        "[send(packed(Said(ask.call_id, Piece('a')))) for _ in range(9)]",
    ],
)
async def test_process_that_talks_nonsense_is_ended_and_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch, nonsense: str
) -> None:
    runs(monkeypatch, f"{HELLO}{nonsense}\nsock.recv(1)")
    engine = engine_on(model)
    async with started(engine):
        monkeypatch.undo()
        nonsensical = pid_of(engine)
        with pytest.raises(EngineUnavailable, match="said what makes no sense"):
            await generate(engine)
        assert whole(await generate(engine))
        assert_gone(nonsensical)


async def test_answer_to_a_call_given_up_is_dropped(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    late = "assert isinstance(take(), Cancel); send(packed(Said(ask.call_id, Piece('late')))); ask = take()"
    runs(
        monkeypatch,
        f"{HELLO}send(packed(Said(ask.call_id, Piece('a')))); {late}\n"
        "send(packed(Said(ask.call_id, Piece('b', 1, (-0.5,), 'stop'))))\nsock.recv(1)",
    )
    engine = engine_on(model)
    async with started(engine):
        given_up = await begin(engine)
        await given_up.aclose()
        assert await generate(engine) == [Piece("b", 1, (-0.5,), "stop")]


async def test_generations_given_up_are_not_decoded_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks(
        monkeypatch,
        "broken.num_left = getattr(broken, 'num_left', 2 * 4000) - 1\n"
        "return decode(self, chunks) if broken.num_left else os._exit(9)",
    )
    engine = engine_on(model)
    async with started(engine):
        for _ in range(16):
            await (await begin(engine)).aclose()
        assert whole(await generate(engine)), "16 texts of 4000 tokens, 4 at a time, would take 16000 steps"


async def test_process_that_does_not_end_by_itself_is_killed(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, f"{HELLO.replace('ask = take()', '')}time.sleep(1000)")
    monkeypatch.setattr(process_life, "END_WAIT_S", 0.01)
    engine = engine_on(model)
    async with started(engine):
        pid = pid_of(engine)
    assert_gone(pid)


async def test_engine_cancelled_a_second_time_while_it_closes_leaves_no_process(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs(monkeypatch, f"{HELLO.replace('ask = take()', '')}time.sleep(1000)")
    monkeypatch.setattr(process_life, "END_WAIT_S", 10 * DEADLINE_S)
    engine = engine_on(model)
    async with asyncio.timeout(DEADLINE_S):
        await engine.start()
        pid = pid_of(engine)
        (keeper,) = [task for task in asyncio.all_tasks() if task.get_name() == "llama.cpp tiny"]
        for _ in range(2):
            keeper.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([keeper])
    assert_gone(pid)


OUTLIVED = f"""{HELLO}
import os, subprocess
beside = subprocess.Popen(["sleep", "1000"], stdin=subprocess.DEVNULL)
print("beside it runs", beside.pid, flush=True)
os._exit(4)
"""


@pytest.mark.parametrize("loop_factory", LOOPS, ids=LOOP_IDS)
def test_process_whose_output_another_one_holds_open_is_replaced(
    model: Path, monkeypatch: pytest.MonkeyPatch, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        runs(monkeypatch, OUTLIVED)
        engine = engine_on(model)
        async with started(engine):
            monkeypatch.undo()
            with pytest.raises(EngineUnavailable, match=r"ended with exit code 4: beside it runs \d+$") as ended:
                await generate(engine)
            try:
                assert whole(await generate(engine))
            finally:
                os.kill(int(str(ended.value).split()[-1]), signal.SIGKILL)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_that_is_for_the_parent_leaves_the_process_alone(
    engine: ProcessEngine, number: signal.Signals
) -> None:
    pid, running = pid_of(engine), await begin(engine)
    os.kill(pid, number)
    assert whole(await generate(engine))
    await anext(running)
    await running.aclose()
    assert engine.pid == pid
    assert os.getpgid(pid) != os.getpgid(0), "Ctrl-C in a terminal does not reach it, even while it starts"


PARENT = """
import asyncio, sys
from pathlib import Path
from pice.core import Message, Prompt, Sampling
from pice.engine.llama.options import LlamaOptions
from pice.engine.process import ProcessEngine

async def main():
    engine = ProcessEngine(LlamaOptions(path=Path(sys.argv[1]), n_threads=1))
    await engine.start()
    async for piece in engine.generate(Prompt((Message("user", "Go on."),)), Sampling(max_tokens=4000)):
        print(engine.pid, flush=True)

asyncio.run(main())
"""


def test_process_ends_in_the_middle_of_a_text_when_its_parent_is_killed(model: Path) -> None:
    command = [sys.executable, "-c", PARENT, str(model)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        process = os.pidfd_open(int(parent.stdout.readline()))
        try:
            assert not select.select([process], [], [], 0)[0]
            parent.kill()
            assert select.select([process], [], [], DEADLINE_S)[0]
        finally:
            os.close(process)


def test_process_ends_though_nobody_reads_its_last_words() -> None:
    source = "import os; from pice.engine.process_child import _end; os.read(0, 1); _end(3, 'the sky fell')"
    reader, writer = os.pipe()
    command = [sys.executable, "-c", source]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stderr=writer) as process:
        os.close(writer)
        os.close(reader)
        process.communicate(b"x", timeout=DEADLINE_S)
    assert process.returncode == 3


async def test_close_ends_the_process_and_leaves_nothing_open(model: Path) -> None:
    async def live() -> int:
        engine = engine_on(model)
        async with started(engine):
            running = await begin(engine)
            pid = pid_of(engine)
            closing = asyncio.create_task(engine.close())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await engine.close()
            with pytest.raises(EngineUnavailable, match="tiny: closed"):
                await drained(running)
            await closing
        assert_gone(pid)
        return num_open_files()

    assert await live() == await live()


async def test_engine_closed_while_loading_is_unavailable(model: Path) -> None:
    engine = engine_on(model)
    starting = asyncio.create_task(engine.start())
    pid = await next_pid(engine)
    async with asyncio.timeout(DEADLINE_S):
        await engine.close()
        with pytest.raises(EngineUnavailable, match="closed"):
            await starting
    assert_gone(pid)


async def test_start_that_is_cancelled_ends_the_process(model: Path) -> None:
    engine = engine_on(model)
    starting = asyncio.create_task(engine.start())
    pid = await next_pid(engine)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert_gone(pid)


@pytest.mark.parametrize("loop_factory", LOOPS, ids=LOOP_IDS)
def test_start_that_is_cancelled_at_any_moment_leaves_no_process(
    model: Path, loop_factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def main() -> None:
        for num_turns in range(12):
            starting = asyncio.create_task(engine_on(model).start())
            for _ in range(num_turns):
                await asyncio.sleep(0)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting

    before = children()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    assert children() == before


def children() -> set[str]:
    """Processes that this one has begun and not yet buried."""
    return {pid for listed in Path("/proc/self/task").glob("*/children") for pid in listed.read_text().split()}


async def test_engine_is_started_once_and_not_used_before(model: Path, engine: ProcessEngine) -> None:
    with pytest.raises(EngineError, match="started once"):
        await engine.start()
    with pytest.raises(EngineUnavailable, match="not started"):
        await generate(engine_on(model))


async def test_prompt_that_cannot_be_sent_is_refused_and_others_are_not(
    engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="surrogates"):
        await generate(engine, prompt=asking("half a pair: \ud800"))
    monkeypatch.setattr(process_wire, "MAX_MESSAGE_BYTES", 1000)
    with pytest.raises(InputError, match="at most 1000 bytes"):
        await generate(engine, prompt=asking("word " * 1000))
    assert whole(await generate(engine))


async def test_prompt_of_too_many_messages_is_refused_and_its_neighbour_runs_on(engine: ProcessEngine) -> None:
    pid, neighbour = pid_of(engine), await begin(engine)
    too_many = Prompt((Message("system", "a"), *(Message("user", "a"),) * MAX_ITEMS))
    with pytest.raises(InputError, match="messages: expected at most 4096, got 4097"):
        await generate(engine, prompt=too_many)
    with pytest.raises(InputError, match="messages: expected at most 4096, got 4097"):
        await engine.count_tokens(too_many)
    async with asyncio.timeout(DEADLINE_S):
        await anext(neighbour)
    await neighbour.aclose()
    assert engine.pid == pid


async def test_process_that_cannot_be_started_is_unavailable(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(model))
    with pytest.raises(EngineUnavailable, match="no process can be started"):
        async with started(engine_on(model)):
            pass


async def test_what_a_process_prints_is_logged_without_what_a_terminal_acts_on(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs(monkeypatch, "print('one', '\\x1b[2J', flush=True); print('x' * 9999); print(end='last')")
    with pytest.raises(ModelLoadError, match=r"exit code 0: one +\[2J; x{500}; last$"):
        async with started(engine_on(model)):
            pass
    assert any(record.getMessage().endswith("says: one  [2J") for record in caplog.records)


async def test_process_that_prints_without_end_fills_no_log(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    runs(monkeypatch, "for number in range(20000): print('line', number)")
    with pytest.raises(ModelLoadError, match=r"exit code 0: line 19995; .*; line 19998; line 19999$"):
        async with started(engine_on(model)):
            pass
    logged = [record.getMessage().partition(" says")[2] for record in caplog.records]
    assert logged == [*(f": line {number}" for number in range(50)), " more, which is left out here"]


def test_process_has_its_parents_variables_and_modules() -> None:
    made = environment({"OMP_NUM_THREADS": "3", "PYTHONPATH": "elsewhere"})
    assert (made["OMP_NUM_THREADS"], made["GGML_NO_BACKTRACE"]) == ("3", "1")
    assert made["PYTHONPATH"].split(os.pathsep) == sys.path


def test_pause_doubles_up_to_a_bound_until_a_process_was_of_use() -> None:
    pauses = [0.0]
    for _ in range(9):
        pauses.append(next_pause_s(pauses[-1], has_finished=False))
    assert pauses[1:] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    assert next_pause_s(pauses[-1], has_finished=True) == 0.1

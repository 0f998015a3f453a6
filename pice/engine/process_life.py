"""One life of an engine's process, seen from its parent: begun, asked, ended, and what it said last."""

import asyncio
import logging
import signal
import socket
import sys
import threading
from asyncio.subprocess import DEVNULL, STDOUT, Process
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

from pice.engine.base import EngineInfo, Piece
from pice.engine.process_link import Link
from pice.engine.process_output import Output
from pice.engine.process_wire import Answer, Ask, Cancel, Failed, Load, Message, Ready, Said, error_of, packed
from pice.errors import DecodeError, EngineUnavailable, ModelLoadError, PiceError

PROGRAM = ("-P", "-m", "pice.engine.process_child")
"""What Python is told to run; by `-P` no file of the current folder is taken for a module."""
SPAWN_WAIT_S = 0.01
"""Between looks whether another thread has started its process."""
END_WAIT_S = 3.0
"""What a process may take to end by itself before it is killed."""

_logger = logging.getLogger(__name__)
_spawning = threading.Lock()


@dataclass(eq=False, slots=True)
class _Call:
    """`tokens_left` is how many tokens may still come."""

    expected: type[Piece] | type[int]
    tokens_left: int
    answers: "asyncio.Queue[Answer]" = field(default_factory=asyncio.Queue)

    def count(self, piece: Piece) -> None:
        """Takes the tokens of a piece off those left; one that is not the last stands for at least one.

        Raises:
            DecodeError: there are not so many left.
        """
        num_tokens = max(piece.num_tokens, len(piece.logprobs), piece.finish_reason is None)
        if num_tokens > self.tokens_left:
            raise DecodeError(f"said: expected at most {self.tokens_left} more tokens, got {num_tokens}")
        self.tokens_left -= num_tokens


class Life:
    """One process. `info` is set, and `on_ready` called, once its model is loaded; `has_finished` when it has written a
    text to its end."""

    def __init__(self, name: str, on_ready: Callable[[], None]) -> None:
        self._name = name
        self._on_ready = on_ready
        self._calls: dict[int, _Call] = {}
        self._lost = asyncio.Event()
        self._link = Link("parent", self._take, self._lost.set)
        self._failure: PiceError | None = None
        self.info: EngineInfo | None = None
        self.has_finished = False
        self.pid: int | None = None

    @property
    def serves(self) -> bool:
        return self.info is not None and not self._lost.is_set()

    async def run(self, load: Load, environment: Mapping[str, str]) -> PiceError:
        """Begins the process and waits for its end, which it returns; also the calls then end with that.

        Cancelling ends the process, by force if need be.
        """
        end: PiceError = EngineUnavailable(f"{self._name}: closed")
        output = Output(self._name)
        try:
            process = await _spawned(self._link, output, environment)
            self.pid = process.pid
            await self._served(process, output, load)
            end = self._failure or self._end(process, output.last)
        except OSError as problem:
            end = EngineUnavailable(f"{self._name}: no process can be started for it: {problem}")
        finally:
            self.pid = None
            output.close()
            for call in self._calls.values():
                call.answers.put_nowait(EngineUnavailable(str(end)))
        return end

    @contextmanager
    def asked(self, ask: Ask) -> Iterator["asyncio.Queue[Answer]"]:
        """Asks; when the block is left before the last answer came, the process may drop the call.

        Raises:
            InputError: this cannot be asked.
        """
        payload = packed(ask)
        call = self._calls[ask.call_id] = (
            _Call(int, 0) if ask.sampling is None else _Call(Piece, ask.sampling.max_tokens)
        )
        self._link.send(payload)
        try:
            yield call.answers
        finally:
            if self._calls.pop(ask.call_id, None):
                self._link.send(packed(Cancel(ask.call_id)))

    async def _served(self, process: Process, output: Output, load: Load) -> None:
        try:
            self._link.send(packed(load))
            await self._lost.wait()
        finally:
            self._link.close()
            try:
                await _ended(process)
            finally:
                await output.ended()

    def _end(self, process: Process, lines: list[str]) -> PiceError:
        problem = self._link.problem
        how = f"said what makes no sense ({problem})" if problem else f"ended {how_ended(process.returncode)}"
        words = f": {'; '.join(lines)}" if lines else ""
        if self.info is None:
            return ModelLoadError(f"{self._name}: while it loaded the model, the engine process {how}{words}")
        return EngineUnavailable(f"{self._name}: the engine process {how}{words}")

    def _take(self, message: Message) -> None:
        match message:
            case Ready() if self.info is None:
                self.info = message.info
                self._on_ready()
            case Failed() if self.info is None:
                self._failure = error_of(message.fault)
                self._link.close()
            case Said():
                self._hand_on(message.call_id, message.answer)
            case _:
                raise DecodeError("expected ready or failed once, got it again")

    def _hand_on(self, call_id: int, answer: Answer) -> None:
        """Gives an answer to who asked, unless given up."""
        call = self._calls.get(call_id)
        if call is None:
            return
        if not isinstance(answer, call.expected | PiceError):
            raise DecodeError(f"said: expected a {call.expected.__name__}, got a {type(answer).__name__}")
        if isinstance(answer, Piece):
            call.count(answer)
        call.answers.put_nowait(answer)
        if not isinstance(answer, Piece) or answer.finish_reason is not None:
            del self._calls[call_id]
            self.has_finished |= isinstance(answer, Piece)


def how_ended(returncode: int | None) -> str:
    """In words, what `Process.returncode` says."""
    if returncode == -signal.SIGILL:
        return "by SIGILL (llama.cpp is not built right for this processor: see Installation in docs/llama-cpp.md)"
    try:
        return f"by {signal.Signals(-(returncode or 0)).name}"
    except ValueError:
        return f"with exit code {returncode}"


async def _spawned(link: Link, output: Output, environment: Mapping[str, str]) -> Process:
    """A process at the other end of this link. It is in a session of its own, out of reach of a terminal's Ctrl-C."""
    ours, theirs = socket.socketpair()
    with theirs:
        await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        async with _alone_spawning():
            with output.open() as stdout:
                return await asyncio.create_subprocess_exec(
                    sys.executable,
                    *PROGRAM,
                    str(theirs.fileno()),
                    stdin=DEVNULL,
                    stdout=stdout,
                    stderr=STDOUT,
                    pass_fds=(theirs.fileno(),),
                    env=environment,
                    start_new_session=True,
                )


@asynccontextmanager
async def _alone_spawning() -> AsyncIterator[None]:
    """uvloop starts no process while the loop of another thread does."""
    while not _spawning.acquire(blocking=False):  # noqa: ASYNC110  (an event is of one loop, this is between loops)
        await asyncio.sleep(SPAWN_WAIT_S)
    try:
        yield
    finally:
        _spawning.release()


async def _ended(process: Process) -> None:
    """Waits for a process whose link is closed; kills it if it does not end by itself, or when cancelled."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(END_WAIT_S):
                await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()

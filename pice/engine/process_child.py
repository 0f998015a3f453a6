"""What runs in an engine's own process: one `LlamaCppEngine`, asked over a socket.

    python -m pice.engine.process_child FD

It lives as long as the other end of the socket: when its parent closes that or is killed, it ends at once, also in the
middle of a decode. SIGINT and SIGTERM, which a terminal or a supervisor sends to all its processes, are for the parent
to answer.
"""

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import aclosing
from functools import partial
from typing import NoReturn

from pice.core import Prompt
from pice.engine.llama_cpp import LlamaCppEngine
from pice.engine.process_link import Link
from pice.engine.process_wire import Ask, Cancel, Failed, Load, Message, Ready, Said, fault_of, packed, said
from pice.errors import EngineError, InputError, PiceError

_logger = logging.getLogger(__name__)


def main() -> NoReturn:
    """Serves the socket whose descriptor is the only argument, and does not return."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(socket.socket(fileno=int(sys.argv[1]))))
    except BaseException:
        _logger.exception("the engine process failed")
    finally:
        _end(1)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _serve(sock: socket.socket) -> None:
    inbox: asyncio.Queue[Message] = asyncio.Queue()
    link = Link("process", inbox.put_nowait, lambda: _end(0, link.problem))
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=sock)
    engine = await _loaded(link, inbox)
    calls: dict[int, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as tasks:
        while True:
            message = await inbox.get()
            if isinstance(message, Ask):
                task = calls[message.call_id] = tasks.create_task(_answer(engine, link, message))
                task.add_done_callback(partial(calls.pop, message.call_id))
            elif isinstance(message, Cancel) and message.call_id in calls:
                calls[message.call_id].cancel()


async def _loaded(link: Link, inbox: "asyncio.Queue[Message]") -> LlamaCppEngine:
    """The engine that the first message asks for. Where there can be none the parent is told, and ends this process."""
    load = await inbox.get()
    assert isinstance(load, Load)
    engine = LlamaCppEngine(load.options)
    try:
        await engine.start()
    except PiceError as error:
        link.send(packed(Failed(fault_of(error))))
        await asyncio.Event().wait()
    link.send(packed(Ready(engine.info)))
    return engine


async def _answer(engine: LlamaCppEngine, link: Link, ask: Ask) -> None:
    try:
        if ask.sampling is None:
            link.send(packed(Said(ask.call_id, num_tokens=await engine.count_tokens(ask.prompt))))
            return
        now_s = asyncio.get_running_loop().time()
        deadline_s = math.inf if ask.within_s is None else now_s + ask.within_s
        async with aclosing(engine.generate(ask.prompt, ask.sampling, deadline_s=deadline_s)) as pieces:
            async for piece in pieces:
                for message in said(ask.call_id, piece):
                    link.send(packed(message))
    except PiceError as error:
        if isinstance(error, EngineError) and await _has_ended(engine, ask.prompt):
            _end(1, str(error))
        link.send(packed(Said(ask.call_id, fault=fault_of(error))))


async def _has_ended(engine: LlamaCppEngine, prompt: Prompt) -> bool:
    """Whether a failure was the engine's own: such an engine does not even count any more."""
    try:
        await engine.count_tokens(prompt)
    except InputError:
        return False
    except EngineError:
        return True
    return False


def _end(code: int, last_words: str = "") -> NoReturn:
    """Ends the process without waiting for any thread; the parent reads what was printed, if there still is one."""
    try:
        if last_words:
            sys.stderr.write(f"{last_words}\n")
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()

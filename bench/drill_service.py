"""One service of a deployment as a process of its own, which may be killed and started again."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.lifeline import killed_with_parent
from bench.report import ROOT
from pice.errors import ConfigError
from tools.brokers.program import free_port

_ASK_WITHIN_S = 2.0
_STOP_WITHIN_S = 40.0
_LAST_WORDS = 1500


class Service:
    """`pice WORDS`, with overrides of the configuration. Its output goes to a file in `folder`. Nothing but this one
    process is ever signalled."""

    def __init__(self, name: str, words: Sequence[str], config: Path, overrides: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._port = free_port()
        options = [*overrides, f"service.health_port={self._port}"]
        command = [sys.executable, "-m", "pice", *words, "--config", str(config)]
        self._command = [*command, *(f"--set={option}" for option in options)]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """None while it is not running."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PICE_")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                **killed_with_parent(),
            )

    def kill(self) -> None:
        """As by `kill -9`; nothing happens if it is not running."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    async def stop(self) -> int | None:
        """Asks it to drain and end: its exit code, None when it did not in time and was killed."""
        if (process := self._process) is None:
            return 0
        self._process = None
        process.terminate()
        try:
            return await asyncio.to_thread(process.wait, _STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return None

    async def wait(self) -> int:
        """Its exit code, of one that ends by itself."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait)

    def ended(self) -> str:
        """What it said last, when it ended without being killed; else ""."""
        if self._process is None or (code := self._process.poll()) is None:
            return ""
        return f"{self.name} ended with {code}: {self.said()}"

    def said(self) -> str:
        """The end of its log."""
        return self.log.read_text(encoding="utf-8", errors="replace")[-_LAST_WORDS:]

    async def is_ready(self) -> bool:
        """Whether its endpoint says so."""
        try:
            async with asyncio.timeout(_ASK_WITHIN_S):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    writer.write(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return False


async def until_ready(services: Sequence[Service], within_s: float) -> float:
    """Seconds until all of them said that they are ready.

    Raises:
        ConfigError: some did not in time; says what they wrote.
    """
    loop = asyncio.get_running_loop()
    began_s, waiting = loop.time(), list(services)
    while waiting:
        if loop.time() - began_s > within_s:
            said = (f"{service.name} was not ready within {within_s:g} s: {service.said()}" for service in waiting)
            raise ConfigError("\n".join(said))
        answers = await asyncio.gather(*(service.is_ready() for service in waiting))
        waiting = [service for service, ready in zip(waiting, answers, strict=True) if not ready]
        if waiting:
            await asyncio.sleep(0.1)
    return loop.time() - began_s

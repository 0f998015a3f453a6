"""A Redis of a test's own, to be filled, stopped and started; and one that only says what it is."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tools.brokers.program import Program, found, free_port, listens
from tools.brokers.redis_server import start_redis


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files of a server at 127.0.0.1 that vouches for itself."""

    ca: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Made by openssl; skips the test where there is none."""
    if (openssl := shutil.which("openssl")) is None:
        pytest.skip("needs openssl to make a certificate")
    made = Certificates(folder / "ca.pem", folder / "key.pem")
    named = ("-subj", "/CN=pice-test", "-addext", "subjectAltName=IP:127.0.0.1")
    files = ("-keyout", str(made.key), "-out", str(made.ca))
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *named, *files]
    subprocess.run(command, check=True, capture_output=True)
    return made


class OwnRedis:
    """Runs on one port from `start` to `stop`, any number of times; empty after each start unless it `keeps`. With
    `certificates` it speaks TLS alone."""

    def __init__(self, folder: Path, *, keeps: bool = False, certificates: Certificates | None = None) -> None:
        self._folder = folder
        self._keeps = keeps
        self._certificates = certificates
        self._port = free_port()
        self._program: Program | None = None
        self.url = f"{'rediss' if certificates else 'redis'}://127.0.0.1:{self._port}/0"

    async def start(self) -> None:
        self._program = await asyncio.to_thread(self._started)

    def _started(self) -> Program:
        if self._certificates is None:
            return start_redis(self._folder, self._port, keeps=self._keeps)
        certificate, key = str(self._certificates.ca), str(self._certificates.key)
        secured = ("--port", "0", "--tls-port", str(self._port), "--tls-auth-clients", "no")
        files = ("--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate)
        command = [found("redis-server", "redis-server"), "--bind", "127.0.0.1", *secured, *files, "--save", ""]
        program = Program("redis", command, self._folder)
        program.wait_until(lambda: listens(self._port))
        return program

    async def stop(self) -> None:
        """May be called twice."""
        if self._program:
            await asyncio.to_thread(self._program.stop)
            self._program = None


@asynccontextmanager
async def saying(info: str, *, refusal: str = "") -> AsyncIterator[str]:
    """The URL of a server that knows INFO, and takes all else, or refuses it in these words."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while words := await _command(reader):
            other = f"-{refusal}\r\n" if refusal else "+OK\r\n"
            body = f"${len(info)}\r\n{info}\r\n" if words[0] == b"INFO" else other
            writer.write(body.encode())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"


async def _command(reader: asyncio.StreamReader) -> list[bytes]:
    """The words of a command; none at the end."""
    head = await reader.readline()
    words = []
    for _ in range(int(head[1:] or 0)):
        length = int((await reader.readline())[1:])
        words.append((await reader.readexactly(length + 2))[:-2])
    return words

"""A deployment on the brokers of `make test`: services as processes of their own, and what they say of themselves."""

import asyncio
import hashlib
import hmac
import http.client
import json
import re
import signal
import socket
import socketserver
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from bench.lifeline import killed_with_parent
from tests.brokers import kafka_address, redis_url
from tests.system.command import COMMAND, ROOT, Ran, environment, pice
from tests.system.witness import delete_keys, delete_topics
from tools.brokers.program import free_port

T = TypeVar("T")

SECRET = "the cluster's secret"
SITES = ("a", "b")
_WITHIN_S = 30.0
_LOOK_EVERY_S = 0.05
_LAST_WORDS = 4000

_CONFIG = """\
[engines.big]
kind = "emulated"
max_inflight = 64
curve = {{ batch = [1], step_s = [0.001] }}
style = {{ points = [5, 6], words_per_point = [20, 30], answer_words = [60, 90] }}

[engines.small-a]
kind = "emulated"
model = "small-a"
max_inflight = 2
curve = {{ batch = [1], step_s = [0.002] }}

[engines.small-b]
kind = "emulated"
model = "small-b"
max_inflight = 2
curve = {{ batch = [1], step_s = [0.002] }}

[cloud]
engine = "big"
drain_s = 10.0

[sites.a]
engines = ["small-a"]
key_file = "a.key"

[sites.b]
engines = ["small-b"]
key_file = "b.key"

[planner]
segment_words = 10

[limits]
request_timeout_s = 60.0
drain_s = 10.0

[kafka]
bootstrap_servers = "{kafka}"
prefix = "{prefix}."
num_partitions = 2
replication_factor = 1

[redis]
url = "{redis}"
prefix = "{prefix}"

[security]
secret_file = "secret"

[service]
lease_s = 2.0
"""


def until(look: Callable[[], T], what: str, *, within_s: float = _WITHIN_S) -> T:
    """What `look` gives, once it gives something; fails the test when that takes longer."""
    until_s = time.monotonic() + within_s
    while not (seen := look()):
        assert time.monotonic() < until_s, f"not within {within_s:g} s: {what}"
        time.sleep(_LOOK_EVERY_S)
    return seen


def site_key(site: str) -> str:
    """The key of a site, as docs/security.md says that it follows from the secret."""
    return hmac.new(SECRET.encode(), f"pice-site:{site}".encode(), hashlib.sha256).hexdigest()


@dataclass(frozen=True)
class Reply:
    """What an endpoint said; status 0 where nobody answered."""

    status: int
    text: str


class Service:
    """A service that runs. What it says goes to a file."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        self.name = name
        self._process = process
        self._port = port
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def get(self, path: str) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return Reply(response.status, response.read().decode())
        except OSError:
            return Reply(0, "")
        finally:
            connection.close()

    def ready(self) -> "Service":
        """Waits until it says that it is."""

        def look() -> bool:
            code = self._process.poll()
            assert code is None, f"{self.name} ended with {code}: {self.said()}"
            return self.get("/readyz").status == 200

        try:
            until(look, f"{self.name} is ready")
        except AssertionError as error:
            raise AssertionError(f"{error}; {self.get('/readyz')}; {self.said()}") from None
        return self

    def total(self, metric: str, **labels: str) -> float:
        """The sum over all samples of a metric that have these labels."""
        return sum(value for known, value in self._samples(metric) if labels.items() <= known.items())

    def _samples(self, metric: str) -> Iterator[tuple[dict[str, str], float]]:
        for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", self.get("/metrics").text, re.MULTILINE):
            if name == metric:
                yield dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels)), float(value)

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def stop(self) -> None:
        """Asks it to end."""
        self.send(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it in the midst of what it does; nothing if it has ended."""
        self._process.kill()
        self._process.wait()

    def ended(self, *, within_s: float = _WITHIN_S) -> int:
        """Its exit code."""
        try:
            return self._process.wait(within_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} did not end within {within_s:g} s: {self.said()}") from None


class Cluster:
    """A configuration in a folder, under a prefix of its own, and the services that were started on it."""

    def __init__(self, folder: Path, overrides: Sequence[str] = ()) -> None:
        self.folder = folder
        self.prefix = f"t{uuid4().hex[:12]}"
        self.config = folder / "cluster.toml"
        self.overrides = overrides
        self.services: list[Service] = []
        text = _CONFIG.format(kafka=kafka_address(), redis=redis_url(), prefix=self.prefix)
        self.config.write_text(text, encoding="utf-8")
        (folder / "secret").write_text(f"{SECRET}\n", encoding="utf-8")
        for site in SITES:
            (folder / f"{site}.key").write_text(f"{site_key(site)}\n", encoding="utf-8")

    def options(self, *overrides: str) -> list[str]:
        return ["--config", str(self.config), *(f"--set={each}" for each in (*self.overrides, *overrides))]

    def start(self, *words: str, overrides: Sequence[str] = ()) -> Service:
        """A service, perhaps not ready yet. `pice up` for `words` `"up"`."""
        port, name = free_port(), "-".join(word for word in words if not word.startswith("-"))
        log = self.folder / f"{len(self.services):02}-{name}.log"
        command = [*COMMAND, *words, *self.options(f"service.health_port={port}", *overrides)]
        with log.open("wb") as said:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                **killed_with_parent(),
            )
        self.services.append(Service(name, process, port, log))
        return self.services[-1]

    def start_all(self, *services: Sequence[str]) -> list[Service]:
        """Services, all of them ready."""
        return [service.ready() for service in [self.start(*words) for words in services]]

    def pice(self, *words: str | Path, overrides: Sequence[str] = (), stdin: bytes = b"") -> Ran:
        """A command on this deployment from its beginning to its end."""
        return pice(*words, *self.options(*overrides), stdin=stdin)

    def json(self, *words: str) -> Any:
        """What a command that cannot but succeed prints as JSON."""
        ran = self.pice(*words, "--json")
        assert (ran.code, ran.err) == (0, ""), f"{words}: {ran}"
        return json.loads(ran.out)

    def close(self) -> None:
        for service in self.services:
            service.kill()
            print(f"--- {service.name}\n{service.said()[-_LAST_WORDS:]}")
        asyncio.run(delete_topics(f"{self.prefix}."))
        delete_keys(f"{self.prefix}:*")


@contextmanager
def forwarding(port: int, address: str) -> Iterator[None]:
    """Passes on to `host:port` what comes to a port of loopback, and back."""
    host, _, number = address.rpartition(":")

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((host, int(number))) as there:
                back = threading.Thread(target=_pump, args=(there, self.request), daemon=True)
                back.start()
                _pump(self.request, there)
                back.join()

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", port), Connection) as server:
        threading.Thread(target=server.serve_forever, args=(_LOOK_EVERY_S,), daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Ends when either side has gone, of which the other is told."""
    with suppress(OSError):
        while piece := source.recv(65_536):
            sink.sendall(piece)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def deployment(folder: Path, *overrides: str) -> Iterator[Cluster]:
    """One whose topics are there; at the end nothing of it is left."""
    cluster = Cluster(folder, overrides)
    try:
        ran = cluster.pice("topics", "create")
        assert ran.code == 0, ran.err
        yield cluster
    finally:
        cluster.close()

"""The command line over a pipeline that plays recorded events."""

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pice import cli
from pice.core import Event, Message, Mode, Plan, Request, Sampling
from pice.settings import Settings

SMALL = """\
[engines.big]
kind = "emulated"
curve = { batch = [1], step_s = [0.0] }
[cloud]
engine = "big"
"""


@dataclass
class FakePipeline:
    """Gives `events` to whoever streams, and raises `error` in their place if there is one."""

    events: Sequence[Event] = ()
    decided: Plan = field(default_factory=lambda: Plan("cloud", "why not"))
    error: Exception | None = None
    requests: list[Request] = field(default_factory=list)
    opened: list[Settings] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def new_request(
        self,
        messages: Sequence[Message],
        *,
        mode: Mode | None = None,
        timeout_s: float | None = None,
        sampling: Sampling | None = None,
    ) -> Request:
        request = Request("r1", tuple(messages), sampling or Sampling(), timeout_s or 120.0, mode)
        self.requests.append(request)
        return request

    async def plan(self, request: Request) -> Plan:
        return self.decided

    async def stream(self, request: Request) -> AsyncGenerator[Event, None]:
        try:
            for event in self.events:
                yield event
            if self.error:
                raise self.error
        finally:
            self.closed.append(request.request_id)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> FakePipeline:
    """Stands in for the pipeline of every command."""
    fake = FakePipeline()

    @asynccontextmanager
    async def open_pipeline(settings: Settings) -> AsyncIterator[FakePipeline]:
        fake.opened.append(settings)
        yield fake

    monkeypatch.setattr("pice.cli.session.open_pipeline", open_pipeline)
    return fake


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


@pytest.fixture
def pice(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """Runs `pice ARGS` in this process; standard output and error are pipes."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.delenv("PICE_CONFIG", raising=False)
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))  # what the command changes is put back

    def run(*args: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["pice", *args])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, captured.out, captured.err)

    return run

"""From settings to running engines."""

import asyncio
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import pice
from pice import app
from pice.app import engines as app_engines
from pice.config import load_settings
from pice.core import Curve
from pice.engine.emulated import EmulatedEngine
from pice.errors import ModelLoadError, PiceError
from pice.settings import EmulatedSettings, LlamaCppSettings, Settings

CONFIG = Path(__file__).parents[2] / "config"


def llama(*overrides: str) -> Settings:
    return load_settings(CONFIG / "llama.toml", overrides)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [((), "ProcessEngine"), (("engines.edge-a.isolation=thread",), "LlamaCppEngine")],
    ids=["by default", "thread"],
)
def test_gguf_file_runs_in_a_process_of_its_own_unless_told_otherwise(overrides: Sequence[str], kind: str) -> None:
    engine = app.make_engine(llama(*overrides).engines["edge-a"], random.Random(0), num_threads=1)
    assert type(engine).__name__ == kind


class Watched(EmulatedEngine):
    """An engine that has begun to start only when four have; then it may fail."""

    def __init__(self, begun: asyncio.Barrier, failure: PiceError | None, **settings: Any) -> None:
        super().__init__(**settings)
        self.begun, self.failure = begun, failure
        self.closed = False

    async def start(self) -> None:
        async with asyncio.timeout(10):
            await self.begun.wait()
        if self.failure:
            raise self.failure
        await super().start()

    async def close(self) -> None:
        self.closed = True
        await super().close()


def watch(monkeypatch: pytest.MonkeyPatch, failures: Mapping[str, PiceError]) -> list[Watched]:
    """The engines that will be made from settings, `failures` by name of the model."""
    engines: list[Watched] = []
    begun = asyncio.Barrier(4)

    def make(settings: EmulatedSettings, rng: random.Random, **_: object) -> Watched:
        failure = failures.get(settings.model)
        engines.append(Watched(begun, failure, model=settings.model, curve=settings.curve.curve(), seed=0))
        return engines[-1]

    monkeypatch.setattr(app_engines, "make_engine", make)
    return engines


async def test_engines_start_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = watch(monkeypatch, {})
    async with pice.open(CONFIG / "emulated.toml"):
        assert len(engines) == 4
        assert not any(engine.closed for engine in engines)
    assert all(engine.closed for engine in engines)


async def test_error_of_an_engine_that_cannot_start_comes_out_as_itself_and_all_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = load_settings(CONFIG / "emulated.toml").engines
    failures = {settings[name].model: ModelLoadError(f"{name} is broken") for name in ("workstation", "orin-super")}
    engines = watch(monkeypatch, failures)
    with pytest.raises(ModelLoadError, match="is broken"):
        async with pice.open(CONFIG / "emulated.toml"):
            pass
    assert [engine.closed for engine in engines] == [True] * 4


def test_engines_left_open_share_the_cores_that_others_have_not_been_given() -> None:
    def engine(n_threads: int) -> LlamaCppSettings:
        return LlamaCppSettings(kind="llama_cpp", path=Path("m.gguf"), n_threads=n_threads)

    assert app_engines._threads([engine(6), engine(0), engine(0)], 8) == (1, False)
    assert app_engines._threads([engine(2), engine(0), engine(0)], 8) == (3, False)
    assert app_engines._threads([engine(8), engine(0)], 8) == (1, True)
    assert app_engines._threads([engine(0)] * 3, 8) == (2, False)
    assert app_engines._threads([engine(0)] * 3, 2) == (2, True)
    assert app_engines._threads([engine(0)] * 3, 1) == (1, True)
    assert app_engines._threads([], 8) == (8, False)


@pytest.mark.parametrize(
    ("num_cores", "n_threads", "expected"),
    [(8, 0, (2, False)), (2, 0, (2, True)), (8, 2, (2, False)), (8, 3, (1, True))],
    ids=["cores divided", "fewer cores than engines", "as many threads as cores", "more threads than cores"],
)
async def test_engines_are_told_whether_their_threads_share_cores(
    monkeypatch: pytest.MonkeyPatch, num_cores: int, n_threads: int, expected: tuple[int, bool]
) -> None:
    told: set[tuple[int, bool]] = set()

    def make(settings: object, rng: random.Random, *, num_threads: int, shares_cores: bool) -> EmulatedEngine:
        told.add((num_threads, shares_cores))
        return EmulatedEngine(model=f"m{len(told)}", curve=Curve((1,), (0.0,)), seed=0)

    monkeypatch.setattr(app_engines, "make_engine", make)
    monkeypatch.setattr(app_engines, "num_cores", lambda: num_cores)
    overrides = [f"engines.{name}.n_threads={n_threads}" for name in ("cloud", "edge-a", "edge-b")]
    async with pice.open(CONFIG / "llama.toml", overrides=overrides):
        pass
    assert told == {expected}

"""`pice` itself, `pice config` and `pice doctor`."""

import asyncio
import os
import signal
import tomllib
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

from pice import __version__
from pice.cli import doctor
from pice.config import load_settings
from pice.core import Curve, Prompt
from pice.engine.base import EngineInfo
from pice.errors import InputError, ModelLoadError

Run = Callable[..., Any]

LLAMA = """\
[engines.small]
kind = "llama_cpp"
path = "small.gguf"
[cloud]
engine = "small"
"""


def test_version_is_the_packages(pice: Run) -> None:
    ran = pice("--version")
    assert (ran.code, ran.out) == (0, f"pice {__version__}\n")


def test_help_lists_the_commands_and_the_exit_codes(pice: Run) -> None:
    shown = " ".join(pice("--help").out.split())
    assert all(command in shown for command in ("ask", "plan", "batch", "config", "doctor", "--install-completion"))
    assert all(code in shown for code in ("0 done", "1 the request failed", "2 wrong usage", "130 interrupted"))


@pytest.mark.parametrize(("command", "what"), [("ask", "whole record"), ("plan", "decision"), ("doctor", "checks")])
def test_help_says_what_is_printed_as_json(pice: Run, command: str, what: str) -> None:
    assert f"Print the {what} as JSON." in " ".join(pice(command, "--help").out.split())


@pytest.mark.parametrize(
    "args",
    [
        ["plan"],
        ["ask", "why?", "--mode", "magic"],
        ["ask", "why?", "--timeout", "0"],
        ["ask", "why?", "--seed", "-1"],
        ["ask", "why?", "--seed", "4294967295"],
        ["no"],
    ],
)
def test_wrong_usage_gives_2(pice: Run, args: list[str]) -> None:
    ran = pice(*args)
    assert ran.code == 2
    assert "Usage" in ran.err


def test_config_show_is_toml_with_secrets_masked(pice: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "server.toml"
    path.write_text('[engines.s]\nkind = "openai"\nbase_url = "http://h/v1"\nmodel = "m"\n[cloud]\nengine = "s"\n')
    monkeypatch.setenv("PICE_ENGINES__S__API_KEY", "sk-very-secret")
    ran = pice("config", "show", "-c", str(path), "--set", "planner.margin=0.3")
    assert ran.code == 0
    shown = tomllib.loads(ran.out)
    assert (shown["planner"]["margin"], shown["engines"]["s"]["api_key"]) == (0.3, "**********")


def test_config_check_names_what_it_checked(pice: Run, config_file: Path) -> None:
    ran = pice("config", "check", "-c", str(config_file))
    assert (ran.code, ran.out) == (0, f"{config_file}: no fault found (engines: big; sites: none)\n")


def test_config_check_of_a_wrong_file_gives_2(pice: Run, config_file: Path) -> None:
    config_file.write_text("[cloud]\n")
    ran = pice("config", "check", "-c", str(config_file))
    assert ran.code == 2
    assert "no engine is configured" in ran.err


def test_doctor_without_a_configuration_looks_at_the_machine_only(pice: Run) -> None:
    ran = pice("doctor")
    assert ran.code == 0
    assert "engine" not in ran.out
    assert all(part in ran.out for part in ("ok       python: 3.", "cores: ", "memory: ", "GiB", "ok       typer: "))


def test_doctor_loads_each_model(pice: Run, config_file: Path) -> None:
    ran = pice("doctor", "-c", str(config_file))
    assert ran.code == 0
    assert "ok       engine big (emulated, emulated): loads in 0.0 s, 4096 tokens of context, 8 at once" in ran.out


def test_doctor_gives_1_and_the_reason_when_a_model_does_not_load(
    pice: Run, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    class Unusable:
        async def start(self) -> None:
            raise ModelLoadError("models/x.gguf: no such file")

        async def close(self) -> None:
            closed.append(self)

    monkeypatch.setattr("pice.cli.doctor.make_engine", lambda *_, **__: Unusable())
    ran = pice("doctor", "-c", str(config_file), "--json")
    assert ran.code == 1
    (check,) = [check for check in orjson.loads(ran.out) if not check["ok"] and check["needed"]]
    assert check["name"] == "engine big (emulated, emulated)"
    assert check["detail"] == "does not load: models/x.gguf: no such file"
    assert len(closed) == 1


def test_doctor_names_a_chat_template_that_takes_no_question(
    pice: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Picky:
        info = EngineInfo("small", 4096, 8, Curve((1,), (0.1,)))

        async def start(self) -> None:
            pass

        async def count_tokens(self, prompt: Prompt) -> int:
            raise InputError("the model's chat template refuses these messages: no system here")

        async def close(self) -> None:
            pass

    config = tmp_path / "pice.toml"
    config.write_text(LLAMA, encoding="utf-8")
    monkeypatch.setattr("pice.cli.doctor.make_engine", lambda *_, **__: Picky())
    ran = pice("doctor", "-c", str(config), "--json")
    (check,) = [check for check in orjson.loads(ran.out) if check["name"].startswith("engine small")]
    assert not check["ok"]
    assert "no system here" in check["detail"]
    assert "chat_template" in check["remedy"]


@pytest.mark.parametrize("used", [True, False], ids=["configured", "not configured"])
def test_missing_package_is_needed_only_where_the_configuration_uses_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, used: bool
) -> None:
    def version(name: str) -> str:
        if name == "llama-cpp-python":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("pice.cli.doctor.version", version)
    path = tmp_path / "llama.toml"
    path.write_text(LLAMA)
    checks = doctor.package_checks(load_settings(path, environ={}) if used else None)
    (missing,) = [check for check in checks if not check.ok]
    assert (missing.name, missing.needed) == ("llama-cpp-python [llama]", used)
    assert "-m pip install 'llama-cpp-python" in missing.line()
    assert missing.line().startswith("MISSING" if used else "absent")


def test_package_check_leaves_out_what_nothing_here_uses() -> None:
    assert not {check.name.partition(" ")[0] for check in doctor.package_checks(None)} & {
        "pytest",
        "ruff",
        "matplotlib",
        "jax",
    }


def test_folder_that_cannot_be_written_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    assert all(not check.ok and "chmod" in check.remedy for check in doctor.folder_checks())


def test_first_signal_ends_a_doctor_whose_model_takes_long(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pice.toml").write_text(LLAMA, encoding="utf-8")

    async def hang(_name: str, _settings: object) -> doctor.Check:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()
        raise AssertionError("nothing sets it")

    monkeypatch.setattr(doctor, "_model_check", hang)
    with pytest.raises(typer.Exit) as ended:
        doctor.run_model_checks(load_settings(tmp_path / "pice.toml"))
    assert ended.value.exit_code == 130

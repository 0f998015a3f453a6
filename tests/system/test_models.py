"""`pice models` as a process: a path for the shell, a hub that is gone."""

from pathlib import Path

import pytest

from tests.system.command import pice, shell
from tests.unit.models.hub_server import REPO, serving
from tests.unit.models.made import write_gguf

pytest.importorskip("huggingface_hub")

TOKEN = "hf_very_secret"


def test_pulled_model_is_inspected_in_one_line_of_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_gguf(tmp_path / "m.gguf").read_bytes()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    script = f'pice models inspect --json "$(pice models pull hf:{REPO}:m.gguf)"'
    with serving({"m.gguf": data}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        ran = shell(script, tmp_path)
        assert (ran.code, '"architecture": "llama"' in ran.out) == (0, True), ran.err
        assert {each.path.split("/")[1] for each in hub.asked} == {"org", "store"}
        assert hub.asked[0].headers["authorization"] == f"Bearer {TOKEN}"
        assert TOKEN not in ran.out + ran.err
        num_asked = len(hub.asked)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        offline = shell(script, tmp_path)
        assert (offline.code, offline.out) == (0, ran.out)
        assert len(hub.asked) == num_asked
    assert (tmp_path / "home" / "hub" / "models--org--repo").is_dir()


def test_hub_out_of_reach_gives_1_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    ran = pice("models", "pull", f"hf:{REPO}:m.gguf")
    assert ran.code == 1
    assert ran.refusal.startswith(f"hf:{REPO}:m.gguf: http://127.0.0.1:9 could not be reached (")
    assert ran.refusal.endswith("; a file that is on this machine already can be given by its path")

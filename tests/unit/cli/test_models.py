"""`pice models inspect` and `pice models pull`."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.unit.models.hub_server import COMMIT, REPO, serving
from tests.unit.models.made import HEAD, write_gguf

Run = Callable[..., Any]

CHUNK = 1000
MODEL = bytes(range(250)) * 40
SOURCE = f"hf:{REPO}:m.gguf"


def test_inspect_shows_the_model_and_its_memory(pice: Run, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    ran = pice("models", "inspect", str(path), "--prompt-tokens", "0", "--tokens", "256", "--n-ctx", "300")
    assert (ran.code, ran.err) == (0, "")
    said = [" ".join(line.split()) for line in ran.out.splitlines()]
    assert "model unknown (llama)" in said
    assert "16 4,096 4,096 1.0 MiB 1.0 MiB" in said
    assert "room for 1 300 512 128.0 KiB 128.4 KiB" in said


def test_inspect_prints_all_of_it_as_json(pice: Run, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {**HEAD, "general.name": "a\x1b[2J\x9b"})
    ran = pice("models", "inspect", str(path), "--json", "--n-ctx", "4096")
    assert ran.code == 0
    assert ran.out.replace("\n", "").isprintable()
    said = orjson.loads(ran.out)
    assert said["model"]["name"] == "a\x1b[2J\x9b"
    assert (said["model"]["num_layers"], said["model"]["special_tokens"][0]["text"]) == (2, "<s>")
    assert said["memory"]["kv_bytes_per_token"] == {"f32": 512, "f16": 256}
    assert [need["num_sequences"] for need in said["memory"]["needs"]] == [1, 2, 4, 8, 16]
    assert said["memory"]["room"] == 7


def test_inspect_as_json_takes_a_file_name_that_is_no_text(pice: Run, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / os.fsdecode(b"b\xffad.gguf"))
    ran = pice("models", "inspect", str(path), "--json")
    assert ran.code == 0
    assert "ad.gguf" in orjson.loads(ran.out)["model"]["path"]


def test_inspect_never_writes_control_characters_of_a_file(pice: Run, tmp_path: Path) -> None:
    evil = "\x1b]0;gotcha\x07\x9b2J\u202e\r\n"
    metadata = {
        **HEAD,
        "general.name": evil,
        "tokenizer.ggml.tokens": [evil, evil, evil],
        f"tokenizer.chat_template.{evil}": "x",
        "llama.rope.scaling.type": evil,
        "tokenizer.ggml.pre": evil,
    }
    ran = pice("models", "inspect", str(write_gguf(tmp_path / "m.gguf", metadata, {evil: (2, 32)})))
    assert ran.code == 0
    assert ran.out.replace("\n", "").isprintable()
    assert ran.out.count("gotcha") >= 5


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "expected a GGUF file, got an empty one"),
        (b"GGUF\x03\0\0\0", "expected 8 more bytes of header at byte 8, got 0 before the end"),
    ],
    ids=["none", "empty", "cut off"],
)
def test_inspect_of_what_is_no_model_gives_2_and_one_line(
    pice: Run, tmp_path: Path, data: bytes | None, expected: str
) -> None:
    path = tmp_path / "m.gguf"
    if data is not None:
        path.write_bytes(data)
    ran = pice("models", "inspect", str(path))
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(f"error: {path}: ")
    assert expected in ran.err
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize("option", ["--tokens=0", "--prompt-tokens=-1", "--n-ctx=0", "--n-ctx=10000001"])
def test_inspect_refuses_numbers_out_of_range(pice: Run, option: str) -> None:
    ran = pice("models", "inspect", "m.gguf", option)
    assert ran.code == 2
    assert "Usage" in ran.err


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    library = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", CHUNK)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    library.close_session()


@pytest.mark.usefixtures("endpoint")
def test_pull_prints_the_path_alone(pice: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"m.gguf": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        ran = pice("models", "pull", SOURCE, "--cache-dir", str(tmp_path))
    path = tmp_path / "models--org--repo" / "snapshots" / COMMIT / "m.gguf"
    assert (ran.code, ran.out) == (0, f"{path}\n")
    assert path.read_bytes() == MODEL
    assert "its SHA-256 is right" in ran.err


@pytest.mark.usefixtures("endpoint")
def test_pull_that_is_interrupted_is_gone_on_with(pice: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with serving({"m.gguf": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.cuts = [3 * CHUNK]
        with monkeypatch.context() as patched:
            patched.setattr("huggingface_hub.file_download.time.sleep", interrupt)
            ran = pice("models", "pull", SOURCE, "--cache-dir", str(tmp_path))
        assert (ran.code, ran.out) == (130, "")
        assert ran.err.endswith("interrupted: what came so far is kept, and the same command goes on from there\n")
        ran = pice("models", "pull", SOURCE, "--cache-dir", str(tmp_path))
        assert ran.code == 0
        assert Path(ran.out.strip()).read_bytes() == MODEL
        assert hub.ranges() == [None, f"bytes={3 * CHUNK}-"]


@pytest.mark.usefixtures("endpoint")
@pytest.mark.parametrize(
    ("source", "refusal", "code", "expected"),
    [
        ("m.gguf", None, 2, "expected hf:ORG/REPO:FILE"),
        ("hf:org/other:m.gguf", None, 2, "no such repo at"),
        (f"hf:{REPO}:x.gguf", None, 2, "which has m.gguf"),
        (SOURCE, (403, "GatedRepo"), 2, "access is restricted"),
        (SOURCE, (503, ""), 1, "answered 503"),
    ],
)
def test_pull_that_is_refused_says_why_in_one_line(
    pice: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    refusal: tuple[int, str] | None,
    code: int,
    expected: str,
) -> None:
    with serving({"m.gguf": MODEL}) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        hub.refusal = refusal
        ran = pice("models", "pull", source, "--cache-dir", str(tmp_path))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith("error: ")
    assert expected in ran.err
    assert ran.err.count("\n") == 1

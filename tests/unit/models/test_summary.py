"""What a file says of itself: figures, vocabulary, templates, and figures that cannot be."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pice.errors import ModelLoadError
from pice.models.figures import Figures
from pice.models.lines import lines, size
from pice.models.memory import estimate
from pice.models.parts import read_model
from pice.models.summary import SpecialToken, Summary, Template, summarise
from tests.unit.models.made import HEAD, write_gguf

WAIT_S = 30.0


def summary(folder: Path, metadata: Mapping[str, Any] = HEAD, **options: Any) -> Summary:
    return summarise(read_model(write_gguf(folder / "m.gguf", metadata, **options)))


def test_figures_of_a_small_model(tmp_path: Path) -> None:
    found = summary(tmp_path, {**HEAD, "general.name": "Small", "general.file_type": 15, "llama.rope.freq_base": 5e5})
    assert (found.architecture, found.name, found.file_type) == ("llama", "Small", "Q4_K_M")
    assert (found.num_layers, found.embedding_length, found.context_tokens) == (2, 64, 4096)
    assert (found.num_heads, found.num_kv_heads, found.key_length, found.value_length) == ((4, 4), (2, 2), 16, 16)
    assert (found.num_parameters, found.bytes_by_type) == (3 * 32 + 5, {"F32": 404})
    assert (found.num_vocabulary, found.tokenizer, found.rope) == (4, "llama", {"freq_base": 5e5})
    assert found.special_tokens == (SpecialToken("bos", 1, "<s>"), SpecialToken("eos", 2, "</s>"))


def test_bytes_are_listed_by_type_largest_first(tmp_path: Path) -> None:
    import gguf

    found = summary(tmp_path, tensors={"a": (5,), "b": (2, 64)}, quantization=gguf.GGMLQuantizationType.Q8_0)
    assert list(found.bytes_by_type.items()) == [("Q8_0", 4 * 34), ("F32", 20)]


def test_what_the_file_does_not_say_is_unknown(tmp_path: Path) -> None:
    found = summary(tmp_path, {})
    assert (found.name, found.file_type, found.num_layers, found.num_heads, found.key_length) == (None,) * 5
    assert (found.num_vocabulary, found.special_tokens, found.templates, found.rope) == (None, (), (), {})


def test_heads_that_differ_by_layer_are_a_range(tmp_path: Path) -> None:
    found = summary(tmp_path, {**HEAD, "llama.attention.head_count_kv": [8, 2]})
    assert (found.num_heads, found.num_kv_heads) == ((4, 4), (2, 8))


def test_special_token_beyond_the_vocabulary_has_no_text(tmp_path: Path) -> None:
    found = summary(tmp_path, {"tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.eot_token_id": 1})
    assert found.special_tokens == (SpecialToken("eot", 1, ""),)


TEMPLATES = {
    "prints any role": ("{{ '<|im_start|>' + message['role'] + '\\n' }}", True, False),
    "names the system role": ("{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}", True, False),
    "refuses it": ("{% if m.role == \"system\" %}{{ raise_exception('System role not supported') }}", False, False),
    "knows none": ("{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% endif %}", False, False),
    "thinks": ("{{ m.role }}<think>\n\n</think>", True, True),
    "thinks by a switch": ("{{ m.role }}{% if enable_thinking is false %}{% endif %}", True, True),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_is_told_by_what_stands_in_it(tmp_path: Path, name: str) -> None:
    source, takes_system, thinks = TEMPLATES[name]
    found = summary(tmp_path, {"tokenizer.chat_template": source})
    assert found.templates == (Template("default", takes_system, thinks),)


HOSTILE = {
    "refusals": ("'system'" + "raise_exception(" * 65_536, True),
    "system in a refusal": ("'system'" + "raise_exception(" + "system" * 174_760, True),
    "roles": ("{{" + " role" * 209_715, False),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_template_made_to_take_long_is_told_in_time(tmp_path: Path, name: str) -> None:
    source, takes_system = HOSTILE[name]
    path = write_gguf(tmp_path / "m.gguf", {"tokenizer.chat_template": source})
    script = (
        "import sys, pathlib; from pice.models import parts, summary; "
        "print(*summary.summarise(parts.read_model(pathlib.Path(sys.argv[1]))).templates)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=WAIT_S, check=True
    )
    assert ran.stdout == f"Template(name='default', {takes_system=}, thinks=False)\n"


def test_all_templates_are_listed_the_default_first(tmp_path: Path) -> None:
    found = summary(tmp_path, {"tokenizer.chat_template.tool_use": "a", "tokenizer.chat_template": "b"})
    assert [template.name for template in found.templates] == ["default", "tool_use"]


def test_template_is_never_run(tmp_path: Path) -> None:
    found = summary(tmp_path, {"tokenizer.chat_template": "{{ 1 / 0 }}{% include '/etc/passwd' %}{{ unclosed"})
    assert found.templates == (Template("default", takes_system=False, thinks=False),)


WRONG: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "text for a number": (
        {"llama.block_count": "2"},
        "llama.block_count: expected a whole number from 0 to 512, got '2'",
    ),
    "too many layers": ({"llama.block_count": 513}, "expected a whole number from 0 to 512, got 513"),
    "fraction": ({"llama.context_length": 0.5}, "expected a whole number from 0 to 2147483647, got 0.5"),
    "number for a text": ({"general.name": 3}, "general.name: expected text, got 3"),
    "array for a text": ({"tokenizer.ggml.model": ["a"]}, "expected text, got an array of 1"),
    "text for a fraction": ({"llama.rope.freq_base": "x"}, "expected a number, got 'x'"),
    "too few layers": (
        {"llama.block_count": 3, "llama.attention.head_count": [1, 1]},
        "llama.attention.head_count: expected 3 numbers, one for each layer, got 2",
    ),
    "vocabulary of numbers": ({"tokenizer.ggml.tokens": [1, 2]}, "expected an array of text, got an array of 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_figure_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    metadata, expected = WRONG[name]
    with pytest.raises(ModelLoadError) as refused:
        summary(tmp_path, metadata)
    assert expected in str(refused.value)


def test_file_without_architecture_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF\x03" + bytes(19))
    with pytest.raises(ModelLoadError, match=r"architecture: expected the name of an architecture, got nothing"):
        summarise(read_model(path))


def test_lines_say_all_of_it(tmp_path: Path) -> None:
    metadata = {
        **HEAD,
        "general.name": "Sm\x1b[0mall",
        "llama.attention.head_count_kv": [4, 2],
        "llama.expert_count": 8,
        "llama.expert_used_count": 2,
        "llama.attention.sliding_window": 1024,
        "llama.rope.freq_base": 1e6,
    }
    files = read_model(write_gguf(tmp_path / "m.gguf", metadata))
    memory = estimate(
        Figures(files.first.path, files.first.metadata),
        404,
        num_shared_tokens=100,
        num_own_tokens=50,
        sequences=(1, 2),
        n_ctx=500,
    )
    said = "\n".join(" ".join(line.split()) for line in lines(summarise(files), memory)).splitlines()
    for line in (
        r"model Sm\x1b[0mall (llama)",
        "heads 4, 2 to 4 for keys and values, of 16 and 16 elements",
        "experts 8, 2 used at once",
        "window 1,024 tokens, in some or all layers",
        "rope freq_base 1,000,000",
        "vocabulary 4 tokens (llama)",
        "special tokens bos 1 <s>, eos 2 </s>",
        "chat template default: takes a system message",
        "weights 404 B",
        "KV per token f32 768 B, f16 384 B",
        "sequences tokens n_ctx KV f16 total f16",
        "2 200 256 96.0 KiB 96.4 KiB",
        "room for 8 500 512 192.0 KiB 192.4 KiB",
    ):
        assert line in said


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536 * 1024, "1.5 MiB"), (5 << 40, "5120.0 GiB")],
)
def test_size_has_the_unit_that_fits(num_bytes: int, text: str) -> None:
    assert size(num_bytes) == text

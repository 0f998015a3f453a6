"""What a model file says of itself."""

import re
from dataclasses import dataclass

from pice.models.figures import Figures
from pice.models.ggml_types import file_type_name
from pice.models.gguf_header import TOKENS, Array
from pice.models.memory import MAX_HEAD_LENGTH, MAX_HEADS, MAX_LAYERS
from pice.models.parts import ModelFiles
from pice.models.printable import shown_path

_TEMPLATE = "tokenizer.chat_template"
_SPECIAL = re.compile(r"tokenizer\.ggml\.(?P<name>\w+)_token_id")
_MAX_TEMPLATE_CHARS = 65_536
"""So much of a template is looked at; with repetitions that are bounded too, a hostile one takes no more time."""
_REFUSES_SYSTEM = re.compile(r"raise_exception\([^)]{0,200}system[^)]{0,200}\)", re.IGNORECASE)
_KNOWS_SYSTEM = re.compile(r"""["']system["']|\{\{[^{}]{0,200}\brole\b[^{}]{0,200}\}\}""")
_THINKS = re.compile(r"</?think>|enable_thinking|reasoning_content")


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """`text` is "" where the vocabulary has no such token."""

    name: str
    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template, by what stands in it; it is not run.

    `takes_system`: it names the system role or prints whatever role comes, and does not refuse that one.
    `thinks`: it knows thinking blocks.
    """

    name: str
    takes_system: bool
    thinks: bool


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures are None where the file has none. `bytes_by_type` is largest first. Head counts are the least and the
    most of any layer; lengths are those of layers that see all."""

    path: str
    version: int
    num_parts: int
    missing_parts: tuple[str, ...]
    size_bytes: int
    architecture: str
    name: str | None
    file_type: str | None
    bytes_by_type: dict[str, int]
    num_parameters: int
    num_layers: int | None
    embedding_length: int | None
    num_heads: tuple[int, int] | None
    num_kv_heads: tuple[int, int] | None
    key_length: int | None
    value_length: int | None
    context_tokens: int | None
    sliding_window_tokens: int | None
    num_experts: int | None
    num_experts_used: int | None
    rope: dict[str, float | str]
    num_vocabulary: int | None
    tokenizer: str | None
    tokenizer_pre: str | None
    special_tokens: tuple[SpecialToken, ...]
    templates: tuple[Template, ...]


def summarise(files: ModelFiles) -> Summary:
    """Of a model whose metadata is in its first file.

    Raises:
        ModelLoadError: a figure is of the wrong kind or out of range.
        ConfigError: gguf is not installed.
    """
    figures = Figures(files.first.path, files.first.metadata)
    layers = figures.integer(figures.of_model("block_count"), most=MAX_LAYERS)
    heads = _range(figures, "attention.head_count", layers)
    width = figures.integer(figures.of_model("embedding_length"))
    head_length = width // heads[0] if width and heads and heads[0] else None
    file_type = figures.integer("general.file_type")

    def length(key: str) -> int | None:
        found = figures.integer(figures.of_model(f"attention.{key}"), most=MAX_HEAD_LENGTH)
        return head_length if found is None else found

    return Summary(
        path=shown_path(files.first.path),
        version=files.first.version,
        num_parts=files.num_parts,
        missing_parts=files.missing,
        size_bytes=files.size_bytes,
        architecture=figures.architecture,
        name=figures.text("general.name"),
        file_type=None if file_type is None else file_type_name(file_type),
        bytes_by_type=_bytes_by_type(files),
        num_parameters=sum(tensor.num_elements for tensor in files.tensors),
        num_layers=layers,
        embedding_length=width,
        num_heads=heads,
        num_kv_heads=_range(figures, "attention.head_count_kv", layers) or heads,
        key_length=length("key_length"),
        value_length=length("value_length"),
        context_tokens=figures.integer(figures.of_model("context_length")),
        sliding_window_tokens=figures.integer(figures.of_model("attention.sliding_window")),
        num_experts=figures.integer(figures.of_model("expert_count")),
        num_experts_used=_first(figures, "expert_used_count"),
        rope=_rope(figures),
        num_vocabulary=_num_vocabulary(figures),
        tokenizer=figures.text("tokenizer.ggml.model"),
        tokenizer_pre=figures.text("tokenizer.ggml.pre"),
        special_tokens=_special_tokens(figures),
        templates=_templates(figures),
    )


def _range(figures: Figures, key: str, num_layers: int | None) -> tuple[int, int] | None:
    found = figures.per_layer(figures.of_model(key), num_layers or 0, most=MAX_HEADS)
    return (min(found), max(found)) if found else None


def _first(figures: Figures, key: str) -> int | None:
    found = figures.per_layer(figures.of_model(key), 1, most=MAX_HEADS)
    return found[0] if found else None


def _bytes_by_type(files: ModelFiles) -> dict[str, int]:
    found: dict[str, int] = {}
    for tensor in files.tensors:
        found[tensor.type] = found.get(tensor.type, 0) + tensor.num_bytes
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def _rope(figures: Figures) -> dict[str, float | str]:
    found: dict[str, float | str | None] = {
        key: figures.number(figures.of_model(f"rope.{key}"))
        for key in (
            "dimension_count",
            "freq_base",
            "freq_base_swa",
            "scaling.factor",
            "scaling.original_context_length",
        )
    }
    found["scaling.type"] = figures.text(figures.of_model("rope.scaling.type"))
    return {key: value for key, value in found.items() if value is not None}


def _num_vocabulary(figures: Figures) -> int | None:
    tokens = figures.values.get(TOKENS)
    return tokens.count if isinstance(tokens, Array) else figures.integer(figures.of_model("vocab_size"))


def _special_tokens(figures: Figures) -> tuple[SpecialToken, ...]:
    tokens = figures.texts(TOKENS) or ()
    found = []
    for key in figures.values:
        match = _SPECIAL.fullmatch(key)
        number = figures.integer(key, most=2**32 - 1) if match else None
        if match and number is not None:
            found.append(SpecialToken(match["name"], number, tokens[number] if number < len(tokens) else ""))
    return tuple(found)


def _templates(figures: Figures) -> tuple[Template, ...]:
    """The default one first."""
    keys = sorted(key for key in figures.values if key == _TEMPLATE or key.startswith(f"{_TEMPLATE}."))
    return tuple(_template(key, (figures.text(key) or "")[:_MAX_TEMPLATE_CHARS]) for key in keys)


def _template(key: str, source: str) -> Template:
    takes_system = bool(_KNOWS_SYSTEM.search(source)) and not _REFUSES_SYSTEM.search(source)
    return Template(
        key.removeprefix(_TEMPLATE).removeprefix(".") or "default", takes_system, bool(_THINKS.search(source))
    )

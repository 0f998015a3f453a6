"""What is known of a model file, as lines of text for a terminal."""

from collections.abc import Iterator, Sequence

from pice.models.memory import Memory, Need
from pice.models.printable import shown, shown_path
from pice.models.summary import Summary, Template

_COLUMNS = ("f16", "q8_0", "q4_0")
"""KV types that get a column; the others are in the JSON."""


def lines(summary: Summary, memory: Memory) -> Iterator[str]:
    for label, text in (*_facts(summary), *_memory_facts(memory)):
        yield f"{label:<15}{text}"
    if memory.kv_bytes_per_token:
        yield ""
        yield from _table(memory)


def size(num_bytes: float) -> str:
    """`1.5 GiB`."""
    for unit in ("B", "KiB", "MiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.1f} GiB"


def _facts(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "model", f"{_text(summary.name)} ({shown(summary.architecture)})"
    yield "file", f"{shown_path(summary.path)}, {size(summary.size_bytes)}, GGUF version {summary.version}"
    if summary.num_parts > 1:
        yield "parts", _parts(summary)
    total = sum(summary.bytes_by_type.values()) or 1
    types = ", ".join(f"{name} {size(each)} ({each / total:.0%})" for name, each in summary.bytes_by_type.items())
    yield "quantisation", f"{_text(summary.file_type)}; tensors: {types or 'none'}"
    yield "parameters", f"{summary.num_parameters:,}"
    yield "layers", f"{_number(summary.num_layers)}, {_number(summary.embedding_length)} wide"
    heads, kv_heads = _range(summary.num_heads), _range(summary.num_kv_heads)
    lengths = f"{_number(summary.key_length)} and {_number(summary.value_length)}"
    yield "heads", f"{heads}, {kv_heads} for keys and values, of {lengths} elements"
    if summary.num_experts:
        yield "experts", f"{summary.num_experts}, {_number(summary.num_experts_used)} used at once"
    yield "context", f"{_number(summary.context_tokens)} tokens trained for"
    if summary.sliding_window_tokens:
        yield "window", f"{summary.sliding_window_tokens:,} tokens, in some or all layers"
    if summary.rope:
        yield "rope", ", ".join(f"{key} {_value(value)}" for key, value in summary.rope.items())
    kind = " / ".join(shown(each) for each in (summary.tokenizer, summary.tokenizer_pre) if each)
    yield "vocabulary", f"{_number(summary.num_vocabulary)} tokens ({kind or 'unknown'})"
    yield (
        "special tokens",
        ", ".join(f"{shown(t.name)} {t.id} {shown(t.text, 40)}" for t in summary.special_tokens) or "none",
    )
    yield "chat template", "; ".join(map(_template, summary.templates)) or "none (ChatML is used)"


def _memory_facts(memory: Memory) -> Iterator[tuple[str, str]]:
    yield "weights", size(memory.weight_bytes)
    if memory.unknown:
        yield "KV", f"not estimated: {memory.unknown}"
    else:
        kinds = ", ".join(f"{name} {size(each)}" for name, each in memory.kv_bytes_per_token.items())
        yield "KV per token", kinds or "no type fits its heads"


def _table(memory: Memory) -> Iterator[str]:
    """Columns of the types that there are."""
    types = [name for name in _COLUMNS if name in memory.kv_bytes_per_token]
    yield (
        f"Memory for weights and KV: {memory.num_shared_tokens:,} tokens shared and {memory.num_own_tokens:,} for each "
        "sequence; llama.cpp's compute buffers are not in it."
    )
    rows = [("sequences", "tokens", "n_ctx", *(f"KV {it}" for it in types), *(f"total {it}" for it in types))]
    rows += [_row(f"{need.num_sequences}", need, types) for need in memory.needs]
    if memory.fixed is not None:
        rows.append(_row(f"room for {memory.room}", memory.fixed, types))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True))


def _row(label: str, need: Need, types: Sequence[str]) -> tuple[str, ...]:
    kv, total = ([size(by_type[it]) for it in types] for by_type in (need.kv_bytes, need.total_bytes))
    return (label, f"{need.num_tokens:,}", f"{need.n_ctx:,}", *kv, *total)


def _parts(summary: Summary) -> str:
    missing = summary.missing_parts
    if not missing:
        return f"{summary.num_parts}, all there"
    named = ", ".join(shown(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
    there = summary.num_parts - len(missing)
    return f"{there} of {summary.num_parts} there, and only they are counted below; missing: {named}"


def _template(template: Template) -> str:
    system = "takes a system message" if template.takes_system else "takes no system message"
    return f"{shown(template.name)}: {system}" + (", can think first" if template.thinks else "")


def _number(value: int | None) -> str:
    return "unknown" if value is None else f"{value:,}"


def _range(value: tuple[int, int] | None) -> str:
    if value is None:
        return "unknown"
    return f"{value[0]}" if value[0] == value[1] else f"{value[0]} to {value[1]}"


def _text(value: str | None) -> str:
    return "unknown" if value is None else shown(value)


def _value(value: float | str) -> str:
    return shown(value) if isinstance(value, str) else f"{value:,.10g}"

"""Writes a llama model with random weights: real llama.cpp, no download. A tiny one loads in hundredths of a second;
one of a real model's shape takes a real model's time and memory.

    python tools/tiny_gguf.py --preset cloud out.gguf

Its text is English words in random order, with a few commas, full stops and line breaks. The tokenizer is
SentencePiece-like: three special tokens, 256 byte tokens, the words with all their prefixes, letters, digits,
punctuation, as many made-up words as a vocabulary of a given size takes, and ChatML's two markers; a ChatML template
is embedded.
"""

import argparse
import string
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quantization
from gguf import TokenType

WORDS = """
the of and to in is that for it as with on by this are or an be from at which have has more can not also such when
some other than into only most its their they you we all one two three first last new many may then these each both
about after again against along although always among amount another answer any area around back because become
before begin behind being below best better between body book both bring build business call carry case cause change
children choose city clear close cold come common company complete compare consider contain continue control cool
cost could country course cover create cut daily data day deal decide deep depend describe design develop different
direct distance do down draw drive during early earth east easy edge effect eight either energy enough even every
example expect explain face fact fall family far fast few field figure fill final find fine fire five follow food foot
form forward found four free friend full game general get give go good government great green ground group grow half
hand hard head health hear heat help here high history hold home hot house how human hundred idea if important
improve include increase industry inside interest island job just keep kind know land language large late law learn
least leave left less let level life light like line list little live local long look low machine main make man mark
market material matter mean measure might mile mind minute model money month morning mountain move much music must
name nation natural near need network never next night north nothing now number object observe ocean off often oil
old once open order our out over own page paper part pass past pattern people perhaps person piece place plain plan
plant play point possible power present press problem process produce product program provide public put question
quick quite rain reach read ready real reason record red region remember rest result right river road rock room round
rule run safe same school science sea second section see seem sentence serve set several shape short should show side
simple since six size sketch sleep slow small smart so social soft soil sometimes soon sound south space special speed
stand star start state stay step still stop store story street strong structure study subject summer sun support sure
surface system table take talk teach team technology tell ten test theory thing think thousand through time together
too top toward town trade travel tree true try turn under understand unit until up upon use usual value various very
voice wait walk wall want war warm watch water way weather week weight well west what where while white whole why wide
will wind window winter without wonder word work world would write year young
"""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
UNK, BOS, EOS = 0, 1, 2
NEWLINE = 3 + ord("\n")
NEVER, SELDOM = -40.0, -3.0
CONSTANT = 8.0

FILE_TYPES = {
    "f32": (Quantization.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (Quantization.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Quantization.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """`width` is a multiple of 32 and of twice `heads`; `end_bias` sets how soon a text ends: a tiny preset's
    after some 70 tokens at common settings.

    `kv_heads` 0 is half of `heads`, `ffn` 0 twice the width, `vocabulary` 0 as many tokens as the words need.
    `repeats_layers` gives every layer the weights of the first, each adding its share to the residual stream: a big
    file is written in seconds, and evaluated like any other of its shape, since each layer has its own bytes.
    """

    layers: int = 2
    width: int = 64
    heads: int = 4
    context_tokens: int = 4096
    quantization: str = "f32"
    end_bias: float = 8.0
    kv_heads: int = 0
    ffn: int = 0
    vocabulary: int = 0
    repeats_layers: bool = False

    @property
    def kv_width(self) -> int:
        return (self.kv_heads or self.heads // 2) * self.width // self.heads

    @property
    def ffn_width(self) -> int:
        return self.ffn or 2 * self.width


PRESETS = {
    "edge": Shape(),
    "cloud": Shape(layers=4, width=256, heads=8, quantization="q8_0", end_bias=10.0),
}
_HALF_B = Shape(
    layers=24,
    width=896,
    heads=14,
    kv_heads=2,
    ffn=4864,
    vocabulary=32_000,
    context_tokens=8192,
    quantization="q8_0",
    end_bias=NEVER,
    repeats_layers=True,
)
BENCH_PRESETS = {
    "half-b-q8_0": _HALF_B,
    "half-b-q4_0": replace(_HALF_B, quantization="q4_0"),
    "one-b-q4_0": replace(_HALF_B, layers=28, width=1536, heads=12, ffn=8960, quantization="q4_0"),
    "small-f32": Shape(layers=6, width=512, heads=8, context_tokens=8192, quantization="f32", end_bias=NEVER),
    "small-f16": Shape(layers=6, width=512, heads=8, context_tokens=8192, quantization="f16", end_bias=NEVER),
}
"""To measure with; their text never ends by itself. The first two have the shape of a model of half a billion weights,
the third of one and a half (Qwen2.5-0.5B's and -1.5B's, but for the vocabulary)."""


def vocabulary(size: int = 0) -> list[tuple[str, TokenType]]:
    """The tokens with their types, in order of id; if there are fewer than `size`, words of a, b, c ... fill it up."""
    words = {f"▁{word}"[:end] for word in WORDS.split() for end in range(1, len(word) + 2)}
    pieces = sorted(words | set(string.ascii_letters + string.digits + string.punctuation))
    made_up = (word for word in _made_up_words() if word not in words)
    pieces += islice(made_up, max(0, size - len(pieces) - 256 - 5))
    return [
        ("<unk>", TokenType.UNKNOWN),
        ("<s>", TokenType.CONTROL),
        ("</s>", TokenType.CONTROL),
        *((f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)),
        *((piece, TokenType.NORMAL) for piece in pieces),
        ("<|im_start|>", TokenType.CONTROL),
        ("<|im_end|>", TokenType.CONTROL),
    ]


def _made_up_words() -> Iterator[str]:
    """All of one letter, then all of two, ...: so all prefixes of each come before it, as merging needs."""
    lengths = (product(string.ascii_lowercase, repeat=length) for length in range(1, 6))
    return (f"▁{''.join(letters)}" for letters in chain.from_iterable(lengths))


def write_tiny_gguf(path: Path, *, seed: int, shape: Shape = PRESETS["edge"]) -> None:
    """Writes the model; the same seed and shape give the same weights."""
    tokens = vocabulary(shape.vocabulary)
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _describe(writer, path.stem, shape, tokens)
        for name, (weights, kind) in _weights(np.random.default_rng(seed), shape, tokens).items():
            writer.add_tensor(name, weights, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: Any, name: str, shape: Shape, tokens: list[tuple[str, TokenType]]) -> None:
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[shape.quantization][1])
    writer.add_vocab_size(len(tokens))
    writer.add_context_length(shape.context_tokens)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads or shape.heads // 2)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in tokens])
    writer.add_token_scores([float(len(text)) if kind is TokenType.NORMAL else 0.0 for text, kind in tokens])
    writer.add_token_types([kind for _, kind in tokens])
    writer.add_unk_token_id(UNK)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(len(tokens) - 1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHATML)


def _weights(
    rng: np.random.Generator, shape: Shape, tokens: list[tuple[str, TokenType]]
) -> dict[str, tuple[Any, Quantization]]:
    """Random tensors, quantised. Channel 0 of the residual stream is a constant that no block changes, so that column 0
    of the output matrix is a bias on each token's logit."""
    matrices, _ = FILE_TYPES[shape.quantization]

    def quantised(tensors: dict[str, Any]) -> dict[str, tuple[Any, Quantization]]:
        kinds = {name: matrices if weights.ndim > 1 else Quantization.F32 for name, weights in tensors.items()}
        return {name: (gguf.quants.quantize(tensors[name], kind), kind) for name, kind in kinds.items()}

    weights = quantised(_outer_weights(rng, shape, tokens))
    layer = dict[str, tuple[Any, Quantization]]()
    for number in range(shape.layers):
        if not (layer and shape.repeats_layers):
            layer = quantised(_layer_weights(rng, shape))
        weights |= {f"blk.{number}.{name}.weight": tensor for name, tensor in layer.items()}
    return weights


def _outer_weights(rng: np.random.Generator, shape: Shape, tokens: list[tuple[str, TokenType]]) -> dict[str, Any]:
    """What stands before and after the layers."""
    embedding = rng.standard_normal((len(tokens), shape.width), dtype=np.float32)
    embedding[:, 0] = CONSTANT
    output = 3.0 * _matrix(rng, len(tokens), shape.width)
    output[-1] = 0.0
    norm = (1.0 + CONSTANT**2 / shape.width) ** 0.5
    output[:, 0] = [bias * norm / CONSTANT for bias in _biases(tokens, shape.end_bias)]
    ones = np.ones(shape.width, dtype=np.float32)
    return {"token_embd.weight": embedding, "output_norm.weight": ones, "output.weight": output}


def _layer_weights(rng: np.random.Generator, shape: Shape) -> dict[str, Any]:
    width, kv_width, ffn_width = shape.width, shape.kv_width, shape.ffn_width
    ones = np.ones(width, dtype=np.float32)
    share = np.float32(shape.layers**-0.5 if shape.repeats_layers else 1.0)
    return {
        "attn_norm": ones,
        "attn_q": _matrix(rng, width, width),
        "attn_k": _matrix(rng, kv_width, width),
        "attn_v": _matrix(rng, kv_width, width),
        "attn_output": share * _matrix(rng, width, width, keeps_constant=True),
        "ffn_norm": ones,
        "ffn_gate": _matrix(rng, ffn_width, width),
        "ffn_up": _matrix(rng, ffn_width, width),
        "ffn_down": share * _matrix(rng, width, ffn_width, keeps_constant=True),
    }


def _matrix(rng: np.random.Generator, rows: int, columns: int, *, keeps_constant: bool = False) -> Any:
    weights = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
    if keeps_constant:
        weights[0] = 0.0
    return weights


def _biases(tokens: list[tuple[str, TokenType]], end_bias: float) -> list[float]:
    """What is added to each token's logit, so that most of a text is whole words."""
    special = {len(tokens) - 1: end_bias, NEWLINE: SELDOM}
    usual = {f"▁{word}" for word in WORDS.split()} | {",", "."}
    return [special.get(index, 0.0 if text in usual else NEVER) for index, (text, _) in enumerate(tokens)]


def main() -> None:
    presets = PRESETS | BENCH_PRESETS
    parser = argparse.ArgumentParser(description="Write a GGUF model with random weights.")
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--preset", choices=sorted(presets), default="edge", help="its shape")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    arguments = parser.parse_args()
    write_tiny_gguf(arguments.path, seed=arguments.seed, shape=presets[arguments.preset])
    print(f"{arguments.path}: {arguments.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

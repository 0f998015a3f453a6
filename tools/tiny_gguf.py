"""Writes a tiny llama model with random weights: real llama.cpp, no download, loaded in hundredths of a second.

    python tools/tiny_gguf.py --preset cloud out.gguf

Its text is English words in random order, with a few commas, full stops and line breaks. The tokenizer is
SentencePiece-like: three special tokens, 256 byte tokens, the words with all their prefixes, letters, digits,
punctuation and ChatML's two markers; a ChatML template is embedded.
"""

import argparse
import string
from dataclasses import dataclass
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
}


@dataclass(frozen=True, slots=True)
class Shape:
    """`width` is a multiple of 32 and of twice `heads`; `end_bias` sets how soon a text ends: a preset's after some 70
    tokens at common settings."""

    layers: int = 2
    width: int = 64
    heads: int = 4
    context_tokens: int = 4096
    quantization: str = "f32"
    end_bias: float = 8.0


PRESETS = {
    "edge": Shape(),
    "cloud": Shape(layers=4, width=256, heads=8, quantization="q8_0", end_bias=10.0),
}


def vocabulary() -> list[tuple[str, TokenType]]:
    """The tokens with their types, in order of id."""
    words = {f"▁{word}"[:end] for word in WORDS.split() for end in range(1, len(word) + 2)}
    pieces = sorted(words | set(string.ascii_letters + string.digits + string.punctuation))
    return [
        ("<unk>", TokenType.UNKNOWN),
        ("<s>", TokenType.CONTROL),
        ("</s>", TokenType.CONTROL),
        *((f"<0x{byte:02X}>", TokenType.BYTE) for byte in range(256)),
        *((piece, TokenType.NORMAL) for piece in pieces),
        ("<|im_start|>", TokenType.CONTROL),
        ("<|im_end|>", TokenType.CONTROL),
    ]


def write_tiny_gguf(path: Path, *, seed: int, shape: Shape = PRESETS["edge"]) -> None:
    """Writes the model; the same seed and shape give the same weights."""
    tokens = vocabulary()
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _describe(writer, path.stem, shape, tokens)
        quantization, _ = FILE_TYPES[shape.quantization]
        for name, weights in _weights(np.random.default_rng(seed), shape, tokens).items():
            kind = quantization if weights.ndim > 1 else Quantization.F32
            writer.add_tensor(name, gguf.quants.quantize(weights, kind), raw_dtype=kind)
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
    writer.add_feed_forward_length(2 * shape.width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads // 2)
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


def _weights(rng: np.random.Generator, shape: Shape, tokens: list[tuple[str, TokenType]]) -> dict[str, Any]:
    """Random tensors. Channel 0 of the residual stream is a constant that no block changes, so that column 0 of the
    output matrix is a bias on each token's logit."""

    def matrix(rows: int, columns: int, *, keeps_constant: bool = False) -> Any:
        weights = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(columns**0.5)
        if keeps_constant:
            weights[0] = 0.0
        return weights

    width, narrow = shape.width, shape.width // 2
    embedding = rng.standard_normal((len(tokens), width), dtype=np.float32)
    embedding[:, 0] = CONSTANT
    output = 3.0 * matrix(len(tokens), width)
    output[-1] = 0.0
    norm = (1.0 + CONSTANT**2 / width) ** 0.5
    output[:, 0] = [bias * norm / CONSTANT for bias in _biases(tokens, shape.end_bias)]
    ones = np.ones(width, dtype=np.float32)
    tensors = {"token_embd.weight": embedding, "output_norm.weight": ones, "output.weight": output}
    for layer in range(shape.layers):
        tensors |= {
            f"blk.{layer}.attn_norm.weight": ones,
            f"blk.{layer}.attn_q.weight": matrix(width, width),
            f"blk.{layer}.attn_k.weight": matrix(narrow, width),
            f"blk.{layer}.attn_v.weight": matrix(narrow, width),
            f"blk.{layer}.attn_output.weight": matrix(width, width, keeps_constant=True),
            f"blk.{layer}.ffn_norm.weight": ones,
            f"blk.{layer}.ffn_gate.weight": matrix(2 * width, width),
            f"blk.{layer}.ffn_up.weight": matrix(2 * width, width),
            f"blk.{layer}.ffn_down.weight": matrix(width, 2 * width, keeps_constant=True),
        }
    return tensors


def _biases(tokens: list[tuple[str, TokenType]], end_bias: float) -> list[float]:
    """What is added to each token's logit, so that most of a text is whole words."""
    special = {len(tokens) - 1: end_bias, NEWLINE: SELDOM}
    usual = {f"▁{word}" for word in WORDS.split()} | {",", "."}
    return [special.get(index, 0.0 if text in usual else NEVER) for index, (text, _) in enumerate(tokens)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a tiny GGUF model with random weights.")
    parser.add_argument("path", type=Path, help="file to write")
    parser.add_argument("--preset", choices=sorted(PRESETS), default="edge", help="cloud is the bigger one")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    arguments = parser.parse_args()
    write_tiny_gguf(arguments.path, seed=arguments.seed, shape=PRESETS[arguments.preset])
    print(f"{arguments.path}: {arguments.path.stat().st_size} bytes")


if __name__ == "__main__":
    main()

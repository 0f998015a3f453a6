"""Weights and tokenizer -> a GGUF file that llama.cpp runs.

python -m tools.demo.export cloud --from build/demo --to pice/demo/models
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import orjson
from gguf import GGMLQuantizationType as Quantization
from numpy.typing import NDArray
from tokenizers import Tokenizer

from tools.demo.model import CONTEXT_TOKENS, EPSILON, ROPE_BASE, SHAPES, Shape, Weights
from tools.demo.tokenizer import CHAT_TEMPLATE, END, PRE_TOKENIZER, SPECIALS, load_tokenizer
from tools.demo.train import COURSES, FOLDER, begin, load_state, lot_of
from tools.demo.world import SEED

FILE_TYPES = {
    "f32": (Quantization.F32, gguf.LlamaFileType.ALL_F32),
    "q8_0": (Quantization.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
_NAMES: Mapping[str, str] = {
    "attention_norm": "attn_norm",
    "query": "attn_q",
    "key": "attn_k",
    "value": "attn_v",
    "output": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}


def write_gguf(path: Path, name: str, shape: Shape, weights: Weights, tokenizer: Tokenizer, kind: str = "q8_0") -> None:
    """Writes the model with matrices of that kind, "f32" or "q8_0"; the rest stays in 32 bits."""
    matrices, file_type = FILE_TYPES[kind]
    writer = gguf.GGUFWriter(path, "llama")
    try:
        _describe(writer, name, shape)
        writer.add_file_type(file_type)
        _describe_tokenizer(writer, tokenizer)
        for tensor_name, tensor in _tensors(shape, weights):
            stored = matrices if tensor.ndim > 1 else Quantization.F32
            writer.add_tensor(tensor_name, gguf.quants.quantize(tensor, stored), raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _describe(writer: Any, name: str, shape: Shape) -> None:
    writer.add_name(name)
    writer.add_description("Made for PICE: knows or writes about the towns of an imaginary atlas, and nothing else.")
    writer.add_license("Apache-2.0")
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.ffn)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(EPSILON)


def _describe_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    model = orjson.loads(tokenizer.to_str())["model"]
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE_TOKENIZER)
    writer.add_token_list(texts)
    writer.add_token_types([gguf.TokenType.CONTROL if text in SPECIALS else gguf.TokenType.NORMAL for text in texts])
    writer.add_token_merges([" ".join(pair) for pair in model["merges"]])
    writer.add_eos_token_id(END)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _tensors(shape: Shape, weights: Weights) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """By llama.cpp's names, matrices as (outputs, inputs). Without an output matrix it takes the embedding's."""
    yield "token_embd.weight", np.asarray(weights["embedding"], np.float32)
    yield "output_norm.weight", np.asarray(weights["norm"], np.float32)
    for number, layer in enumerate(weights["layers"]):
        for key, name in _NAMES.items():
            tensor = np.asarray(layer[key], np.float32).T
            turned = _neighbours(shape, tensor) if key in ("query", "key") else tensor
            yield f"blk.{number}.{name}.weight", np.ascontiguousarray(turned)


def _neighbours(shape: Shape, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows of each head reordered: ours turns row i against i + half, llama.cpp row 2i against 2i + 1."""
    half = shape.head_width // 2
    return matrix.reshape(shape.heads, 2, half, shape.width).swapaxes(1, 2).reshape(shape.width, shape.width)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a trained demo model as GGUF.")
    parser.add_argument("models", nargs="+", choices=sorted(COURSES))
    parser.add_argument("--from", dest="source", type=Path, default=FOLDER, help="folder of the checkpoints")
    parser.add_argument("--to", type=Path, default=Path("pice/demo/models"), help="folder for the files")
    parser.add_argument("--kind", choices=sorted(FILE_TYPES), default="q8_0", help="type of the matrices")
    args = parser.parse_args()
    args.to.mkdir(parents=True, exist_ok=True)
    tokenizer = load_tokenizer(args.source / "tokenizer.json")
    for model in args.models:
        course = COURSES[model]
        state = load_state(
            args.source / f"{model}.npz", begin(model, course, SEED), lot_of(model, course, SEED, tokenizer)
        )
        path = args.to / f"atlas-{model}.gguf"
        write_gguf(path, path.stem, SHAPES[model], state.weights, tokenizer, args.kind)
        print(f"{path}: step {state.step}, {SHAPES[model].num_weights:,} weights, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())

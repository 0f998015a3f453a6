"""What the numbers of ggml mean: tensor types and file types; the one file that imports gguf."""

from dataclasses import dataclass
from functools import cache
from types import ModuleType

from pice.errors import ConfigError

_GUESSED = 1024
"""Added to a file type that was not stated but guessed from the tensors."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """Elements are stored in blocks: `block_elements` of them in `block_bytes`."""

    name: str
    block_elements: int
    block_bytes: int


def tensor_type(number: int) -> TensorType | None:
    """None for a number that is none.

    Raises:
        ConfigError: gguf is not installed.
    """
    return _tensor_types().get(number)


def file_type_name(number: int) -> str:
    """As people write it: `Q4_K_M`, `F16`."""
    try:
        name: str = _gguf().LlamaFileType(number & ~_GUESSED).name
    except ValueError:
        return f"type {number}"
    return name.removeprefix("MOSTLY_").removeprefix("ALL_")


@cache
def _tensor_types() -> dict[int, TensorType]:
    sizes = _gguf().GGML_QUANT_SIZES
    return {int(kind): TensorType(kind.name, elements, num_bytes) for kind, (elements, num_bytes) in sizes.items()}


def _gguf() -> ModuleType:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(f'looking into a GGUF file needs gguf: pip install "pice[llama]" ({error})') from error
    return gguf

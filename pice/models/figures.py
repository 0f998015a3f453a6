"""Metadata of a model file, by key and kind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pice.errors import ModelLoadError
from pice.models.gguf_header import Array, Value
from pice.models.printable import shown, shown_path

MAX_FIGURE = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Figures:
    """What is absent is None; what is of another kind than its key says, or out of range, raises `ModelLoadError`."""

    path: Path
    values: Mapping[str, Value]

    @property
    def architecture(self) -> str:
        name = self.text("general.architecture")
        if name is None:
            raise self._error("general.architecture", "the name of an architecture", "nothing: it is no model")
        return name

    def of_model(self, key: str) -> str:
        """The whole key of one that the architecture's name stands before."""
        return f"{self.architecture}.{key}"

    def text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._error(key, "text", _kind(value))

    def integer(self, key: str, *, most: int = MAX_FIGURE) -> int | None:
        value = self.values.get(key)
        if value is None:
            return None
        return self._integer(key, value, most)

    def number(self, key: str) -> float | None:
        value = self.values.get(key)
        if value is None or isinstance(value, int | float):
            return value
        raise self._error(key, "a number", _kind(value))

    def per_layer(self, key: str, num_layers: int, *, most: int) -> tuple[int, ...] | None:
        """One number for each layer, whether the file has one for all or an array."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Array):
            return (self._integer(key, value, most),) * num_layers
        if value.values is None or value.count < num_layers:
            raise self._error(key, f"{num_layers} numbers, one for each layer", f"{value.count}")
        return tuple(self._integer(key, each, most) for each in value.values[:num_layers])

    def texts(self, key: str) -> tuple[str, ...] | None:
        """An array of text; empty where it is too long to have been kept."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, Array) or any(not isinstance(each, str) for each in (value.values or ())[:1]):
            raise self._error(key, "an array of text", _kind(value))
        return tuple(map(str, value.values or ()))

    def has_any(self, *prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in self.values)

    def _integer(self, key: str, value: Value, most: int) -> int:
        if not isinstance(value, int) or not 0 <= value <= most:
            raise self._error(key, f"a whole number from 0 to {most}", _kind(value))
        return int(value)

    def _error(self, key: str, expected: str, got: str) -> ModelLoadError:
        return ModelLoadError(f"{shown_path(self.path)}: {shown(key)}: expected {expected}, got {got}")


def _kind(value: Value) -> str:
    return f"an array of {value.count}" if isinstance(value, Array) else shown(repr(value), 40)

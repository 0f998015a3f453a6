"""Dataclasses as maps of plain values and back, checked field by field against their annotations.

Readers and writers are closures built once per class. A field's type is a scalar, a `Literal` of strings, a dataclass,
or `tuple[T, ...]`, `T | None` or `Mapping[str, T]` of one of these.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from math import isfinite
from operator import attrgetter
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Read = Callable[[object], Any]
Write = Callable[[Any], object]


class Mismatch(Exception):
    """A value that its field cannot hold; the path to it grows on the way out."""

    def __init__(self, expected: str, got: object, path: str = "") -> None:
        super().__init__(f"{path or 'the message'}: expected {expected}, got {shown(got)}")
        self.expected, self.got, self.path = expected, got, path

    def within(self, name: str) -> "Mismatch":
        return Mismatch(self.expected, self.got, f"{name}.{self.path}" if self.path else name)


def shown(value: object) -> str:
    """A value in a few words."""
    if value is MISSING:
        return "nothing"
    if isinstance(value, str):
        return repr(value if len(value) <= 40 else value[:40] + "...")
    return repr(value) if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def writer(cls: Any) -> Callable[[Any], dict[str, object]]:
    """Makes the map of a dataclass's fields that differ from their defaults."""
    hints = get_type_hints(cls)
    always = [f.name for f in fields(cls) if _default(f) is MISSING and not _write_field(hints[f.name])]
    others = [f for f in fields(cls) if f.name not in always]
    plan = [(f.name, attrgetter(f.name), _default(f), _write_field(hints[f.name])) for f in others]

    def write(message: Any) -> dict[str, object]:
        body = {name: getattr(message, name) for name in always}
        for name, value_of, default, write_field in plan:
            value = value_of(message)
            if value is not default and value != default:
                body[name] = write_field(value) if write_field else value
        return body

    return write


def _write_field(hint: Any) -> Write | None:
    """What makes a value of this type fit for msgpack; None where it is already."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if kind is float:
        return _finite
    if is_dataclass(kind):
        return writer(kind)
    if kind not in _READ_GENERIC or not (write := _write_field(_inner(args))):
        return None
    if kind is tuple:
        return lambda values: [write(value) for value in values]
    if kind is Mapping:
        return lambda values: {key: write(value) for key, value in values.items()}
    return lambda value: None if value is None else write(value)


def _finite(value: float) -> float:
    if not isfinite(value):
        raise ValueError(f"expected a finite number, got {value}")
    return value


def reader(cls: Any) -> Read:
    """Makes a dataclass of its map, or raises `Mismatch`."""
    hints = get_type_hints(cls)
    names = list(hints)
    defaults = [_default(field) for field in fields(cls)]
    # What a factory made is shared by all messages, so it is read, which copies it.
    constants = [field.default for field in fields(cls)]
    # A value whose type is the hint itself needs no reader, except that a float may be NaN.
    exact = [None if hint is float else hint for hint in hints.values()]
    plan = list(zip(names, exact, constants, map(_read_field, hints.values()), strict=True))

    def read(body: object) -> Any:
        if type(body) is not dict:
            raise Mismatch("a map", body)
        values = list(map(body.get, names, defaults))
        if list(map(type, values)) == exact:
            return cls(*values)
        for at, (name, kind, constant, read_field) in enumerate(plan):
            value = values[at]
            if type(value) is not kind and (value is not constant or value is MISSING):
                try:
                    values[at] = read_field(value)
                except Mismatch as error:
                    raise error.within(name) from None
        return cls(*values)

    return read


def _default(field: Field[Any]) -> object:
    """What stands in for a field that is left out; MISSING where nothing may."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _read_field(hint: Any) -> Read:
    kind, args = get_origin(hint) or hint, get_args(hint)
    if is_dataclass(kind):
        return reader(kind)
    if kind is Literal:
        return _read_literal(args)
    return _READ_SCALAR.get(kind) or _READ_GENERIC[kind](_read_field(_inner(args)))


def _inner(args: tuple[Any, ...]) -> Any:
    """The `T` of `tuple[T, ...]`, `T | None` and `Mapping[str, T]`: no field has any other generic type."""
    return args[-1] if args[-1] not in (Ellipsis, type(None)) else args[0]


def _only(kind: type, expected: str) -> Read:
    def read(value: object) -> object:
        if type(value) is not kind:
            raise Mismatch(expected, value)
        return value

    return read


def _read_float(value: Any) -> float:
    if type(value) not in (int, float) or not isfinite(value):
        raise Mismatch("a finite number", value)
    return float(value)


def _read_literal(allowed: tuple[str, ...]) -> Read:
    def read(value: object) -> object:
        if type(value) is not str or value not in allowed:
            raise Mismatch(f"one of {', '.join(allowed)}", value)
        return value

    return read


def _read_tuple(read_item: Read) -> Read:
    def read(value: object) -> tuple[Any, ...]:
        if type(value) is not tuple:
            raise Mismatch("an array", value)
        return tuple([read_item(item) for item in value])

    return read


def _read_mapping(read_item: Read) -> Read:
    def read(value: object) -> dict[str, Any]:
        if type(value) is not dict:
            raise Mismatch("a map", value)
        return {_READ_SCALAR[str](key): read_item(item) for key, item in value.items()}

    return read


def _read_optional(read_item: Read) -> Read:
    return lambda value: None if value is None else read_item(value)


_READ_SCALAR: dict[Any, Read] = {
    str: _only(str, "a string"),
    bytes: _only(bytes, "bytes"),
    int: _only(int, "an integer"),
    bool: _only(bool, "true or false"),
    float: _read_float,
}
_READ_GENERIC: dict[Any, Callable[[Read], Read]] = {
    tuple: _read_tuple,
    Mapping: _read_mapping,
    Union: _read_optional,
    UnionType: _read_optional,
}

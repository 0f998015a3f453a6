"""What is wrong with a setting, in words: `must be >= 1, got 0`."""

import difflib
from collections.abc import Mapping
from types import UnionType
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from pice.settings import EmulatedSettings, LlamaCppSettings, OpenAISettings, Settings

Key = tuple[str, ...]

KINDS: Mapping[str, type[BaseModel]] = {
    "emulated": EmulatedSettings,
    "llama_cpp": LlamaCppSettings,
    "openai": OpenAISettings,
}

SECRETS = {"api_key", "password", "secret", "key"}
"""Keys whose value is shown nowhere."""

EXPECTED = {
    "greater_than_equal": ">= {ge}",
    "greater_than": "> {gt}",
    "less_than_equal": "<= {le}",
    "less_than": "< {lt}",
    "literal_error": "{expected}",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "string_type": "a string",
    "path_type": "a path",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
    "string_too_short": "a string of at least {min_length} character",
    "too_short": "a list of at least {min_length}",
}


def describe_fault(fault: ErrorDetails, tree: Mapping[str, Any]) -> tuple[Key, str]:
    """The full key that is wrong in `tree`, and what is wrong with it."""
    key = _key(fault["loc"])
    if fault["type"] in ("union_tag_not_found", "union_tag_invalid"):
        given = fault["input"].get("kind") if isinstance(fault["input"], dict) else None
        return (*key, "kind"), f"must be one of {', '.join(KINDS)}" + (f", got {given!r}" if given is not None else "")
    return key, _words(fault, key, tree)


def is_echo(fault: ErrorDetails) -> bool:
    """Whether it only follows from others: pydantic counts no wrong item, and then finds the list too short."""
    return fault["type"] == "too_short" and len(fault["input"]) >= fault["ctx"]["min_length"]


def _words(fault: ErrorDetails, key: Key, tree: Mapping[str, Any]) -> str:
    context = fault.get("ctx", {})
    match fault["type"]:
        case "missing":
            return "is missing"
        case "extra_forbidden":
            return _unknown(key, tree)
        case "value_error":
            return str(context["error"])
        case known if known in EXPECTED:
            return f"must be {EXPECTED[known].format(**context)}, got {_shown(key, fault['input'])}"
        case _:
            return f"is wrong: {fault['msg']}"


def _key(loc: tuple[int | str, ...]) -> Key:
    """pydantic's place without what is no key: the kind after an engine's name, and `[key]`."""
    parts = [f"{part}" for part in loc if part != "[key]"]
    if parts[0] == "engines" and len(parts) > 2 and parts[2] in KINDS:
        del parts[2]
    return tuple(parts)


def _shown(key: Key, value: Any) -> str:
    return "a value kept secret" if SECRETS & set(key) else repr(value)


def _unknown(key: Key, tree: Mapping[str, Any]) -> str:
    known = sorted(_model_at(key[:-1], tree).model_fields)
    near = difflib.get_close_matches(key[-1], known, n=1, cutoff=0.5)
    return "is not known: " + (f"did you mean {near[0]}?" if near else f"known here are {', '.join(known)}")


def _model_at(key: Key, tree: Mapping[str, Any]) -> type[BaseModel]:
    if key[:1] == ("engines",) and len(key) > 1:
        kind: str = tree["engines"][key[1]]["kind"]
        return _descend(KINDS[kind], key[2:])
    return _descend(Settings, key)


def _descend(model: type[BaseModel], key: Key) -> type[BaseModel]:
    inner: Any = model
    for name in key:
        inner = get_args(inner)[1] if get_origin(inner) is dict else inner.model_fields[name].annotation
        if get_origin(inner) is UnionType:
            inner = get_args(inner)[0]
    found: type[BaseModel] = inner
    return found

"""The prompts PICE writes, from a versioned set: a TOML file, with the grammar of a sketch beside it."""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from string import Formatter

from pice.core import Message, Point, Prompt, Segment
from pice.errors import ConfigError

VERSION = 1

_KEYS: Mapping[str, Mapping[str, frozenset[str]]] = {
    "answer": {"system": frozenset()},
    "gate": {"system": frozenset(), "reminder": frozenset({"max_points", "sketch_words"})},
    "sketch": {
        "system": frozenset(),
        "reminder": frozenset({"max_points", "sketch_words"}),
        "grammar": frozenset(),
    },
    "expand": {
        "system": frozenset(),
        "question": frozenset({"question"}),
        "point": frozenset({"number", "text"}),
        "task_one": frozenset({"number", "words", "text"}),
        "task_many": frozenset({"first", "last", "words", "text"}),
    },
}
_MAX_POINTS = "MAX_POINTS"


@dataclass(frozen=True, slots=True)
class PromptSet:
    """One set of prompts. `texts` holds a template per (table, key); `grammar` has MAX_POINTS in it."""

    texts: Mapping[tuple[str, str], str]
    grammar: str

    def answer(self, messages: Sequence[Message]) -> Prompt:
        """The conversation as it is, answered in full."""
        return Prompt(_with_system(messages, self.texts["answer", "system"]))

    def gate(self, messages: Sequence[Message], *, sketch_words: int, max_points: int) -> Prompt:
        """A prompt to which the model either answers directly or begins a sketch, as it judges."""
        return self._outline("gate", messages, sketch_words, max_points, grammar="")

    def sketch(
        self, messages: Sequence[Message], *, sketch_words: int, max_points: int, constrained: bool = False
    ) -> Prompt:
        """A prompt to which the model writes a sketch; `constrained` adds the grammar that leaves it no choice."""
        grammar = self.grammar.replace(_MAX_POINTS, str(max(2, max_points))) if constrained else ""
        return self._outline("sketch", messages, sketch_words, max_points, grammar=grammar)

    def expand(self, segment: Segment) -> Prompt:
        """What a small model is given for `segment`: its points to write up, or the whole conversation to answer.

        Prompts of one request's segments are equal up to where their sketches or, at the very end, their points
        differ.
        """
        if segment.kind == "answer":
            return self.answer(segment.messages)
        outline = [self._fill("expand", "point", number=_number(p), text=p.text) for p in segment.sketch]
        messages = _with_system(segment.messages, self.texts["expand", "system"])
        before, question, after = _around_question(messages)
        context = self._fill("expand", "question", question=question)
        given = "\n".join(line for line in (context, *outline) if line)
        task = Message("user", f"{given}\n\n{self._task(segment.points, segment.words)}")
        return Prompt((*before, task, *after), kind="expand", words=segment.words)

    def _outline(
        self, table: str, messages: Sequence[Message], sketch_words: int, max_points: int, *, grammar: str
    ) -> Prompt:
        reminder = self._fill(table, "reminder", sketch_words=sketch_words, max_points=max_points)
        before, question, after = _around_question(_with_system(messages, self.texts[table, "system"]))
        asked = Message("user", "\n\n".join(part for part in (question, reminder) if part))
        return Prompt((*before, asked, *after), kind="sketch", words=sketch_words, grammar=grammar)

    def _task(self, points: Sequence[Point], words: int) -> str:
        first, last = _number(points[0]), _number(points[-1])
        text = "; ".join(point.text for point in points)
        if first == last:
            return self._fill("expand", "task_one", number=first, words=words, text=text)
        return self._fill("expand", "task_many", first=first, last=last, words=words, text=text)

    def _fill(self, table: str, key: str, **values: object) -> str:
        return self.texts[table, key].format(**values)


def load_prompts(name_or_path: str) -> PromptSet:
    """The built-in set of that name, or the one in a .toml file of the same form.

    Raises:
        ConfigError: no such set or file, or something in it is wrong; names file and key.
    """
    source, folder = _locate(name_or_path)
    tables = _read_toml(source, name_or_path)
    _check_version(tables, name_or_path)
    _refuse_unknown(tables, {"version", *_KEYS}, name_or_path, "")
    texts: dict[tuple[str, str], str] = {}
    for table, keys in _KEYS.items():
        found = _table(tables, table, name_or_path)
        _refuse_unknown(found, set(keys), name_or_path, f"{table}.")
        for key, names in keys.items():
            texts[table, key] = _template(found, f"{table}.{key}", names, name_or_path)
    return PromptSet(texts, _read_grammar(folder, texts["sketch", "grammar"], name_or_path))


def _locate(name_or_path: str) -> tuple[Traversable, Traversable]:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path), Path(name_or_path).parent
    folder = files("pice.sketch").joinpath("prompts")
    source = folder.joinpath(f"{name_or_path}.toml")
    if "/" in name_or_path or "\\" in name_or_path or not source.is_file():
        known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        raise ConfigError(
            f"prompts: expected the name of a built-in set ({', '.join(known)}) or a path to a .toml file, "
            f"got {name_or_path!r}"
        )
    return source, folder


def _read_toml(source: Traversable, file: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror}); give the path of a prompt set") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: is no TOML file in UTF-8: {error}") from error


def _read_grammar(folder: Traversable, name: str, file: str) -> str:
    try:
        text = folder.joinpath(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{file}: sketch.grammar must name a .gbnf file beside it, and {name!r} cannot be read: {error}"
        ) from error
    if _MAX_POINTS not in text:
        raise ConfigError(f"{file}: sketch.grammar: {name} must have {_MAX_POINTS} where the number of points goes")
    return text


def _check_version(tables: Mapping[str, object], file: str) -> None:
    version = tables.get("version")
    if version != VERSION or isinstance(version, bool):
        found = "is missing" if version is None else f"is {version!r}"
        raise ConfigError(f"{file}: version must be {VERSION} and {found}; adapt the file to the built-in set's form")


def _table(tables: Mapping[str, object], table: str, file: str) -> Mapping[str, object]:
    found = tables.get(table)
    if not isinstance(found, dict):
        raise ConfigError(f"{file}: [{table}] must be a table with {', '.join(_KEYS[table])}, and is {_state(found)}")
    return found


def _refuse_unknown(found: Mapping[str, object], known: set[str], file: str, prefix: str) -> None:
    for key in found:
        if key not in known:
            near = get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(f"{file}: {prefix}{key} is no key of a prompt set; did you mean {prefix}{near}?")


def _template(found: Mapping[str, object], key: str, names: frozenset[str], file: str) -> str:
    """The text under `key`, free of blank space around it, with its placeholders checked."""
    text = found.get(key.partition(".")[2])
    if not isinstance(text, str):
        raise ConfigError(f"{file}: {key} must be a text, and is {_state(text)}")
    try:
        used = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ConfigError(f"{file}: {key}: {error}; a brace that is no placeholder is written twice") from error
    for name, spec, conversion in used:
        if name not in names or spec or conversion:
            known = ", ".join(f"{{{name}}}" for name in sorted(names)) or "none"
            raise ConfigError(f"{file}: {key}: unknown placeholder {{{name}}}; those known here: {known}")
    return text.strip("\n")


def _state(value: object) -> str:
    return "missing" if value is None else f"a {type(value).__name__}"


def _with_system(messages: Sequence[Message], system: str) -> tuple[Message, ...]:
    """`messages` with `system` before the system message they begin with, or as one of their own."""
    if not system:
        return tuple(messages)
    if messages and messages[0].role == "system":
        return (Message("system", f"{system}\n\n{messages[0].content}"), *messages[1:])
    return (Message("system", system), *messages)


def _around_question(messages: Sequence[Message]) -> tuple[tuple[Message, ...], str, tuple[Message, ...]]:
    """The messages before the last one of the user, its text, and those after it."""
    at = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
    question = messages[at].content if at < len(messages) else ""
    return tuple(messages[:at]), question, tuple(messages[at + 1 :])


def _number(point: Point) -> int:
    return point.index + 1

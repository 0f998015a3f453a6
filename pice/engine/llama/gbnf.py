"""GBNF grammars, read as llama.cpp reads them: names -> rules of alternatives, with repetitions unrolled."""

import re
from dataclasses import dataclass, field

from pice.errors import InputError

MAX_BYTES = 65536
LAST_CODE = 0x10FFFF
MAX_NESTED_GROUPS = 100
"""llama.cpp reads a group inside of a group by recursion."""
MAX_RANGES = 1000
"""In one class: each token of the vocabulary is compared with each of them, at every step."""
MAX_REPEATS = 2000
"""As llama.cpp has it: it takes a larger upper bound for none and refuses a larger lower one."""
MAX_SYMBOLS = 100_000
"""Of all rules when unrolled: llama.cpp writes them out several times, 8 bytes each."""

_SPACE = re.compile(r"(?:[ \t]|#[^\r\n]*+)*+")
_LINES = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*+)*+")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_CHAR = re.compile(r'\\x[0-9A-Fa-f]{2}|\\u[0-9A-Fa-f]{4}|\\U[0-9A-Fa-f]{8}|\\[trn\\"\[\]-]|[^\\]', re.DOTALL)
_TOKEN = re.compile(r"!?<(?:\[[0-9]+\]|(?!\[)[^>]*)>")
_REPEAT = re.compile(
    rf"[*+?]|\{{{_SPACE.pattern}([0-9]{{1,9}}){_SPACE.pattern}(,?){_SPACE.pattern}([0-9]{{0,9}}){_SPACE.pattern}\}}"
)
_NESTED_REPEAT = re.compile(_REPEAT.pattern.replace(_SPACE.pattern, _LINES.pattern))
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"}


@dataclass(frozen=True, slots=True)
class Chars:
    """One character out of these ranges (both ends included) or, `negated`, out of none of them. A token that is
    asked for by its id has no ranges, for no character is known to be in it."""

    ranges: tuple[tuple[int, int], ...] = ()
    negated: bool = False

    def match(self, code: int) -> bool:
        return any(low <= code <= high for low, high in self.ranges) != self.negated


ANY = Chars(negated=True)
Sequence = tuple[Chars | int, ...]
Alternatives = tuple[Sequence, ...]


@dataclass(slots=True)
class Rules:
    """Each rule's alternatives; an int in one is the rule of that number. `names` are those of the text."""

    names: dict[str, int] = field(default_factory=dict)
    alternatives: list[Alternatives | None] = field(default_factory=list)
    num_symbols: int = 0

    def number(self, name: str) -> int:
        if name not in self.names:
            self.names[name] = self.add(None)
        return self.names[name]

    def sequences(self, number: int) -> Alternatives:
        return self.alternatives[number] or ()

    def add(self, alternatives: Alternatives | None) -> int:
        self.alternatives.append(None)
        if alternatives is not None:
            self.define(len(self.alternatives) - 1, alternatives)
        return len(self.alternatives) - 1

    def define(self, number: int, alternatives: Alternatives) -> None:
        self.count(sum(len(each) + 1 for each in alternatives))
        self.alternatives[number] = alternatives

    def count(self, num_symbols: int) -> None:
        self.num_symbols += num_symbols
        if self.num_symbols > MAX_SYMBOLS:
            raise InputError(f"must have at most {MAX_SYMBOLS} symbols when its repetitions are written out")


def read_grammar(text: str) -> Rules:
    """The rules of a grammar.

    Raises:
        InputError: it is not GBNF or too large; the message goes on after "the grammar".
    """
    size = len(text.encode())
    if size > MAX_BYTES or "\0" in text:
        raise InputError(f"must have at most {MAX_BYTES} bytes, none of them NUL, got {size}")
    reader = _Reader(text)
    reader.read()
    missing = [name for name, number in reader.rules.names.items() if reader.rules.alternatives[number] is None]
    if missing or "root" not in reader.rules.names:
        raise InputError(f"must define a rule for each name and one named root, got none for {missing or ['root']}")
    return reader.rules


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self.rules = Rules()

    def read(self) -> None:
        self._skip(_LINES)
        while self._at < len(self._text):
            number = self.rules.number(self._take(_NAME, "a rule's name"))
            self._skip(_SPACE)
            self._expect("::=")
            self._skip(_LINES)
            self.rules.define(number, self._alternatives())
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._wrong("a symbol or the end of the line")
            self._skip(_LINES)

    def _alternatives(self) -> Alternatives:
        found = [self._sequence()]
        while self._peek() == "|":
            self._expect("|")
            self._skip(_LINES)
            found.append(self._sequence())
        return tuple(found)

    def _sequence(self) -> Sequence:
        done: list[Chars | int] = []
        last: Sequence = ()
        while True:
            repeat = (_NESTED_REPEAT if self._depth else _REPEAT).match(self._text, self._at)
            if repeat:
                if not last:
                    raise self._wrong("something to repeat")
                self._at = repeat.end()
                last = self._repeated(last, *_bounds(repeat))
            else:
                symbol = self._symbol()
                done += last
                if symbol is None:
                    return tuple(done)
                last = symbol
            self._skip(_LINES if self._depth else _SPACE)

    def _symbol(self) -> Sequence | None:
        """What the next symbol stands for; a literal is one symbol. None if the sequence ends here."""
        char = self._peek()
        if char == '"':
            self._expect('"')
            return tuple(Chars(((code, code),)) for code in iter(lambda: self._code('"'), None))
        if char == "[":
            return (self._class(),)
        if char == "(":
            return (self._group(),)
        if char == ".":
            self._expect(".")
            return (ANY,)
        if char and char in "<!":
            self._take(_TOKEN, "a token")
            return (Chars(),)
        if _NAME.match(self._text, self._at):
            return (self.rules.number(self._take(_NAME, "a name")),)
        return None

    def _class(self) -> Chars:
        self._expect("[")
        negated = self._peek() == "^"
        self._at += negated
        ranges = []
        while (low := self._code("]")) is not None:
            high: int | None = low
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._expect("-")
                high = self._code()
            ranges.append((low, low if high is None else high))
        if len(ranges) > MAX_RANGES:
            raise InputError(f"must have at most {MAX_RANGES} characters and ranges in one [...], got {len(ranges)}")
        return Chars(tuple(ranges), negated)

    def _group(self) -> int:
        self._expect("(")
        self._depth += 1
        if self._depth > MAX_NESTED_GROUPS:
            raise InputError(f"must have at most {MAX_NESTED_GROUPS} groups inside of one another")
        self._skip(_LINES)
        number = self.rules.add(self._alternatives())
        self._expect(")")
        self._depth -= 1
        return number

    def _repeated(self, symbol: Sequence, least: int, most: int | None) -> Sequence:
        """As llama.cpp writes it out: `least` times the symbol, then rules that may each go on or end."""
        num_optional = 1 if most is None else most - least
        self.rules.count(len(symbol) * least)
        rest: Sequence = ()
        for _ in range(num_optional):
            number = self.rules.add(None)
            rest_of = (number,) if most is None else rest
            self.rules.define(number, (symbol + rest_of, ()))
            rest = (number,)
        return symbol * least + rest

    def _code(self, end: str = "") -> int | None:
        """The next character's code point; None, and past it, at `end`."""
        if end and self._peek() == end:
            self._expect(end)
            return None
        char = self._take(_CHAR, f"a character or {end!r}")
        if len(char) > 2:
            if (code := int(f"0x{char[2:]}", 0)) > LAST_CODE:
                raise InputError(f"must have characters up to \\U{LAST_CODE:08x}, got {char}")
            return code
        return ord(_ESCAPES.get(char[-1], char[-1]) if len(char) == 2 else char)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._text, self._at)
        if not found:
            raise self._wrong(what)
        self._at = found.end()
        return found[0]

    def _expect(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise self._wrong(repr(text))
        self._at += len(text)

    def _wrong(self, what: str) -> InputError:
        line = self._text.count("\n", 0, self._at) + 1
        return InputError(f"must be GBNF: line {line}: expected {what}, got {self._text[self._at : self._at + 20]!r}")


def _bounds(repeat: re.Match[str]) -> tuple[int, int | None]:
    simple: dict[str, tuple[int, int | None]] = {"*": (0, None), "+": (1, None), "?": (0, 1)}
    if repeat[0] in simple:
        return simple[repeat[0]]
    least, most = int(repeat[1]), int(repeat[3]) if repeat[3] else None
    if most is None and not repeat[2]:
        most = least
    if least > MAX_REPEATS or (most is not None and least > most):
        raise InputError(
            f"must repeat {{least,most}} with least <= most and least at most {MAX_REPEATS}, got {repeat[0]}"
        )
    return least, None if most is not None and most > MAX_REPEATS else most

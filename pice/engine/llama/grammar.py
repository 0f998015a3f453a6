"""Which grammars llama.cpp would not survive: it checks little, and follows all ways to read a text at once."""

from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter

from pice.engine.llama.gbnf import Chars, Rules, read_grammar
from pice.errors import InputError

MAX_DEPTH = 10_000
MAX_VISITS = 10_000_000
"""llama.cpp looks for left recursion by recursion, into each rule as often as it is named: 30 ns a visit."""
MAX_WAYS = 1000
"""In which a text may be read at one point: each is tried with every token of the vocabulary, at every step."""
MAX_PATHS = 100_000
"""That lead through the characters of one token."""
_LOOK_AHEAD, _TOKEN_CHARS, _CHARS_TRIED = 64, 16, 4

MAX_EFFORT = 200_000
"""Places looked at in all."""

_Stack = tuple["_Stack", int, int, int] | None
"""Where it goes on when this sequence ends; the rule, the alternative and the place in it. None: the text may end."""


@lru_cache(maxsize=64)
def grammar_problem(grammar: bytes) -> str:
    """What about a GBNF grammar would bring llama.cpp down, as the rest of a sentence; "" if nothing was found.

    Texts along which a grammar becomes ever more ambiguous are looked for and not all found.
    """
    try:
        rules = read_grammar(grammar.decode(errors="replace"))
        _check_beginnings(rules)
        _check_ways(rules)
    except InputError as problem:
        return str(problem)
    except RecursionError:
        return "must nest less"
    return ""


def _check_beginnings(rules: Rules) -> None:
    """Refuses a rule that may begin with itself, for then llama.cpp never gets to its first character, and rules that
    begin with one another too deep or too often."""
    begins = _beginnings(rules)
    names = {number: name for name, number in rules.names.items()}
    try:
        order = list(TopologicalSorter({rule: begin.keys() for rule, begin in begins.items()}).static_order())
    except CycleError as error:
        found = next((names[rule] for rule in error.args[1] if rule in names), "one")
        raise InputError(f"must have no rule that can begin with itself, got {found}") from error
    depths: dict[int, int] = {}
    visits: dict[int, int] = {}
    for rule in order:
        depths[rule] = 1 + max((depths[first] for first in begins[rule]), default=0)
        visits[rule] = 1 + sum(count * visits[first] for first, count in begins[rule].items())
    if max(depths.values()) > MAX_DEPTH or sum(visits.values()) > MAX_VISITS:
        raise InputError("must have fewer rules that begin with one another")


def _beginnings(rules: Rules) -> dict[int, Counter[int]]:
    """For each rule those that its text may begin with, by the number of places; but not itself where it is also the
    last of its sequence, for such a repetition of nothing adds nothing."""
    empty = _empty_rules(rules)
    begins: dict[int, Counter[int]] = {}
    for rule in range(len(rules.alternatives)):
        begins[rule] = Counter()
        for sequence in rules.sequences(rule):
            for at, symbol in enumerate(sequence):
                if isinstance(symbol, Chars):
                    break
                begins[rule][symbol] += not (symbol == rule and at == len(sequence) - 1)
                if symbol not in empty:
                    break
        begins[rule] = +begins[rule]
    return begins


def _empty_rules(rules: Rules) -> set[int]:
    """The rules that the empty text follows."""
    left: dict[tuple[int, int], int] = {}
    users: dict[int, list[tuple[int, int]]] = {}
    for rule in range(len(rules.alternatives)):
        for index, sequence in enumerate(rules.sequences(rule)):
            named = [symbol for symbol in sequence if not isinstance(symbol, Chars)]
            if len(named) == len(sequence):
                left[rule, index] = len(named)
                for symbol in named:
                    users.setdefault(symbol, []).append((rule, index))
    empty: set[int] = set()
    ready = [rule for (rule, _), count in left.items() if not count]
    while ready:
        rule = ready.pop()
        if rule not in empty:
            empty.add(rule)
            for user in users.get(rule, ()):
                left[user] -= 1
                ready += [user[0]] if not left[user] else []
    return empty


def _check_ways(rules: Rules) -> None:
    """Follows the text along which most ways stay open, and refuses the grammar if they become too many."""
    root, effort = rules.names["root"], _Effort()
    ways: Counter[_Stack] = Counter()
    for index in range(len(rules.sequences(root))):
        ways.update(_terminals(rules, (None, root, index, 0), effort))
    for step in range(_LOOK_AHEAD):
        if step % _TOKEN_CHARS == 0:
            ways = Counter(ways.keys())
        if len(ways) > MAX_WAYS or ways.total() > MAX_PATHS:
            raise InputError(f"must leave at most {MAX_WAYS} ways to read a text, got more: make it less ambiguous")
        futures = [_after(rules, ways, code, effort) for code in _busiest(rules, ways)]
        if not futures:
            return
        ways = max(futures, key=len)


def _after(rules: Rules, ways: Counter[_Stack], code: int, effort: "_Effort") -> Counter[_Stack]:
    """The ways open after one more character."""
    after: Counter[_Stack] = Counter()
    for stack, count in ways.items():
        top = _top(rules, stack)
        if stack and isinstance(top, Chars) and top.match(code):
            above, rule, index, at = stack
            for new in _terminals(rules, (above, rule, index, at + 1), effort):
                after[new] += count
        if len(after) > MAX_WAYS:
            break
    return after


def _busiest(rules: Rules, ways: Counter[_Stack]) -> list[int]:
    """The characters that most ways go on with."""
    chars = Counter(top for stack in ways if isinstance(top := _top(rules, stack), Chars))
    edges = {edge for each in chars for low, high in each.ranges[:4] for edge in (low, high + 1)}
    codes = sorted(edges | {ord("a")})[:64]
    open_for = {code: sum(count for each, count in chars.items() if each.match(code)) for code in codes}
    return sorted((code for code in codes if open_for[code]), key=lambda code: -open_for[code])[:_CHARS_TRIED]


def _terminals(rules: Rules, stack: _Stack, effort: "_Effort") -> Iterator[_Stack]:
    """The places, each once, where the next character may be read from here."""
    todo, seen = [stack], {stack}
    while todo:
        effort.spend()
        stack = todo.pop()
        top = _top(rules, stack)
        if stack is None or isinstance(top, Chars):
            yield stack
            continue
        above, rule, index, at = stack
        new: set[_Stack]
        if top is None:
            new = {above}
        else:
            back = above if at + 1 == len(rules.sequences(rule)[index]) else (above, rule, index, at + 1)
            new = {(back, top, each, 0) for each in range(len(rules.sequences(top)))}
        todo += new - seen
        seen |= new
        if len(seen) > 10 * MAX_WAYS:
            raise InputError(f"must leave at most {MAX_WAYS} ways to begin, got more: make it less ambiguous")


class _Effort:
    """What may be spent on one grammar: some tenths of a second."""

    def __init__(self) -> None:
        self._left = MAX_EFFORT

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise InputError("must be less ambiguous: too many ways to read a text have to be looked at")


def _top(rules: Rules, stack: _Stack) -> Chars | int | None:
    """What comes next; None at the end of a sequence or of the text."""
    if stack is None:
        return None
    _, rule, index, at = stack
    sequence = rules.sequences(rule)[index]
    return sequence[at] if at < len(sequence) else None

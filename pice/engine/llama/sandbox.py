"""Runs a Jinja template that came with a model file, which nobody has vouched for, within bounds."""

import json
import re
import time
from collections.abc import Iterable
from typing import Any, cast

from jinja2 import Template, TemplateError, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 200_000
"""Turns of loops, and calls, in one rendering: a template makes a few for each message."""
MAX_SIZE = 16_000_000
"""Characters of the text, and of whatever an operator makes on the way to it, or items of a list."""
MAX_BITS = 10_000
MAX_SOURCE = 1_000_000
"""Characters of a template. The longest that models come with have some tens of thousands."""
MAX_S = 2.0
"""Of one rendering, looked at with every step and operator; what lies between two of them takes as long as it takes."""

_COUNTED, _JOINED = "pice_counted", "pice_joined"
_WIDENING = ("batch", "center", "filesizeformat", "format", "pprint", "slice", "urlize", "wordwrap", "xmlattr")
"""Filters that make much of little, and that no chat template needs."""
_WIDE_FIELD = re.compile(r"%[^%a-zA-Z]*(\*|\d{4})")


class OutOfBounds(TemplateError):
    """The template does more than a chat template has reason to."""


class Refused(TemplateError):
    """The template does not take these messages and says why."""


class Sandbox(ImmutableSandboxedEnvironment):
    """What templates of Hugging Face models expect around them, with bounds on steps and sizes.

    Not bounded are texts widened by a method (`ljust`, `replace`) or by the filters `indent`, `join` and `replace`:
    against a template that means harm only a process of its own helps.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
        self._begin()
        for name in _WIDENING:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters |= {"tojson": _to_json, _COUNTED: self._counted, _JOINED: self._joined}
        self.globals["raise_exception"] = _refuse

    def read(self, source: str) -> Template:
        """Raises `TemplateError` if it is no template, or too long for one."""
        if len(source) > MAX_SOURCE:
            raise OutOfBounds(f"it has {len(source)} characters, more than {MAX_SOURCE}")
        self._begin()
        return self.from_string(_Bounding().visit(self.parse(source)))

    def render(self, template: Template, values: dict[str, Any]) -> str:
        """The template's text for these values.

        Raises:
            OutOfBounds: it takes too many steps or too long, or makes too much.
            Refused: it called `raise_exception`.
            Exception: whatever else a template can come to.
        """
        self._begin()
        parts, size = [], 0
        for part in template.generate(values):
            parts.append(part)
            size += len(part)
            _check_size(size)
        return "".join(parts)

    def call(self, context: Context, called: Any, /, *arguments: Any, **named: Any) -> Any:
        self._step(1)
        return super().call(context, called, *arguments, **named)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operation(operator, left, right)
        self._check_time()
        return super().call_binop(context, operator, left, right)

    @pass_context
    def _counted(self, _context: Context, items: Iterable[Any]) -> list[Any]:
        """What a loop goes over. A filter that is given the context is not run ahead of time, once for all turns."""
        whole = list(items)
        self._step(len(whole))
        return whole

    @pass_context
    def _joined(self, _context: Context, items: list[Any]) -> str:
        parts = [str(item) for item in items]
        _check_size(sum(map(len, parts)))
        return "".join(parts)

    def _begin(self) -> None:
        self._num_steps, self._until_s = 0, time.monotonic() + MAX_S

    def _step(self, num: int) -> None:
        self._num_steps += num
        if self._num_steps > MAX_STEPS:
            raise OutOfBounds(f"it takes more than {MAX_STEPS} steps")
        self._check_time()

    def _check_time(self) -> None:
        if time.monotonic() > self._until_s:
            raise OutOfBounds(f"it takes longer than {MAX_S:g} s")


class _Bounding(NodeTransformer):
    """Puts the sandbox between a loop and what it goes over, and in place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (jinja2 finds it by this name)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (jinja2 finds it by this name)
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)


class _Generation(Extension):
    """Reads `{% generation %}` blocks, which mark what a model is trained on, as what is in them."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(cast("nodes.Expr", node), name, [], [], None, None, lineno=node.lineno)


def _check_operation(operator: str, left: Any, right: Any) -> None:
    """Raises `OutOfBounds` for what would make something too large, before it is made."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * (max(right, 1) if operator == "**" else 1) + right.bit_length()
        if bits > MAX_BITS:
            raise OutOfBounds(f"it makes a number of more than {MAX_BITS} bits")
    elif operator == "+":
        _check_size(_size(left) + _size(right))
    elif operator == "*":
        _check_size(_size(left) * _size(right))
    elif operator == "%" and isinstance(left, str) and _WIDE_FIELD.search(left):
        raise OutOfBounds("it formats into a field of more than 999 characters")


def _size(value: Any) -> int:
    """Of what an operator takes: how long it is, or how often it repeats."""
    if isinstance(value, int):
        return value
    return len(value) if isinstance(value, str | list | tuple) else 0


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise OutOfBounds(f"it makes something larger than {MAX_SIZE} characters")


def _refuse(message: str) -> None:
    raise Refused(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

"""Text into a llama.cpp model and out of it: chat template, grammar bounds, stop strings."""

import codecs
import json
import re
from typing import Any

from pice.core import Prompt
from pice.errors import InputError, ModelLoadError

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MAX_GRAMMAR_BYTES = 65536
MAX_GRAMMAR_GROUPS = 200
MAX_GRAMMAR_REPEATS = 10_000
"""llama.cpp reads groups by recursion and unrolls `{m,n}`; without bounds it ends the process or eats its memory."""

_QUOTED = re.compile(rb'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', re.DOTALL)
_REPEAT = re.compile(rb"\{\s*(\d+)\s*,?\s*(\d*)\s*\}")


class ChatTemplate:
    """A model's own Jinja template, run in a sandbox: it comes with the file.

    Raises:
        ModelLoadError: it is no template.
    """

    def __init__(self, source: str, *, bos: str, eos: str) -> None:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise jinja2.TemplateError(message)

        self.bos = bos
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.globals |= {"raise_exception": refuse, "bos_token": bos, "eos_token": eos}
        environment.filters["tojson"] = _to_json
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ModelLoadError(
                f"the model's chat template cannot be read: {error}; use chat_template='chatml'"
            ) from error

    def render(self, prompt: Prompt) -> str:
        """The prompt, up to where the model's turn begins. A model that can think first is told not to.

        Raises:
            InputError: there are no messages, or the template refuses them.
        """
        if not prompt.messages:
            raise InputError("a prompt needs at least one message, got none")
        messages = [{"role": message.role, "content": message.content} for message in prompt.messages]
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, enable_thinking=False)
        except Exception as error:
            raise InputError(f"the model's chat template refuses these messages: {error}") from error


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def grammar_problem(grammar: bytes) -> str:
    """What about a GBNF grammar would bring llama.cpp down, as the rest of a sentence; "" if nothing."""
    rules = _QUOTED.sub(b"", grammar)
    repeats = [(int(least), int(most or least)) for least, most in _REPEAT.findall(rules)]
    if len(grammar) > MAX_GRAMMAR_BYTES or b"\0" in grammar:
        return f"must have at most {MAX_GRAMMAR_BYTES} bytes, none of them NUL, got {len(grammar)}"
    if rules.count(b"(") > MAX_GRAMMAR_GROUPS:
        return f"must have at most {MAX_GRAMMAR_GROUPS} groups, got {rules.count(b'(')}"
    if any(least > most for least, most in repeats) or sum(most for _, most in repeats) > MAX_GRAMMAR_REPEATS:
        return f"must repeat {{least,most}} with least <= most, at most {MAX_GRAMMAR_REPEATS} in all, got {repeats}"
    return ""


class Text:
    """Text out of token bytes, up to the first stop string (the one completed first).

    A character that is not complete yet and text that may be the start of a stop string are held back.
    """

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._decode = codecs.getincrementaldecoder("utf-8")(errors="replace").decode
        self._held = ""
        self.stopped = False

    def feed(self, piece: bytes) -> str:
        """The text that is certain now. Sets `stopped` when a stop string is complete."""
        text = self._held + self._decode(piece)
        ends = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)[1]]
        num_held = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut]

    def rest(self) -> str:
        """What was held back for a stop string that will not come; an incomplete character is dropped."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)

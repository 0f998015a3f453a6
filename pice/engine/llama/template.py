"""The messages of a chat -> the text a model was trained to continue, by the Jinja template in its file."""

from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from pice.core import Message, Prompt
from pice.errors import InputError, ModelLoadError

if TYPE_CHECKING:
    from pice.engine.llama.sandbox import Refused

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

MAX_SAID = 500
"""Characters that are shown of what a template says."""
_BETWEEN_MERGED = "\n\n"
_NO_TOOLS: dict[str, Any] = {"tools": None, "documents": None, "add_generation_prompt": True}
_NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}
"""The names by which templates are told not to let the model think first, or to let it think little."""


def today_utc() -> date:
    """The same at all sites, wherever they are."""
    return datetime.now(UTC).date()


class ChatTemplate:
    """A model's own template, run in a sandbox: it comes with the file.

    Args:
        today: the date for templates that ask for it. They get no time of day, so that prompts of one day share
            their prefix.

    Raises:
        ModelLoadError: it is no template.
    """

    def __init__(self, source: str, *, bos: str, eos: str, today: Callable[[], date] = today_utc) -> None:
        import jinja2

        from pice.engine.llama.sandbox import Refused, Sandbox

        self._sandbox = Sandbox()
        self._refused = Refused
        self._today = today
        self._values = _NO_TOOLS | _NO_THINKING | {"bos_token": bos, "eos_token": eos}
        self._sandbox.globals |= {"strftime_now": self._strftime_now}
        try:
            self._template = self._sandbox.read(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise ModelLoadError(
                f"the model's chat template cannot be read: {error}; use chat_template='chatml'"
            ) from error

    def render(self, prompt: Prompt) -> str:
        """The prompt, up to where the model's turn begins. A model that can think first is told not to.

        Messages that the template refuses are rearranged, if that helps: the system's words go in front of the
        user's, neighbours of one role become one message.

        Raises:
            InputError: there are no messages, or the template refuses them; says what it said first.
        """
        if not prompt.messages:
            raise InputError("a prompt needs at least one message, got none")
        refusal: Refused | None = None
        for messages in _arrangements(prompt.messages):
            try:
                return self._render(messages)
            except self._refused as error:
                refusal = refusal or error
            except Exception as error:
                raise _input_error(refusal or error) from error
        assert refusal is not None
        raise _input_error(refusal) from refusal

    def _render(self, messages: Sequence[Message]) -> str:
        plain = [{"role": message.role, "content": message.content} for message in messages]
        return self._sandbox.render(self._template, self._values | {"messages": plain})

    def _strftime_now(self, form: str) -> str:
        return datetime.combine(self._today(), time.min).strftime(form)


def _input_error(error: Exception) -> InputError:
    return InputError(f"the model's chat template refuses these messages: {str(error)[:MAX_SAID]}")


def _arrangements(messages: Sequence[Message]) -> list[Sequence[Message]]:
    """The messages as they are, then as templates take them that know no system role or want roles to alternate."""
    tried: list[Sequence[Message]] = []
    for each in (messages, merged(messages), folded(messages), merged(folded(messages))):
        if each not in tried:
            tried.append(each)
    return tried


def folded(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Without the system role: its words stand in front of the first of the user's."""
    system = [message.content for message in messages if message.role == "system"]
    others = [message for message in messages if message.role != "system"]
    if not system:
        return tuple(messages)
    at = next((index for index, message in enumerate(others) if message.role == "user"), None)
    if at is None:
        return (Message("user", _BETWEEN_MERGED.join(system)), *others)
    first = Message("user", _BETWEEN_MERGED.join([*system, others[at].content]))
    return (*others[:at], first, *others[at + 1 :])


def merged(messages: Sequence[Message]) -> tuple[Message, ...]:
    """With neighbours of one role made one message."""
    return tuple(
        Message(role, _BETWEEN_MERGED.join(message.content for message in group))
        for role, group in groupby(messages, key=attrgetter("role"))
    )

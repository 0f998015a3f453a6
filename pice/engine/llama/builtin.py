"""llama.cpp's own chat templates, by name."""

import ctypes

from pice.core import Prompt
from pice.engine.llama.native import llama_cpp
from pice.errors import InputError


def builtin_names() -> list[str]:
    """The names llama.cpp knows, sorted."""
    count = llama_cpp.llama_chat_builtin_templates(None, 0)
    names = (ctypes.c_char_p * count)()
    llama_cpp.llama_chat_builtin_templates(names, count)
    return sorted(name.decode() for name in names if name)


class BuiltinTemplate:
    """One of them. It takes any messages, and writes no token that begins a text."""

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def render(self, prompt: Prompt) -> str:
        """The prompt, up to where the model's turn begins. NUL characters, at which C would stop, are replaced.

        Raises:
            InputError: there are no messages.
        """
        if not prompt.messages:
            raise InputError("a prompt needs at least one message, got none")
        chat = (llama_cpp.llama_chat_message * len(prompt.messages))()
        for message, each in zip(prompt.messages, chat, strict=True):
            each.role = message.role.encode()
            each.content = message.content.replace("\0", "\ufffd").encode(errors="replace")
        size = llama_cpp.llama_chat_apply_template(self._name, chat, len(chat), True, None, 0)
        buffer = ctypes.create_string_buffer(size)
        llama_cpp.llama_chat_apply_template(self._name, chat, len(chat), True, buffer, size)
        return buffer.raw.decode()

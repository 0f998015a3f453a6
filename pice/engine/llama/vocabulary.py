"""Text <-> tokens, by a model's own vocabulary and chat template."""

import ctypes
from typing import Any

from pice.core import Prompt
from pice.engine.llama.native import llama_cpp, quick
from pice.engine.llama.text import CHATML, ChatTemplate
from pice.errors import ConfigError, InputError

_token_to_piece = quick("llama_token_to_piece")
_is_eog = quick("llama_vocab_is_eog")


class Vocabulary:
    """Of a loaded model.

    Args:
        chat_template: a template's name in the file, or "chatml"; None is the file's default.

    Raises:
        ConfigError: no chat template of that name.
    """

    def __init__(self, model: Any, *, chat_template: str | None) -> None:
        self.native = llama_cpp.llama_model_get_vocab(model)
        self.num_tokens: int = llama_cpp.llama_vocab_n_tokens(self.native)
        self._template = self._chat_template(model, chat_template)
        self._pieces: dict[int, bytes] = {}

    def tokens(self, prompt: Prompt) -> list[int]:
        """The prompt by the model's chat template, as tokens; at least one.

        Raises:
            InputError: there are no messages, or the template refuses them.
        """
        rendered = self._template.render(prompt)
        text = rendered.encode(errors="replace")
        special = not (self._template.bos and rendered.startswith(self._template.bos))
        size = len(text) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = llama_cpp.llama_tokenize(self.native, text, len(text), buffer, size, special, True)
            if count >= 0:
                break
            size = -count
        if not count:
            raise InputError("the prompt is empty: the chat template made no tokens of its messages")
        return buffer[:count]

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens. A character may be spread over several."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token)
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether the token says that the text is complete."""
        return bool(_is_eog(self.native, token))

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = _token_to_piece(self.native, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _token_text(self, token: int) -> str:
        text = llama_cpp.llama_vocab_get_text(self.native, token) if token >= 0 else b""
        return (text or b"").decode(errors="replace")

    def _chat_template(self, model: Any, name: str | None) -> ChatTemplate:
        named = name.encode() if name and name != "chatml" else None
        source = None if name == "chatml" else llama_cpp.llama_model_chat_template(model, named)
        if source is None and named:
            raise ConfigError(f"chat_template: the model has no chat template {name!r}; leave it out or use 'chatml'")
        bos, eos = llama_cpp.llama_vocab_bos(self.native), llama_cpp.llama_vocab_eos(self.native)
        return ChatTemplate(
            source.decode(errors="replace") if source else CHATML, bos=self._token_text(bos), eos=self._token_text(eos)
        )

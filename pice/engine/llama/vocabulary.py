"""Text <-> tokens, by a model's own vocabulary and chat template."""

import ctypes
import re
from collections.abc import Callable
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import numpy as np

from pice.core import Prompt
from pice.engine.llama.builtin import BuiltinTemplate, builtin_names
from pice.engine.llama.native import llama_cpp, quick
from pice.engine.llama.special import Special, Specials
from pice.engine.llama.template import CHATML, ChatTemplate
from pice.engine.llama.thinking import TAGS, answer_begun
from pice.errors import ConfigError, InputError, ModelLoadError

_token_to_piece = quick("llama_token_to_piece")
_is_eog = quick("llama_vocab_is_eog")
_get_text = quick("llama_vocab_get_text")
_get_attr = quick("llama_vocab_get_attr")

_STRUCTURE = llama_cpp.LLAMA_TOKEN_ATTR_CONTROL | llama_cpp.LLAMA_TOKEN_ATTR_UNKNOWN
_SPECIAL = _STRUCTURE | llama_cpp.LLAMA_TOKEN_ATTR_USER_DEFINED

SMALL_CHARS = 65536
"""Tokenised in a few hundredths of a second."""
NUM_BYTES = 256
MAX_RUN_CHARS = 4096
"""Letters without a space, or spaces without a letter, that are handed to llama.cpp in one piece: where it splits text
by regular expressions (DeepSeek, Falcon, GPT-NeoX) it recurses once a character, and 32,000 end the process."""
_LONG_RUN = re.compile(rf"(?<!\S)\S{{{MAX_RUN_CHARS + 1},}}|(?<!\s)\s{{{MAX_RUN_CHARS + 1},}}")

_TEMPLATE_KEY = "tokenizer.chat_template."


class Template(Protocol):
    def render(self, prompt: Prompt) -> str: ...


class Vocabulary:
    """Of a loaded model.

    Args:
        chat_template: a template's name in the file, "chatml", or one of those that llama.cpp has built in; None is
            the file's default.

    Raises:
        ConfigError: no chat template of that name.
        ModelLoadError: the file's template cannot be read, or its vocabulary cannot be used.
    """

    def __init__(self, model: Any, *, chat_template: str | None) -> None:
        self.native = llama_cpp.llama_model_get_vocab(model)
        self.num_tokens: int = llama_cpp.llama_vocab_n_tokens(self.native)
        self._refuse_unusable()
        self._specials = Specials(self._read_special(token) for token in self._tokens_with(_SPECIAL))
        self._template = self._choose_template(model, chat_template)
        self._cuts_runs = llama_cpp.llama_vocab_type(self.native) == llama_cpp.LLAMA_VOCAB_TYPE_BPE
        bos = llama_cpp.llama_vocab_bos(self.native)
        self._first = [bos] if llama_cpp.llama_vocab_get_add_bos(self.native) and bos >= 0 else []
        self._pieces: dict[int, bytes] = {}

    def tokens(self, prompt: Prompt, check: Callable[[int], object] | None = None) -> list[int]:
        """The prompt by the model's chat template, as tokens; at least one.

        Control tokens are those that the template writes; in a message their text is only text. Of a long one `check`
        is given a number of tokens that it has at least, before they are made, and may raise.

        Raises:
            InputError: there are no messages, or the template refuses them.
        """
        hidden = self._specials.hide(prompt)
        rendered = answer_begun(self._template.render(hidden.prompt)).encode(errors="replace").decode()
        if check and (least := self._least(hidden.shown(rendered))):
            check(least)
        tokens: list[int] = []
        for part in self._specials.split(rendered):
            tokens += [part.token] if isinstance(part, Special) else self._tokenise(hidden.shown(part))
        if tokens[:1] != self._first:
            tokens = self._first + tokens
        if not tokens:
            raise InputError("the prompt is empty: the chat template made no tokens of its messages")
        return tokens

    def least_tokens(self, prompt: Prompt) -> int:
        """A number of tokens that the messages have at least which no template leaves out, much faster than counting
        them; 0 where counting is no trouble."""
        return self._least("".join(each.content.strip() for each in prompt.messages if each.role != "assistant"))

    def _least(self, text: str) -> int:
        """A byte takes up no less than its share of the longest token that it occurs in."""
        if len(text) <= SMALL_CHARS:
            return 0
        data = np.frombuffer(text.encode(errors="replace"), np.uint8)
        return int(np.bincount(data, minlength=NUM_BYTES) @ self._shares)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none for control tokens, but for those that enclose thinking. A character may be
        spread over several."""
        if token not in self._pieces:
            self._pieces[token] = self._read_piece(token, special=self._text(token) in TAGS)
        return self._pieces[token]

    def ends(self, token: int) -> bool:
        """Whether the token says that the text is complete."""
        return bool(_is_eog(self.native, token))

    def _refuse_unusable(self) -> None:
        """Vocabularies that end the process when they are asked for anything, or for a character they do not know."""
        kind = llama_cpp.llama_vocab_type(self.native)
        if kind == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
            raise ModelLoadError("expected a model with a vocabulary, got one without")
        if kind == llama_cpp.LLAMA_VOCAB_TYPE_SPM and not self._tokens_with(llama_cpp.LLAMA_TOKEN_ATTR_BYTE):
            raise ModelLoadError("expected a vocabulary with a token for each byte, got one without")

    def _tokenise(self, text: str) -> list[int]:
        """Of text in which no token is special to anybody."""
        cuts = [0, len(text)]
        if self._cuts_runs and len(text) > MAX_RUN_CHARS:
            for run in _LONG_RUN.finditer(text):
                cuts[-1:-1] = range(run.start() + MAX_RUN_CHARS, run.end(), MAX_RUN_CHARS)
        return [token for begin, end in pairwise(cuts) for token in self._tokenise_run(text[begin:end].encode())]

    def _tokenise_run(self, data: bytes) -> list[int]:
        size = len(data) + 8
        while True:
            buffer = (ctypes.c_int32 * size)()
            count = llama_cpp.llama_tokenize(self.native, data, len(data), buffer, size, False, False)
            if count >= 0:
                return buffer[:count]
            size = -count

    @cached_property
    def _shares(self) -> Any:
        """Of each byte, one over the length of the longest token it occurs in."""
        longest = np.ones(NUM_BYTES)
        for piece in sorted((self._read_piece(token, special=True) for token in range(self.num_tokens)), key=len):
            longest[list(set(piece))] = max(1, len(piece))
        return 1 / longest

    def _tokens_with(self, attributes: int) -> list[int]:
        return [token for token in range(self.num_tokens) if _get_attr(self.native, token) & attributes]

    def _read_special(self, token: int) -> Special:
        attributes = _get_attr(self.native, token)
        return Special(
            token,
            self._text(token),
            control=bool(attributes & _STRUCTURE),
            lstrip=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_LSTRIP),
            rstrip=bool(attributes & llama_cpp.LLAMA_TOKEN_ATTR_RSTRIP),
        )

    def _read_piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = _token_to_piece(self.native, token, buffer, size, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _text(self, token: int) -> str:
        text = _get_text(self.native, token) if token >= 0 else b""
        return (text or b"").decode(errors="replace")

    def _choose_template(self, model: Any, name: str | None) -> Template:
        named = name.encode() if name else None
        source = None if name == "chatml" else llama_cpp.llama_model_chat_template(model, named)
        text = source.decode(errors="replace") if source else CHATML
        builtin = text if source else name
        if builtin in builtin_names() and builtin != "chatml":
            return BuiltinTemplate(builtin)
        if source is None and name not in (None, "chatml"):
            raise ConfigError(
                f"chat_template: expected one in the file ({', '.join(_named_templates(model)) or 'none has a name'}) "
                f"or of llama.cpp ({', '.join(builtin_names())}), got {name!r}"
            )
        bos, eos = llama_cpp.llama_vocab_bos(self.native), llama_cpp.llama_vocab_eos(self.native)
        return ChatTemplate(text, bos=self._text(bos), eos=self._text(eos))


def _named_templates(model: Any) -> list[str]:
    keys = (_metadata_key(model, index) for index in range(llama_cpp.llama_model_meta_count(model)))
    return [key.removeprefix(_TEMPLATE_KEY) for key in keys if key.startswith(_TEMPLATE_KEY)]


def _metadata_key(model: Any, index: int) -> str:
    buffer = ctypes.create_string_buffer(256)
    llama_cpp.llama_model_meta_key_by_index(model, index, buffer, len(buffer))
    return buffer.value.decode(errors="replace")

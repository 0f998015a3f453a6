"""Prompts of an exact number of tokens, some of them shared."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from bench.engine_work import Asked, Unfair
from pice.core import Message, Prompt
from tools.tiny_gguf import WORDS

SHARED_TOKENS = 200
OWN_TOKENS = 20
_WORDS = WORDS.split()


@dataclass(frozen=True, slots=True)
class Prompts:
    """Chats whose system message is the prefix: one word is one token in the models that `tools/` writes."""

    vocabulary: Any

    def segments(self, num: int, *, prefix: str, own: str) -> tuple[Asked, ...]:
        """As many that share `SHARED_TOKENS` and have `OWN_TOKENS` more; words are drawn from the two seeds.

        Raises:
            Unfair: the model's words are other tokens than thought.
        """
        num_around_system, num_after_user = self._template_tokens()
        system = words(prefix, SHARED_TOKENS - num_around_system)
        firsts = random.Random(own).sample(_WORDS, num)
        num_more = OWN_TOKENS - num_after_user - 1
        users = [f" {first}{words(f'{own} {first}', num_more)}" for first in firsts]
        found = tuple(Asked(system, user, self._tokens(system, user)) for user in users)
        check_tokens(found)
        return found

    def _template_tokens(self) -> tuple[int, int]:
        """How many the template puts around the system message, and after the user's."""
        one, other = (self._tokens(" the", user) for user in (" of", " and"))
        num_before = num_common(one, other)
        return num_before - 1, len(one) - num_before - 1

    def _tokens(self, system: str, user: str) -> tuple[int, ...]:
        return tuple(self.vocabulary.tokens(as_prompt(system, user)))


@contextmanager
def prompts_for(path: Path) -> Iterator[Prompts]:
    """With the model's vocabulary, without its weights."""
    from pice.engine.llama.native import llama_cpp
    from pice.engine.llama.vocabulary import Vocabulary

    parameters = llama_cpp.llama_model_default_params()
    parameters.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(bytes(path), parameters)
    if not model:
        raise Unfair(f"{path}: expected a model, llama.cpp cannot load its vocabulary")
    try:
        yield Prompts(Vocabulary(model, chat_template=None))
    finally:
        llama_cpp.llama_model_free(model)


def as_prompt(system: str, user: str) -> Prompt:
    return Prompt((Message("system", system), Message("user", user)))


def words(seed: str, num: int) -> str:
    """Each with the space before it, which is part of its token."""
    return "".join(f" {word}" for word in random.Random(seed).choices(_WORDS, k=num))


def num_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the longest common prefix."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def check_tokens(segments: tuple[Asked, ...]) -> None:
    """Raises `Unfair` unless each has as many tokens as wanted and shares as many as wanted with each other one."""
    lengths = {len(each.tokens) for each in segments}
    shared = {num_common(segments[0].tokens, each.tokens) for each in segments[1:]} or {SHARED_TOKENS}
    if lengths != {SHARED_TOKENS + OWN_TOKENS} or shared != {SHARED_TOKENS}:
        raise Unfair(
            f"expected prompts of {SHARED_TOKENS} shared and {OWN_TOKENS} own tokens, got {shared} of {lengths}"
        )

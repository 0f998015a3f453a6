"""The tokenizer the demo models share: byte-level BPE, learned from the edge models' lessons.

Names of the atlas do not occur there, and no name often, so no town has a token of its own, and a name never seen is
made of parts that were.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from pice.core import Message
from tools.demo.lessons import Lesson, edge_lessons
from tools.demo.questions import comparison, overview, themes
from tools.demo.world import SEED, draw_town, strangers
from tools.demo.writing import outline

NUM_TOKENS = 2048
SPECIALS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
END = SPECIALS.index("<|end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PRE_TOKENIZER = "qwen2"
"""The name llama.cpp knows this way of cutting text into words by; digits stand alone."""
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_LESSONS = 20_000


def train_tokenizer() -> Tokenizer:
    """The tokenizer, the same one each time."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_TOKENS,
        special_tokens=list(SPECIALS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_texts(), trainer)
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))


def encode_lesson(tokenizer: Tokenizer, lesson: Lesson) -> tuple[list[int], int]:
    """The tokens of a whole lesson, and how many of them are its prompt."""
    prompt = encode_prompt(tokenizer, lesson.messages)
    return [*prompt, *tokenizer.encode(lesson.target).ids, END], len(prompt)


def encode_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """What `CHAT_TEMPLATE` comes to, up to where the model's turn begins."""
    tokens: list[int] = []
    for message in messages:
        role = SPECIALS.index(f"<|{message.role}|>")
        tokens += [role, *tokenizer.encode(message.content).ids, END]
    return [*tokens, SPECIALS.index("<|assistant|>")]


def _texts() -> Iterator[str]:
    rng = random.Random(f"tokenizer {SEED}")
    for lesson in islice(edge_lessons(rng, edge=-1), _NUM_LESSONS):
        yield from (message.content for message in lesson.messages)
        yield lesson.target
    for _ in range(_NUM_LESSONS // 5):
        town, other = (draw_town(name, rng) for name in rng.sample(strangers(), 2))
        theme = rng.choice(list(themes()))
        yield outline(overview(town, theme, rng, "training").parts)
        yield outline(comparison(town, other, theme, rng, "training").parts)

"""Prompts of exact lengths, from a vocabulary in which a word is a token."""

import pytest

pytest.importorskip("gguf", reason="the PyPI package gguf, which writes the models, is not installed")

from bench.engine_prompts import OWN_TOKENS, SHARED_TOKENS, Prompts, num_common
from bench.engine_run import job
from bench.engine_work import Unfair
from pice.core import Prompt


class WordByWord:
    """Each word is a token; the template's are numbers that are no words."""

    def __init__(self, num_after_word: int = 0) -> None:
        self.num_after_word = num_after_word

    def tokens(self, prompt: Prompt) -> list[int]:
        tokens = [-1]
        for message in prompt.messages:
            for word in message.content.split():
                tokens += [hash(word), *[-4] * self.num_after_word]
            tokens += [-2, -3]
        return tokens


@pytest.mark.parametrize("size", [1, 2, 16])
def test_segments_share_a_prefix_of_the_right_length_and_no_more(size: int) -> None:
    segments = Prompts(WordByWord()).segments(size, prefix="a", own="b")
    assert [len(each.tokens) for each in segments] == [SHARED_TOKENS + OWN_TOKENS] * size
    assert {num_common(segments[0].tokens, each.tokens) for each in segments[1:]} <= {SHARED_TOKENS}
    assert len({each.system for each in segments}) == 1


def test_words_that_are_several_tokens_are_refused() -> None:
    with pytest.raises(Unfair, match="200 shared and 20 own"):
        Prompts(WordByWord(num_after_word=1)).segments(2, prefix="a", own="b")


def test_cold_prefix_is_new_in_each_round_and_stays_for_the_warm_run() -> None:
    prompts = Prompts(WordByWord())
    cold, warm, next_cold = (
        job(prompts, 8, phase, at).segments for phase, at in (("cold", 0), ("warm", 0), ("cold", 1))
    )
    assert cold[0].system == warm[0].system != next_cold[0].system
    assert not {each.user for each in cold} & {each.user for each in warm}


def test_all_contenders_are_given_the_same_job() -> None:
    assert job(Prompts(WordByWord()), 4, "warm", 2) == job(Prompts(WordByWord()), 4, "warm", 2)


def test_only_the_greedy_job_is_greedy() -> None:
    jobs = {phase: job(Prompts(WordByWord()), 1, phase, 0) for phase in ("cold", "warm", "greedy")}
    assert [jobs[phase].sampling.temperature > 0 for phase in jobs] == [True, True, False]

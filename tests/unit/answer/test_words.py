"""Words in any script, and ROUGE-1 over them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.answer.words import bag, rouge1_f, rouge1_recall, words_of

TEXTS = st.text(alphabet="ab AB,.光ß\u0301", max_size=30)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("It's 3.5 km!", ["it", "s", "3", "5", "km"], id="punctuation parts"),
        pytest.param("STRASSE, Straße", ["strasse", "strasse"], id="case"),
        pytest.param("cafe\u0301 café", ["café", "café"], id="composition"),
        pytest.param("ＡＢ１ ab1", ["ab1", "ab1"], id="width"),
        pytest.param("हिन्दी में।", ["हिन्दी", "में"], id="combining marks stay in their word"),
        pytest.param("光の散乱、青。", ["光", "の", "散", "乱", "青"], id="characters without spaces"),
        pytest.param("GPUで計算", ["gpu", "で", "計", "算"], id="mixed scripts"),
        pytest.param("한국어 문장", ["한국어", "문장"], id="korean has spaces"),
        pytest.param("مرحبا، كيف؟", ["مرحبا", "كيف"], id="arabic"),
        pytest.param("**bold** `x_y` — “q”", ["bold", "x", "y", "q"], id="markdown and quotes"),
        pytest.param(" ... --- \n", [], id="no word"),
    ],
)
def test_words_of_a_text(text: str, words: list[str]) -> None:
    assert words_of(text) == words


@pytest.mark.parametrize(
    ("reference", "text", "recall", "f"),
    [
        pytest.param("the cat sat", "the cat sat", 1.0, 1.0, id="same"),
        pytest.param("the cat sat", "The sat: cat!", 1.0, 1.0, id="order and case do not count"),
        pytest.param("the cat", "the cat sat down", 1.0, 4 / 6, id="longer text"),
        pytest.param("the cat sat down", "the cat", 0.5, 4 / 6, id="shorter text"),
        pytest.param("a a a b", "a c", 0.25, 2 / 6, id="a word counts as often as in both"),
        pytest.param("cat", "dog", 0.0, 0.0, id="nothing in common"),
        pytest.param("", "dog", 0.0, 0.0, id="no reference"),
        pytest.param("", "", 0.0, 0.0, id="no words at all"),
        pytest.param("光の散乱", "散乱した光", 0.75, 6 / 9, id="characters"),
    ],
)
def test_rouge1(reference: str, text: str, recall: float, f: float) -> None:
    assert rouge1_recall(bag(reference), bag(text)) == pytest.approx(recall)
    assert rouge1_f(bag(reference), bag(text)) == pytest.approx(f)


@settings(deadline=None)
@given(one=TEXTS, other=TEXTS)
def test_f_is_the_harmonic_mean_of_both_recalls(one: str, other: str) -> None:
    there, back = rouge1_recall(bag(one), bag(other)), rouge1_recall(bag(other), bag(one))
    mean = 2 * there * back / (there + back) if there + back else 0.0
    assert rouge1_f(bag(one), bag(other)) == pytest.approx(mean) == pytest.approx(rouge1_f(bag(other), bag(one)))

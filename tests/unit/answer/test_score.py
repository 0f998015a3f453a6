"""What makes one candidate better than another, and what makes one no candidate at all."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pice.answer.normalise import PRIOR_MEAN, ModelStats
from pice.answer.score import NOTHING_KNOWN, SOUND, Weights, score
from pice.core import Candidate, FinishReason, Message, Point, PromptKind, Sampling, Scored, Segment

POINTS = (
    Point(0, "blue light scattered more: short wavelength", 30),
    Point(1, "sunset red: longer path through the air", 30),
)
QUESTION = "Why is the sky blue during the day but red at sunset?"
GOOD = (
    "Sunlight holds all colours, and air scatters blue light far more than red because of its short wavelength. "
    "So blue reaches our eyes from every side, and the whole sky looks blue."
)

MORE = "The same happens on every planet whose air is clear, though its colour depends on what that air is made of."


def a_segment(kind: PromptKind = "expand", *, words: int = 30, question: str = QUESTION) -> Segment:
    points = POINTS if kind == "expand" else ()
    return Segment("r", 1, 0, kind, (Message("user", question),), points, points[:1], words, Sampling(), 9.0)


def a_candidate(text: str = GOOD, site: str = "a", model: str = "m", logprob: float | None = None) -> Candidate:
    return Candidate("r", 1, 0, site, model, text, logprob_mean=logprob)


def scored(*candidates: Candidate, segment: Segment | None = None, weights: Weights | None = None) -> list[Scored]:
    return score(segment or a_segment(), candidates, ModelStats(), weights or Weights())


def failures_of(
    text: str, segment: Segment | None = None, finish_reason: FinishReason = "stop", error: str = ""
) -> tuple[str, ...]:
    candidate = replace(a_candidate(text), finish_reason=finish_reason, error=error)
    return scored(candidate, segment=segment)[0].failures


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        pytest.param(a_candidate(logprob=-0.3), a_candidate(logprob=-0.9), id="likelier"),
        pytest.param(a_candidate(), a_candidate(GOOD.split(".")[0] + "."), id="nearer to the budget, from below"),
        pytest.param(a_candidate(), a_candidate(f"{GOOD} {MORE}"), id="nearer to the budget, from above"),
        pytest.param(a_candidate(), a_candidate(" ".join(f"word{n}" for n in range(30))), id="about its points"),
    ],
)
def test_better_candidate_comes_first(better: Candidate, worse: Candidate) -> None:
    for candidates in ([replace(better, site="b"), worse], [better, replace(worse, site="b")]):
        first, second = scored(*candidates)
        assert first.candidate in (better, replace(better, site="b"))
        assert first.confidence > second.confidence


def test_candidate_that_the_others_agree_with_beats_the_odd_one_out() -> None:
    like = GOOD.replace("far more", "much more")
    odd = "Blue light has a short wavelength, and gas molecules send it around more: a rainbow inside out, as it were, "
    odd += "scattered over everything above."
    candidates = [a_candidate(GOOD, "a"), a_candidate(like, "b"), a_candidate(odd, "c")]
    result = scored(*candidates, weights=Weights(logprob=0, length=0, overlap=0, agreement=1))
    assert [one.candidate.site for one in result][-1] == "c"
    assert not result[-1].failures


def test_terms_are_what_they_say() -> None:
    segment = replace(a_segment(words=20), points=(Point(0, "blue red green grey", 20),))
    text = "Blue and red are two colours of the rainbow."
    (one,) = scored(a_candidate(text, logprob=PRIOR_MEAN), segment=segment)
    assert one.terms == {"logprob": 0.5, "length": 9 / 20, "overlap": 2 / 4}
    mean = (0.3 * 0.5 + 0.2 * 9 / 20 + 0.3 * 2 / 4) / 0.8
    assert one.confidence == pytest.approx(SOUND + (1 - SOUND) * mean)


@pytest.mark.parametrize(
    ("segment", "candidate", "terms"),
    [
        pytest.param(a_segment(), a_candidate(), {"length", "overlap"}, id="no log-probabilities"),
        pytest.param(a_segment(words=0), a_candidate(), {"overlap"}, id="no budget"),
        pytest.param(a_segment("answer"), a_candidate(logprob=-1.0), {"logprob", "length"}, id="a whole answer"),
    ],
)
def test_term_that_says_nothing_is_left_out(segment: Segment, candidate: Candidate, terms: set[str]) -> None:
    (one,) = scored(candidate, segment=segment)
    assert set(one.terms) == terms


def test_candidate_of_which_nothing_is_known_is_neither_good_nor_bad() -> None:
    (one,) = scored(a_candidate(), segment=a_segment("answer", words=0))
    assert (one.confidence, one.terms) == (NOTHING_KNOWN, {})


def test_budget_of_a_text_without_spaces_counts_characters() -> None:
    (one,) = scored(a_candidate("空気は青い光を散らす。"), segment=a_segment(words=10))
    assert one.terms["length"] == 1.0


def test_only_ratios_of_weights_matter() -> None:
    candidates = [a_candidate(GOOD, "a", logprob=-0.4), a_candidate(GOOD[:60] + ".", "b", logprob=-0.2)]
    tenfold = Weights(logprob=3, length=2, overlap=3, agreement=2)
    for one, other in zip(scored(*candidates), scored(*candidates, weights=tenfold), strict=True):
        assert one.candidate == other.candidate
        assert one.confidence == pytest.approx(other.confidence)


def test_equal_candidates_come_by_site_and_model() -> None:
    keys = [("a", "m"), ("a", "n"), ("b", "l")]
    result = scored(*(a_candidate(site=site, model=model) for site, model in reversed(keys)))
    assert [(one.candidate.site, one.candidate.model) for one in result] == keys


REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I am so sorry, but I cannot do that.",
    "Sorry, I can't assist with this request.",
    "Unfortunately, I cannot provide information on this.",
    "I'm unable to answer this question.",
    "As an AI language model, I do not have opinions.",
    "Es tut mir leid, aber dabei kann ich nicht helfen.",
    "Je ne peux pas répondre à cette question.",
    "Lo siento, no puedo ayudar con eso.",
    "抱歉，我无法回答这个问题。",
    "申し訳ありませんが、お答えできません。",
)
NO_REFUSALS = (
    "I can't wait to see the blue sky over the mountains again.",
    "I cannot stress enough how much blue light is scattered.",
    "As an AI engineer you learn early that the sky is blue.",
    "Sorry states of the sky are rare; blue is the usual one.",
    "I'm sorry, but I cannot say this in one sentence. " + GOOD * 3,
    "Scattered blue light is why, I'm sorry to say.",
)


@pytest.mark.parametrize("text", REFUSALS)
def test_refusal_is_noticed(text: str) -> None:
    assert failures_of(text) == ("refusal",)


@pytest.mark.parametrize("text", NO_REFUSALS)
def test_text_that_answers_is_no_refusal(text: str) -> None:
    assert "refusal" not in failures_of(text)


LOOP = "It is blue because of the light. "
FAILURES = {
    "sound": (GOOD, ()),
    "no text": ("", ("empty",)),
    "only marks": (" ** ... \n", ("empty",)),
    "its points": (POINTS[0].text, ("echo",)),
    "the outline": (f"1. {POINTS[0].text}\n2. {POINTS[1].text}", ("echo",)),
    "the question": (QUESTION, ("echo",)),
    "the question and its points": (f"{QUESTION} {POINTS[0].text.upper()}!", ("echo",)),
    "one word of its points": ("Wavelength.", ("echo",)),
    "words of its points in sentences of its own": (
        "The path is longer at sunset, and more of the blue is scattered by the air, so the light is red.",
        (),
    ),
    "one sentence again and again": (LOOP * 8, ("loop",)),
    "a loop after a good start": (GOOD + " It looks blue." * 30, ("loop",)),
    "one word again and again": ("the sky " + "very " * 40, ("loop",)),
    "characters again and again": ("空は青いです。" * 10, ("loop",)),
    "a sentence said twice": (f"{GOOD} {LOOP}{LOOP}", ()),
    "a number": ("1969", ()),
    "a number that is all the news": ("The sky is blue during 12 h.", ()),
    "a short exclamation": ("No, no, no, no, no, no, no!", ()),
}


@pytest.mark.parametrize(("text", "names"), FAILURES.values(), ids=FAILURES)
def test_hard_failures(text: str, names: tuple[str, ...]) -> None:
    assert failures_of(text) == names


@pytest.mark.parametrize(
    ("ending", "names"),
    [
        pytest.param("and so it is blue.", (), id="full stop"),
        pytest.param('he said: "It is blue."', (), id="quotes after it"),
        pytest.param("**It is blue!**\n", (), id="markdown after it"),
        pytest.param("だから青い。", (), id="japanese"),
        pytest.param("इसलिए नीला है।", (), id="hindi"),
        pytest.param("x = blue\n```", (), id="closed code"),
        pytest.param("and so it is", ("cut",), id="within a sentence"),
        pytest.param("and so it is,", ("cut",), id="after a comma"),
        pytest.param("It is 3.5", ("cut",), id="point within a number"),
    ],
)
def test_text_stopped_by_its_limit_is_cut_unless_a_sentence_ends_there(ending: str, names: tuple[str, ...]) -> None:
    assert failures_of(f"{GOOD} {ending}", finish_reason="length") == names
    assert failures_of(f"{GOOD} {ending}") == ()


def test_candidate_that_only_brings_an_error_has_no_confidence_at_all() -> None:
    (one,) = scored(replace(a_candidate(""), error="the model ran out of memory"))
    assert one.failures == ("error", "empty")
    assert (one.confidence, one.terms) == (0.0, {})


@pytest.mark.parametrize(
    ("question", "text", "names"),
    [
        pytest.param(QUESTION, QUESTION, ("echo",), id="the whole question"),
        pytest.param(QUESTION, f"{QUESTION} Indeed.", ("echo",), id="hardly more"),
        pytest.param(QUESTION, f"{QUESTION} {GOOD}", (), id="and then its answer"),
        pytest.param("Hello there!", "Hello there!", (), id="a greeting returned"),
        pytest.param("Say again: the sky is blue today", "The sky is blue today", (), id="what was asked for"),
    ],
)
def test_whole_answer_may_repeat_what_it_was_asked_about(question: str, text: str, names: tuple[str, ...]) -> None:
    assert failures_of(text, a_segment("answer", question=question)) == names


def test_quoting_from_material_in_a_long_question_is_no_echo() -> None:
    material = f"Sum up this report. {GOOD} " + "Many more findings of the report follow here. " * 40
    assert failures_of(GOOD, a_segment(question=material)) == ()


def test_failed_candidate_comes_after_every_sound_one_and_a_cut_one_after_worse_failures_by_its_terms() -> None:
    poor = a_candidate("Hm.", "a")
    cut = replace(a_candidate(GOOD + " And then", "b"), finish_reason="length")
    empty = a_candidate("", "c")
    result = scored(empty, cut, poor)
    assert [one.candidate.site for one in result] == ["a", "b", "c"]
    assert result[0].confidence >= SOUND > result[1].confidence > result[2].confidence


def test_failed_candidate_has_no_say_in_the_agreement_of_others() -> None:
    (first, _) = scored(a_candidate(GOOD, "a"), a_candidate(LOOP * 8, "b"))
    assert "agreement" not in first.terms


TEXTS = st.sampled_from(["", GOOD, GOOD[:70], LOOP * 5, QUESTION, *REFUSALS[:3], "空は青い。"]) | st.text(max_size=60)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        request_id=st.just("r"),
        attempt=st.just(1),
        index=st.just(0),
        site=st.sampled_from("abc"),
        model=st.sampled_from("mn"),
        text=TEXTS,
        finish_reason=st.sampled_from(("stop", "length")),
        logprob_mean=st.none() | st.floats(-10, 0),
        error=st.sampled_from(("", "", "down")),
    ),
    max_size=5,
    unique_by=lambda candidate: (candidate.site, candidate.model),
)
SEGMENTS = st.sampled_from([a_segment(), a_segment("answer"), a_segment(words=0), replace(a_segment(), messages=())])


@settings(deadline=None)
@given(segment=SEGMENTS, candidates=CANDIDATES)
def test_confidence_and_terms_are_between_0_and_1_and_failures_last(
    segment: Segment, candidates: list[Candidate]
) -> None:
    result = scored(*candidates, segment=segment)
    assert sorted(one.candidate.site + one.candidate.model for one in result) == sorted(
        candidate.site + candidate.model for candidate in candidates
    )
    for one in result:
        assert all(0.0 <= value <= 1.0 for value in (one.confidence, *one.terms.values()))
        assert bool(one.failures) == (one.confidence < SOUND)
    assert [one.confidence for one in result] == sorted((one.confidence for one in result), reverse=True)


@settings(deadline=None)
@given(candidates=CANDIDATES, random=st.randoms(use_true_random=False))
def test_order_of_arrival_changes_nothing(candidates: list[Candidate], random: Random) -> None:
    shuffled = list(candidates)
    random.shuffle(shuffled)
    assert scored(*shuffled) == scored(*candidates)

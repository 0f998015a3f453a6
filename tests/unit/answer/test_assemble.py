"""The answer adds up: text, spans, tokens and times."""

from dataclasses import replace

import pytest

from pice.answer.assemble import assemble, sketch_words
from pice.core import (
    CLOUD_SITE,
    Candidate,
    Message,
    Plan,
    Point,
    Record,
    Request,
    Sampling,
    Scored,
    Segment,
    SegmentRecord,
    Span,
    Times,
    Usage,
)

SKETCH = (Point(0, "scattering", 40), Point(1, "sunset", 20), Point(2, "oceans", 20))


def a_candidate(index: int, site: str, model: str, num_tokens: int) -> Candidate:
    text = f"Text {index} of {model} at {site}."
    return Candidate("r", 2, index, site, model, text, num_prompt_tokens=100, num_output_tokens=num_tokens)


def settled(index: int, *candidates: Candidate, chosen_s: float, span: Span | None = None) -> SegmentRecord:
    """A segment of one point whose first candidate is chosen, or `span`."""
    segment = Segment("r", 2, index, "expand", (), SKETCH, SKETCH[index : index + 1], 20, Sampling(), 200.0)
    if span is None:
        first = candidates[0]
        span = Span(
            index, first.text, first.site, first.model, 0.7, candidates=tuple(Scored(c, 0.7) for c in candidates)
        )
    by_key = {(candidate.site, candidate.model): candidate for candidate in candidates}
    return SegmentRecord(segment, [], by_key, replace(span, chosen_s=chosen_s))


def a_record() -> Record:
    segments = [
        settled(1, a_candidate(1, CLOUD_SITE, "big", 70), a_candidate(1, "a", "small", 30), chosen_s=108.0),
        settled(0, a_candidate(0, "a", "small", 50), a_candidate(0, "b", "tiny", 60), chosen_s=107.0),
        settled(2, a_candidate(2, "b", "tiny", 40), a_candidate(2, CLOUD_SITE, "big", 20), chosen_s=106.0),
    ]
    return Record(
        Request("r", (Message("user", "Why?"),)),
        opened_s=100.0,
        deadline_s=220.0,
        attempt=2,
        begun_s=101.5,
        plan=Plan("progressive", "faster"),
        sketch=SKETCH,
        sketch_prompt_tokens=200,
        sketch_output_tokens=45,
        sealed_s=104.0,
        num_segments=3,
        segments={known.segment.index: known for known in segments},
    )


def test_spans_come_in_the_order_of_their_segments() -> None:
    answer = assemble(a_record(), now_s=109.0)
    assert [span.index for span in answer.spans] == [0, 1, 2]
    assert answer.text == "Text 0 of small at a.\n\nText 1 of big at cloud.\n\nText 2 of tiny at b."
    assert (answer.request_id, answer.attempt, answer.mode, answer.sketch) == ("r", 2, "progressive", SKETCH)
    assert (answer.finish_reason, answer.degraded) == ("stop", ())


def test_tokens_are_counted_where_they_were_spent() -> None:
    assert assemble(a_record(), now_s=109.0).usage == Usage(
        num_cloud_prompt_tokens=200 + 2 * 100,
        num_cloud_output_tokens=45 + 70 + 20,
        num_edge_prompt_tokens=4 * 100,
        num_edge_output_tokens=50 + 60 + 30 + 40,
        num_discarded_tokens=60 + 30,
        num_answer_tokens=50 + 70 + 40,
    )


def test_times_count_from_the_opening_of_the_record() -> None:
    times = Times(queue_s=1.5, sketch_s=4.0, first_segment_s=6.0, ttft_s=7.0, e2e_s=9.0)
    assert assemble(a_record(), now_s=109.0).times == times


def test_answer_of_one_edge_model_has_no_sketch_time() -> None:
    record = a_record()
    record.plan, record.sketch, record.segments = Plan("edge", "short"), (), {0: record.segments[0]}
    answer = assemble(record, now_s=109.0)
    assert (answer.mode, answer.times.sketch_s, answer.finish_reason) == ("edge", 0.0, "stop")


def test_answer_with_a_cut_span_says_so() -> None:
    record = a_record()
    span = record.segments[2].choice
    assert span is not None
    record.segments[2].choice = replace(span, finish_reason="length")
    assert assemble(record, now_s=109.0).finish_reason == "length"


def test_answer_whose_last_points_were_not_expanded_says_that_it_is_cut() -> None:
    record = a_record()
    del record.segments[2]
    assert assemble(record, now_s=109.0).finish_reason == "length"


def test_answer_of_no_segments_is_empty_and_cut() -> None:
    record = a_record()
    record.segments = {}
    answer = assemble(record, now_s=109.0)
    assert (answer.text, answer.finish_reason, answer.times.ttft_s) == ("", "length", 0.0)


def test_segment_without_a_choice_cannot_be_assembled() -> None:
    record = a_record()
    record.segments[1].choice = None
    with pytest.raises(AssertionError):
        assemble(record, now_s=109.0)


def test_sketch_stands_in_for_a_segment_that_nobody_expanded() -> None:
    record = a_record()
    lost = replace(a_candidate(1, "a", "small", 30), text="", error="out of memory")
    words = sketch_words(record.segments[1].segment)
    record.segments[1] = settled(1, lost, chosen_s=108.0, span=words)
    answer = assemble(record, now_s=109.0)
    assert (words.text, words.index, words.confidence, words.degraded) == ("sunset", 1, 0.0, True)
    assert answer.degraded == (1,)
    assert "\n\nsunset\n\n" in answer.text
    assert (answer.usage.num_answer_tokens, answer.usage.num_discarded_tokens) == (50 + 40, 60 + 30)


def test_words_of_several_points_stand_on_lines_of_their_own() -> None:
    segment = replace(a_record().segments[0].segment, points=SKETCH[:2])
    assert sketch_words(segment).text == "scattering\nsunset"

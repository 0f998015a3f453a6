"""A record whose segments all have their choice -> the answer, with its accounts."""

from collections.abc import Sequence

from pice.answer.join import join_spans
from pice.answer.limit import within_limit
from pice.core import CLOUD_SITE, Answer, Candidate, Record, Segment, SegmentRecord, Span, Times, Usage


def assemble(record: Record, *, now_s: float) -> Answer:
    """The answer to a planned request whose segments each have their choice; `now_s` is on the store's clock.

    It was cut (`finish_reason` "length") when its sketch or one of its spans was, or when points of the sketch are not
    in it because the request's token limit was used up.
    """
    assert record.plan is not None
    spans = within_limit(_spans(record), _sizes(record), record.request.sampling.max_tokens)
    expanded = {point.index for span in spans for point in record.segments[span.index].segment.points}
    cut = record.sketch_cut or any(span.finish_reason == "length" for span in spans)
    cut = cut or any(point.index not in expanded for point in record.sketch)
    return Answer(
        request_id=record.request.request_id,
        text=join_spans(spans),
        mode=record.plan.mode,
        finish_reason="length" if cut else "stop",
        attempt=record.attempt,
        plan=record.plan,
        sketch=record.sketch,
        spans=spans,
        degraded=tuple(span.index for span in spans if span.degraded),
        usage=_usage(record),
        times=_times(record, spans, now_s),
    )


def sketch_words(segment: Segment) -> Span:
    """The last resort: the sketch's own words for this segment, marked as degraded."""
    text = "\n".join(point.text for point in segment.points)
    return Span(segment.index, text, CLOUD_SITE, "", 0.0, degraded=True, points=segment.points)


def _spans(record: Record) -> tuple[Span, ...]:
    choices = [known.choice for _, known in sorted(record.segments.items())]
    spans = tuple(choice for choice in choices if choice is not None)
    assert len(spans) == len(choices)
    return spans


def _sizes(record: Record) -> list[int]:
    """Tokens of each span; the sketch's own words cost none."""
    chosen = [_chosen(known) for _, known in sorted(record.segments.items())]
    return [candidate.num_output_tokens if candidate else 0 for candidate in chosen]


def _usage(record: Record) -> Usage:
    candidates = [candidate for known in record.segments.values() for candidate in known.candidates.values()]
    cloud = [candidate for candidate in candidates if candidate.site == CLOUD_SITE]
    edge = [candidate for candidate in candidates if candidate.site != CLOUD_SITE]
    chosen = [candidate for known in record.segments.values() if (candidate := _chosen(known))]
    lost = [candidate for candidate in edge if candidate not in chosen]
    return Usage(
        num_cloud_prompt_tokens=record.sketch_prompt_tokens + _num_prompt_tokens(cloud),
        num_cloud_output_tokens=record.sketch_output_tokens + _num_output_tokens(cloud),
        num_edge_prompt_tokens=_num_prompt_tokens(edge),
        num_edge_output_tokens=_num_output_tokens(edge),
        num_discarded_tokens=_num_output_tokens(lost),
        num_answer_tokens=min(_num_output_tokens(chosen), record.request.sampling.max_tokens),
    )


def _chosen(known: SegmentRecord) -> Candidate | None:
    choice = known.choice
    return known.candidates.get((choice.site, choice.model)) if choice else None


def _num_prompt_tokens(candidates: Sequence[Candidate]) -> int:
    return sum(candidate.num_prompt_tokens for candidate in candidates)


def _num_output_tokens(candidates: Sequence[Candidate]) -> int:
    return sum(candidate.num_output_tokens for candidate in candidates)


def _times(record: Record, spans: Sequence[Span], now_s: float) -> Times:
    """`ttft_s` is when the first span in order was chosen: nothing of the answer could be shown before."""
    opened_s = record.opened_s
    return Times(
        queue_s=record.begun_s - opened_s,
        sketch_s=record.sealed_s - opened_s if record.sketch else 0.0,
        first_segment_s=min(span.chosen_s for span in spans) - opened_s if spans else 0.0,
        ttft_s=spans[0].chosen_s - opened_s if spans else 0.0,
        e2e_s=now_s - opened_s,
    )

"""Whether an answer is whole: speed must not be bought by losing work."""

from collections.abc import Iterable

from pice.core import Answer


class Incomplete(RuntimeError):
    """A benchmark's answers lack something, so its figures mean nothing."""


def complaint(answer: Answer, num_points: int) -> str:
    """What a progressive answer to a sketch of `num_points` lacks; "" when every point is written up, once, and
    stands in the text."""
    expanded = sorted(point.index for span in answer.spans for point in span.points)
    if answer.mode != "progressive" or answer.finish_reason != "stop":
        return f"mode {answer.mode}, finish_reason {answer.finish_reason}"
    if answer.degraded:
        return f"segments {answer.degraded} are degraded"
    if expanded != list(range(num_points)):
        return f"expected {num_points} points, each written up once, got {expanded}"
    lost = [span.index for span in answer.spans if not span.text or span.text not in answer.text]
    return f"the text lacks segments {lost}" if lost else ""


def require_complete(answers: Iterable[Answer], num_points: int, num_answers: int) -> None:
    """Raises Incomplete unless there are `num_answers` answers to different requests, all whole."""
    found = {answer.request_id: complaint(answer, num_points) for answer in answers}
    if len(found) != num_answers:
        raise Incomplete(f"expected {num_answers} answers, got {len(found)}")
    if lacking := {name: lack for name, lack in found.items() if lack}:
        name, lack = next(iter(lacking.items()))
        raise Incomplete(f"{len(lacking)} of {num_answers} answers are not whole; {name}: {lack}")

"""How long things will take: the formulas of docs/planner.md, from an engine's curve and its load."""

from bisect import bisect_left
from typing import Protocol

from pice.core import Curve


class Engaged(Protocol):
    """A model and how much it has to do."""

    @property
    def curve(self) -> Curve: ...

    @property
    def max_inflight(self) -> int: ...

    @property
    def num_outstanding(self) -> int: ...

    @property
    def backlog_tokens(self) -> int: ...


def step_s(curve: Curve, batch: int) -> float:
    """Seconds of one decode step at a batch size: linear between the given sizes, constant below the first, the
    last slope kept beyond the last, never below 0."""
    sizes, times = curve.batch, curve.step_s
    if batch <= sizes[0] or len(sizes) == 1:
        return times[0]
    i = min(bisect_left(sizes, batch), len(sizes) - 1)
    share = (batch - sizes[i - 1]) / (sizes[i] - sizes[i - 1])
    return max(0.0, times[i - 1] + share * (times[i] - times[i - 1]))


def prefill_s(curve: Curve, num_prompt_tokens: int) -> float:
    """Seconds from the start of a prompt to its first token."""
    return curve.base_s + curve.prefill_s_per_token * num_prompt_tokens


def wait_s(model: Engaged) -> float:
    """Seconds until a new generation would start: the share of the backlog that is ahead of it, at the rate of a
    full batch; 0 while a slot is free."""
    ahead = model.num_outstanding + 1 - model.max_inflight
    if ahead <= 0:
        return 0.0
    tokens = model.backlog_tokens * ahead / model.num_outstanding
    return tokens * step_s(model.curve, model.max_inflight) / model.max_inflight


def decode_s(model: Engaged, num_tokens: float) -> float:
    """Seconds to write `num_tokens` beside what the model is doing now."""
    batch = min(model.num_outstanding + 1, model.max_inflight)
    return num_tokens * step_s(model.curve, batch)


def finish_s(model: Engaged, num_prompt_tokens: int, num_tokens: float, rtt_s: float = 0.0) -> float:
    """Seconds until `num_tokens` more would be back from this model: round trip, wait, prefill, decode."""
    return rtt_s + wait_s(model) + prefill_s(model.curve, num_prompt_tokens) + decode_s(model, num_tokens)

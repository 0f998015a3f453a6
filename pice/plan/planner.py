"""The first planner: earliest predicted finish, progressive only where it beats the cloud."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import median

from pice.core import (
    Answer,
    Candidate,
    Placement,
    Plan,
    Request,
    Segment,
    SiteState,
)
from pice.plan.base import TOKENS_PER_WORD, Target, Where
from pice.plan.board import Option, SiteBoard
from pice.plan.estimate import decode_s, finish_s, prefill_s, wait_s

_SEGMENT_PROMPT_TOKENS = 80
"""What the expand prompt adds to the question itself, sketch included; a planning figure."""
_NUM_REMEMBERED = 200


@dataclass(frozen=True, slots=True)
class PlanPolicy:
    """Settings of the planner; see `pice.settings.PlannerSettings` for what each is for."""

    margin: float = 0.1
    sketch_ratio: float = 0.2
    sketch_flex: float = 0.25
    segment_words: int = 60
    max_segments: int = 24
    assumed_answer_words: int = 250
    candidates: int = 1


class EarliestFinish:
    """See `pice.plan.base.Planner`. Answer lengths are the median of the last 200 answers, or an assumption."""

    def __init__(self, policy: PlanPolicy) -> None:
        self._policy = policy
        self._board = SiteBoard()
        self._lengths: deque[int] = deque(maxlen=_NUM_REMEMBERED)

    def see(self, sites: Sequence[SiteState]) -> None:
        self._board.see(sites)

    def address(self, site: str) -> tuple[str, int]:
        return self._board.address(site)

    def decide(self, request: Request, num_prompt_tokens: int) -> Plan:
        cloud, edges = self._board.cloud, self._board.edges
        words = round(self._expected_tokens(request) / TOKENS_PER_WORD)
        if cloud is None and not edges:
            return Plan("cloud", "no site is up", answer_words=words)
        if cloud is None:
            return Plan("edge", "the cloud site is not up", answer_words=words)
        num_tokens = num_prompt_tokens + _SEGMENT_PROMPT_TOKENS + round(self._policy.segment_words * TOKENS_PER_WORD)
        fitting = [option for option in edges if num_tokens <= option.context_tokens]
        if not fitting:
            reason = "the prompt fits no edge model's context" if edges else "no edge site is up"
            t_cloud_s = finish_s(cloud, num_prompt_tokens, self._expected_tokens(request))
            return Plan("cloud", reason, t_cloud_s=t_cloud_s, answer_words=words)
        return self._weigh(request, num_prompt_tokens, cloud, fitting)

    def place(
        self,
        segment: Segment,
        now_s: float,
        *,
        exclude: Collection[Target] = (),
        exclude_models: Collection[str] = (),
        where: Where = "anywhere",
        reason: str = "first",
    ) -> Placement | None:
        tokens, prompt_tokens = _num_tokens(segment), prompt_size(segment)
        best: Option | None = None
        best_s = 0.0
        for option in self._choices(where, exclude, exclude_models, prompt_tokens + tokens):
            seconds = option.finish_s(prompt_tokens, tokens)
            if best is None or seconds < best_s or (seconds == best_s and option.target < best.target):
                best, best_s = option, seconds
        if best is None:
            return None
        self._board.sent(best, tokens, now_s)
        return Placement(best.target.site, best.target.model, now_s, now_s + best_s, reason)

    def withdraw(self, segment: Segment, placement: Placement) -> None:
        self._board.withdraw(Target(placement.site, placement.model), _num_tokens(segment), placement.placed_s)

    def finished(self, candidate: Candidate) -> None:
        self._board.finished(candidate)

    def learn(self, answer: Answer) -> None:
        self._lengths.append(answer.usage.num_answer_tokens)

    def _choices(
        self, where: Where, exclude: Collection[Target], exclude_models: Collection[str], num_tokens: int
    ) -> list[Option]:
        known = [] if where == "cloud" else self._board.edges
        left = [option for option in known if num_tokens <= option.context_tokens]
        if exclude or exclude_models:
            left = [it for it in left if it.target not in exclude and it.target.model not in exclude_models]
        cloud = self._board.cloud
        if left or where == "edge" or cloud is None or not _fits(cloud, exclude, num_tokens):
            return left
        return [cloud]

    def _weigh(self, request: Request, num_prompt_tokens: int, cloud: Option, edges: list[Option]) -> Plan:
        plan = self._progressive(request, num_prompt_tokens, cloud, edges)
        if request.sampling.stop and request.mode != "edge":
            return replace(plan, mode="cloud", reason="stop strings bind one text from its start to its end")
        if request.mode is not None:
            return replace(plan, mode=request.mode, reason="asked for by the request")
        if cloud.num_outstanding >= cloud.max_inflight:
            return replace(plan, reason="the cloud is saturated: a sketch frees it sooner")
        if plan.t_progressive_s < plan.t_cloud_s * (1 - self._policy.margin):
            return replace(plan, reason="predicted to be faster by more than the margin")
        return replace(plan, mode="cloud", reason="a sketch is not predicted to be faster by the margin")

    def _progressive(self, request: Request, num_prompt_tokens: int, cloud: Option, edges: list[Option]) -> Plan:
        """The plan if the request is sketched, with the predicted times of all three modes."""
        policy, tokens = self._policy, self._expected_tokens(request)
        words = tokens / TOKENS_PER_WORD
        num_segments = max(1, min(policy.max_segments, round(words / policy.segment_words)))
        ends = _segment_times(edges, num_segments, tokens / num_segments, num_prompt_tokens)
        ratio = policy.sketch_ratio * self._flexed(cloud, edges)
        sketch_tokens = ratio * tokens
        start_s = wait_s(cloud) + prefill_s(cloud.curve, num_prompt_tokens)
        written_s = [decode_s(cloud, sketch_tokens * (j + 1) / num_segments) for j in range(num_segments)]
        return Plan(
            "progressive",
            "",
            t_cloud_s=finish_s(cloud, num_prompt_tokens, tokens),
            t_progressive_s=start_s + max(t_j + end for t_j, end in zip(written_s, ends, strict=True)),
            t_edge_s=min([option.finish_s(num_prompt_tokens, tokens) for option in edges]),
            sketch_words=max(10, round(ratio * words)),
            segment_words=policy.segment_words,
            max_segments=policy.max_segments,
            candidates=policy.candidates,
            answer_words=round(words),
        )

    def _flexed(self, cloud: Option, edges: Sequence[Option]) -> float:
        """How long a sketch is to be, to its usual length: less than 1 while the cloud is busier than the idlest site,
        more while that is. One site more never makes it more."""
        return 1 + self._policy.sketch_flex * (min(map(_busy, edges)) - _busy(cloud))

    def _expected_tokens(self, request: Request) -> float:
        assumed = self._policy.assumed_answer_words * TOKENS_PER_WORD
        return min(median(self._lengths) if self._lengths else assumed, request.sampling.max_tokens)


def _busy(option: Option) -> float:
    """The share of its sequences that are taken."""
    return min(1.0, option.num_outstanding / option.max_inflight)


def _num_tokens(segment: Segment) -> int:
    return round(segment.words * TOKENS_PER_WORD)


def prompt_size(segment: Segment) -> int:
    """A planning figure for the tokens of a segment's prompt: four bytes a token, and the frame around it. The engine
    has the last word, and what it refuses is placed elsewhere."""
    num_bytes = sum([_num_bytes(message.content) for message in segment.messages])
    num_bytes += sum([_num_bytes(point.text) for point in segment.sketch])
    return num_bytes // 4 + _SEGMENT_PROMPT_TOKENS


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())


def _segment_times(edges: list[Option], num_segments: int, tokens: float, num_prompt_tokens: int) -> list[float]:
    """Seconds each of the segments would take, placed one after another where it would be finished first."""
    prompt_tokens = num_prompt_tokens + _SEGMENT_PROMPT_TOKENS
    times = [option.finish_s(prompt_tokens, tokens) for option in edges]
    changed, ends = dict[int, Option](), list[float]()
    for _ in range(num_segments):
        ends.append(min(times))
        best = times.index(ends[-1])
        option = changed.setdefault(best, edges[best].copy())
        option.add(1, round(tokens))
        times[best] = option.finish_s(prompt_tokens, tokens)
    return ends


def _fits(option: Option, exclude: Collection[Target], num_tokens: int) -> bool:
    return option.target not in exclude and num_tokens <= option.context_tokens

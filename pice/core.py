"""The nouns of PICE: what a request becomes on its way to an answer.

All but a request's record are frozen dataclasses; nothing is imported from the package. Those that travel between
processes are given their wire tag in `pice.message.codec`; a new field goes last and has a default. Points in time
are seconds on the store's clock (`pice.store.base.Store.now`), the one clock that all nodes share.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
Mode = Literal["cloud", "edge", "progressive"]
FinishReason = Literal["stop", "length"]
PromptKind = Literal["answer", "sketch", "expand"]

CLOUD_SITE = "cloud"
"""Name of the site that stands for the cloud engine itself, so that falling back to it is an ordinary placement."""
NUM_SEEDS = 2**32 - 1
"""Seeds are 0 to one less than this: llama.cpp takes the last 32-bit number for "any seed"."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. Every field is sent to every engine: no server default may step in.

    `top_k` 0 is off; `seed` None lets the engine choose. A llama.cpp engine takes `repeat_penalty` over what was
    written, a vLLM server over the prompt too.
    """

    max_tokens: int = 1024
    temperature: float = 0.7
    top_p: float = 0.95
    top_k: int = 40
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked; the unit of latency.

    `timeout_s` counts from the moment the record is opened. `mode` None leaves the decision to the planner. `stream`
    says whether somebody wants to see its text while it is written.
    """

    request_id: str
    messages: tuple[Message, ...]
    sampling: Sampling = Sampling()
    timeout_s: float = 120.0
    mode: Mode | None = None
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an engine is given: the messages of one chat, ready for the model's own template.

    `kind` and `words` (asked for; 0 = not said) are for accounting and for emulated engines; `grammar` is a GBNF
    grammar the text must follow, "" for none.
    """

    messages: tuple[Message, ...]
    kind: PromptKind = "answer"
    words: int = 0
    grammar: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for one request.

    Times are predictions in seconds from the decision; 0 where nothing was predicted. `sketch_words` is the budget
    the sketch prompt names for the whole answer's outline, `segment_words` the size below which adjacent points
    are merged, `max_segments` how many may be made, `answer_words` the length expected of the answer.
    """

    mode: Mode
    reason: str
    t_cloud_s: float = 0.0
    t_progressive_s: float = 0.0
    t_edge_s: float = 0.0
    sketch_words: int = 0
    segment_words: int = 0
    max_segments: int = 1
    candidates: int = 1
    answer_words: int = 0


@dataclass(frozen=True, slots=True)
class Point:
    """One line of a sketch. `words` is the length its expansion deserves."""

    index: int
    text: str
    words: int


@dataclass(frozen=True, slots=True)
class Segment:
    """What one site expands: one or more adjacent points, or (`kind` "answer") a whole request.

    `sketch` holds the points known when the segment was released, its own included. `site` and `model` are set
    when it is placed. After `deadline_s` nobody wants it. `stream` is its request's.
    """

    request_id: str
    attempt: int
    index: int
    kind: PromptKind
    messages: tuple[Message, ...]
    sketch: tuple[Point, ...]
    points: tuple[Point, ...]
    words: int
    sampling: Sampling
    deadline_s: float
    site: str = ""
    model: str = ""
    stream: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a segment was sent, when, and when its candidate is expected."""

    site: str
    model: str
    placed_s: float
    expected_s: float
    reason: str = "first"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model's text for one segment, or (`error` set) the news that there will be none.

    Identity is `(request_id, attempt, index, site, model)`. Log-probabilities are natural, of the chosen tokens,
    under the model's own distribution; None where the engine gives none.
    """

    request_id: str
    attempt: int
    index: int
    site: str
    model: str
    text: str
    finish_reason: FinishReason = "stop"
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    logprob_mean: float | None = None
    logprob_min: float | None = None
    queue_s: float = 0.0
    service_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate with its confidence (higher is better), the terms of that sum and any hard failures."""

    candidate: Candidate
    confidence: float
    terms: Mapping[str, float] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """A segment's part of the answer: the chosen text, where it came from and what lost."""

    index: int
    text: str
    site: str
    model: str
    confidence: float
    finish_reason: FinishReason = "stop"
    degraded: bool = False
    points: tuple[Point, ...] = ()
    placements: tuple[Placement, ...] = ()
    candidates: tuple[Scored, ...] = ()
    chosen_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by where they were spent. `num_edge_output_tokens` includes `num_discarded_tokens`, those written by edge
    candidates that lost."""

    num_cloud_prompt_tokens: int = 0
    num_cloud_output_tokens: int = 0
    num_edge_prompt_tokens: int = 0
    num_edge_output_tokens: int = 0
    num_discarded_tokens: int = 0
    num_answer_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Times:
    """Intervals in seconds since the record was opened; 0 where it did not happen.

    `ttft_s` is the first text of the answer itself that could be shown, in order; `sketch_s` is when the whole
    sketch was known.
    """

    queue_s: float = 0.0
    sketch_s: float = 0.0
    first_segment_s: float = 0.0
    ttft_s: float = 0.0
    e2e_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the user gets, with where each part came from."""

    request_id: str
    text: str
    mode: Mode
    finish_reason: FinishReason
    attempt: int
    plan: Plan
    sketch: tuple[Point, ...] = ()
    spans: tuple[Span, ...] = ()
    degraded: tuple[int, ...] = ()
    usage: Usage = Usage()
    times: Times = Times()


@dataclass(frozen=True, slots=True)
class Failure:
    """How a request ended that has no answer. `code` is one of the codes in `pice.errors`."""

    request_id: str
    code: str
    message: str
    retriable: bool = False


EventKind = Literal[
    "planned",
    "sketch_text",
    "answer_text",
    "segment_released",
    "segment_text",
    "segment_chosen",
    "answered",
    "failed",
]


@dataclass(frozen=True, slots=True)
class Event:
    """Something a user may want to see as it happens. The last of a request is `answered` or `failed`.

    `text` is a delta. An event of a later attempt makes everything of earlier attempts void.
    """

    request_id: str
    kind: EventKind
    at_s: float
    attempt: int = 0
    index: int = -1
    text: str = ""
    site: str = ""
    model: str = ""
    confidence: float = 0.0
    points: tuple[Point, ...] = ()
    plan: Plan | None = None
    answer: Answer | None = None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """How long an engine takes, measured or assumed.

    `step_s[i]` is the time of one decode step of the whole batch at batch size `batch[i]` (both ascending, at
    least one entry); `prefill_s_per_token` and `base_s` give the time to first token: base + prompt tokens x rate.
    """

    batch: tuple[int, ...]
    step_s: tuple[float, ...]
    prefill_s_per_token: float = 0.0
    base_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelState:
    """A model at a site: what it can take, how fast it is and how much waits for it.

    `num_outstanding` generations are queued or running; `backlog_tokens` of output they have still to write.
    """

    model: str
    context_tokens: int
    max_inflight: int
    curve: Curve
    num_outstanding: int = 0
    backlog_tokens: int = 0


@dataclass(frozen=True, slots=True)
class SiteState:
    """A site's heartbeat: where its segments go and what it runs.

    `rtt_s` is the round trip to it, `token` that of the lease under which it is served; 0 where there is none.
    """

    site: str
    pool: str
    partition: int
    models: tuple[ModelState, ...]
    at_s: float
    rtt_s: float = 0.0
    draining: bool = False
    token: int = 0


@dataclass(slots=True)
class SegmentRecord:
    """What is known of one segment. Candidates are kept by `(site, model)`."""

    segment: Segment
    placements: list[Placement] = field(default_factory=list)
    candidates: dict[tuple[str, str], Candidate] = field(default_factory=dict)
    choice: Span | None = None


@dataclass(slots=True)
class Record:
    """One request and all that became of it so far. Callers read it and change it only through the store.

    `num_segments` is None until the sketch is finished. Points in time are on the store's clock.
    """

    request: Request
    opened_s: float
    deadline_s: float
    attempt: int = 0
    begun_s: float = 0.0
    plan: Plan | None = None
    sketch: tuple[Point, ...] = ()
    sketch_prompt_tokens: int = 0
    sketch_output_tokens: int = 0
    sealed_s: float = 0.0
    sketch_cut: bool = False
    num_segments: int | None = None
    segments: dict[int, SegmentRecord] = field(default_factory=dict)
    outcome: Answer | Failure | None = None


@dataclass(frozen=True, slots=True)
class JobLine:
    """One line of a batch job, as it stood in its file at line `number`, counted from 1."""

    job_id: str
    number: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Job:
    """A file of requests that is answered through the queue, and how far that is.

    `source` is the file's SHA-256, `num_lines` how many results there will be. Points in time are seconds on the job
    store's clock, None for what has not happened: all lines are in the queue, the last result came, it was cancelled.
    """

    job_id: str
    name: str
    source: str
    num_lines: int
    created_s: float = 0.0
    sealed_s: float | None = None
    ended_s: float | None = None
    cancelled_s: float | None = None
    num_answered: int = 0
    num_failed: int = 0

    @property
    def num_left(self) -> int:
        """Lines without a result."""
        return self.num_lines - self.num_answered - self.num_failed

    @property
    def is_open(self) -> bool:
        """Whether results are still to come."""
        return self.ended_s is None and self.cancelled_s is None

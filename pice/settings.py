"""The shape of a configuration: every option, its default and its bounds. `pice.config` loads it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from pice.core import CLOUD_SITE, Curve
from pice.message.codec import MAX_BYTES

NAME_RULE = "a-z, 0-9 and '-', at most 40 characters"


def _name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9-]{1,40}", text):
        raise ValueError(f"is no name: names are made of {NAME_RULE}")
    return text


def _site_name(text: str) -> str:
    if text == CLOUD_SITE:
        raise ValueError(f"is reserved: {CLOUD_SITE!r} is the site, and the pool, of the cloud engine itself")
    return _name(text)


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/]\S*", text):
        raise ValueError(f"must be an http:// or https:// address, got {text!r}")
    return text.rstrip("/")


def _range(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError(f"must be [least, most], got {list(pair)}")
    return pair


Name = Annotated[str, AfterValidator(_name)]
SiteName = Annotated[str, AfterValidator(_site_name)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[Count, Count], AfterValidator(_range)]


class Section(BaseModel):
    """A table of the file. Unknown keys are refused; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


class CurveSettings(Section):
    """How long an engine takes; see `pice.core.Curve`. An emulated engine whose times are all 0 does not wait."""

    batch: Annotated[tuple[Count, ...], Field(min_length=1)]
    step_s: Annotated[tuple[Annotated[float, Field(ge=0, le=600)], ...], Field(min_length=1)]
    prefill_s_per_token: float = Field(default=0.0, ge=0, le=10)
    base_s: float = Field(default=0.0, ge=0, le=600)

    @model_validator(mode="after")
    def _one_time_per_batch(self) -> "CurveSettings":
        if len(self.batch) != len(self.step_s):
            raise ValueError(
                f"must have one step_s per batch size, got {len(self.batch)} sizes and {len(self.step_s)} times"
            )
        if list(self.batch) != sorted(set(self.batch)) or list(self.step_s) != sorted(self.step_s):
            raise ValueError("must have batch and step_s in ascending order: a larger batch takes no less time a step")
        return self

    def curve(self) -> Curve:
        return Curve(self.batch, self.step_s, self.prefill_s_per_token, self.base_s)


class StyleSettings(Section):
    """What an emulated model writes; see `pice.engine.emulated.TextStyle`. Pairs are an inclusive range."""

    points: Range = (5, 7)
    words_per_point: Range = (30, 80)
    answer_words: Range = (200, 400)
    direct_rate: Share = 0.0
    fidelity: Share = 0.6


class EmulatedSettings(Section):
    """An engine that writes by the clock and a seed, with no model behind it."""

    kind: Literal["emulated"]
    model: str = Field(default="emulated", min_length=1)
    curve: CurveSettings
    seed: int = 0
    context_tokens: int = Field(default=4096, ge=64)
    max_inflight: int = Field(default=8, ge=1, le=1024)
    piece_tokens: int = Field(default=1, ge=1, le=64)
    style: StyleSettings = StyleSettings()

    @property
    def num_at_once(self) -> int:
        """How many generations are worked on at once."""
        return self.max_inflight


class LlamaCppSettings(Section):
    """A GGUF file, run on this machine. `n_threads` 0 shares the cores among the configured engines; with `isolation`
    "process" a model that brings llama.cpp down takes nothing else with it."""

    kind: Literal["llama_cpp"]
    path: Path
    n_ctx: int = Field(default=8192, ge=256, le=1 << 22)
    n_seq_max: int = Field(default=8, ge=1, le=224)
    n_threads: int = Field(default=0, ge=0, le=1024)
    n_batch: int = Field(default=512, ge=32, le=1 << 16)
    n_ubatch: int = Field(default=512, ge=32, le=1 << 16)
    n_gpu_layers: int = Field(default=-1, ge=-1, le=1 << 22)
    kv_type: Literal["f32", "f16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"] = "f16"
    flash_attn: Literal["auto", "on", "off"] = "auto"
    mmap: bool = True
    prefix_cache_tokens: int | None = Field(default=None, ge=0)
    chat_template: str = ""
    isolation: Literal["process", "thread"] = "process"
    curve: CurveSettings | None = None

    @model_validator(mode="after")
    def _a_batch_holds_a_token_of_each(self) -> "LlamaCppSettings":
        if self.n_seq_max > self.n_batch:
            raise ValueError(f"must have n_seq_max <= n_batch, got {self.n_seq_max} > {self.n_batch}")
        return self

    @property
    def model(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def num_at_once(self) -> int:
        """How many generations are worked on at once."""
        return self.n_seq_max


class OpenAISettings(Section):
    """A server that speaks the OpenAI chat completions format."""

    kind: Literal["openai"]
    base_url: HttpUrl
    model: str = Field(min_length=1)
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    context_tokens: int = Field(default=4096, ge=64)
    max_inflight: int = Field(default=32, ge=1, le=4096)
    connect_timeout_s: Seconds = 5.0
    first_token_timeout_s: Seconds = 60.0
    between_tokens_timeout_s: Seconds = 30.0
    max_retries: int = Field(default=2, ge=0, le=10)
    dialect: Literal["vllm", "openai"] = "vllm"
    extra_body: dict[str, Any] = {}
    curve: CurveSettings | None = None

    @model_validator(mode="after")
    def _one_key(self) -> "OpenAISettings":
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("must have api_key or api_key_file, not both")
        return self

    @property
    def num_at_once(self) -> int:
        """How many generations are worked on at once."""
        return self.max_inflight


EngineSettings = Annotated[EmulatedSettings | LlamaCppSettings | OpenAISettings, Field(discriminator="kind")]


class CloudSettings(Section):
    """The cloud model. `max_inflight` requests are worked on at once; `sketch_grammar` holds a sketch that was asked
    for to its form, for models too weak to keep to it."""

    engine: Name
    prompts: str = "default"
    sketch_grammar: bool = False
    max_inflight: int = Field(default=16, ge=1, le=4096)
    drain_s: Seconds = 30.0


class SiteSettings(Section):
    """An edge site. It pulls `window` segments ahead and takes them in `order`."""

    engines: Annotated[tuple[Name, ...], Field(min_length=1)]
    pool: SiteName = "main"
    prompts: str = "default"
    rtt_s: float = Field(default=0.0, ge=0, le=60)
    window: int = Field(default=32, ge=1, le=4096)
    order: Literal["multilist", "fcfs", "longest"] = "multilist"


class PlannerSettings(Section):
    """When to sketch and how to cut.

    `margin` is the share of the cloud's time by which the sketch path must beat it; `sketch_ratio` the length of a
    sketch against its answer's. A segment is hedged when it takes `hedge_factor` times what was predicted, and
    no sooner than `hedge_min_s`. `eager` releases segments while the sketch is still being written; fewer
    `max_segments` than `max_points` leave a long last segment then, since it takes all the rest. Each segment is sent
    to `candidates` models at once.
    """

    margin: Share = 0.1
    segment_words: int = Field(default=60, ge=1, le=4096)
    max_segments: int = Field(default=24, ge=1, le=256)
    max_points: int = Field(default=24, ge=1, le=256)
    sketch_ratio: float = Field(default=0.2, gt=0, lt=1)
    hedge_factor: float = Field(default=2.0, ge=1)
    hedge_min_s: Seconds = 2.0
    assumed_answer_words: int = Field(default=250, ge=1, le=100_000)
    eager: bool = True
    candidates: int = Field(default=1, ge=1, le=8)


class WeightSettings(Section):
    """What each term counts in a candidate's confidence. Only their ratios matter."""

    logprob: float = Field(default=0.3, ge=0)
    length: float = Field(default=0.2, ge=0)
    overlap: float = Field(default=0.3, ge=0)
    agreement: float = Field(default=0.2, ge=0)

    @model_validator(mode="after")
    def _something_counts(self) -> "WeightSettings":
        if self.logprob + self.length + self.overlap + self.agreement <= 0:
            raise ValueError("must not all be 0")
        return self


class EnsembleSettings(Section):
    """How many candidates a segment gets: a second one only when the first's confidence is below the bound."""

    weights: WeightSettings = WeightSettings()
    max_candidates: int = Field(default=2, ge=1, le=8)
    second_opinion_below: Share = 0.35


class LimitSettings(Section):
    """Bounds (P7). `record_ttl_s` is how long a finished request can still be read."""

    max_open_requests: Count = 1024
    max_message_bytes: int = Field(default=MAX_BYTES, ge=1024, le=MAX_BYTES)
    max_deliveries: int = Field(default=5, ge=1, le=100)
    request_timeout_s: Seconds = 120.0
    record_ttl_s: Seconds = 600.0
    drain_s: Seconds = 10.0


class Settings(Section):
    """A whole configuration."""

    engines: dict[Name, EngineSettings]
    cloud: CloudSettings
    sites: dict[SiteName, SiteSettings] = {}
    planner: PlannerSettings = PlannerSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    limits: LimitSettings = LimitSettings()

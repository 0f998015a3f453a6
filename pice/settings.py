"""The shape of a configuration: every option, its default and its bounds. `pice.config` loads it."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

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


def _redis_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ValueError("must look like redis://host:6379/0, or rediss: for TLS")
    if parts.password:
        raise ValueError("must hold no password: put that in redis.password or redis.password_file")
    if parts.query or parts.fragment:
        raise ValueError("must end with the database: no options after it")
    return text


def _secret(given: SecretStr) -> SecretStr:
    if not given.get_secret_value().strip():
        raise ValueError("must not be empty: leave it out where there is none")
    return given


def _servers(text: str) -> str:
    for server in text.split(","):
        host, colon, port = server.strip().rpartition(":")
        if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(f"must be HOST:PORT, several by comma, got {text!r}")
    return text


def _range(pair: tuple[int, int]) -> tuple[int, int]:
    if pair[0] > pair[1]:
        raise ValueError(f"must be [least, most], got {list(pair)}")
    return pair


Name = Annotated[str, AfterValidator(_name)]
SiteName = Annotated[str, AfterValidator(_site_name)]
HttpUrl = Annotated[str, AfterValidator(_http_url)]
RedisUrl = Annotated[str, AfterValidator(_redis_url)]
Servers = Annotated[str, AfterValidator(_servers)]
Secret = Annotated[SecretStr, AfterValidator(_secret)]
Prefix = Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,60}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Count = Annotated[int, Field(ge=1)]
Range = Annotated[tuple[Count, Count], AfterValidator(_range)]


class Section(BaseModel):
    """A table of the file. Unknown keys are refused; numbers are finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, coerce_numbers_to_str=True)


S = TypeVar("S", bound=Section)


def _at_most_one(section: S, secret: str, file: str) -> S:
    if getattr(section, secret) is not None and getattr(section, file) is not None:
        raise ValueError(f"must have {secret} or {file}, not both")
    return section


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
        return _at_most_one(self, "api_key", "api_key_file")

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
    """An edge site. It pulls `window` segments ahead and takes them in `order`. With its key it signs what it writes;
    see `SecuritySettings`."""

    engines: Annotated[tuple[Name, ...], Field(min_length=1)]
    pool: SiteName = "main"
    prompts: str = "default"
    rtt_s: float = Field(default=0.0, ge=0, le=60)
    window: int = Field(default=32, ge=1, le=4096)
    order: Literal["multilist", "fcfs", "longest"] = "multilist"
    key: Secret | None = None
    key_file: Path | None = None

    @model_validator(mode="after")
    def _one_key(self) -> "SiteSettings":
        return _at_most_one(self, "key", "key_file")


class PlannerSettings(Section):
    """When to sketch and how to cut.

    `margin` is the share of the cloud's time by which the sketch path must beat it; `sketch_ratio` the length of a
    sketch against its answer's, less by up to `sketch_flex` of it while the cloud is busier than the idlest site, and
    more while that is. A segment is hedged when it takes `hedge_factor` times what was predicted, and no sooner than
    `hedge_min_s`. `eager` releases segments while the sketch is still being written; fewer
    `max_segments` than `max_points` leave a long last segment then, since it takes all the rest. Each segment is sent
    to `candidates` models at once.
    """

    margin: Share = 0.1
    segment_words: int = Field(default=60, ge=1, le=4096)
    max_segments: int = Field(default=24, ge=1, le=256)
    max_points: int = Field(default=24, ge=1, le=256)
    sketch_ratio: float = Field(default=0.2, gt=0, lt=1)
    sketch_flex: float = Field(default=0.25, ge=0, lt=1)
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


class KafkaSettings(Section):
    """The brokers that carry requests and segments. `prefix` stands before the names of topics and groups, so that
    several PICEs can share them; a topic that is made has `num_partitions` (segments: one for each site)."""

    bootstrap_servers: Servers
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    ca_file: Path | None = None
    cert_file: Path | None = None
    cert_key_file: Path | None = None
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password: Secret | None = None
    password_file: Path | None = None
    prefix: Prefix = ""
    num_partitions: int = Field(default=8, ge=1, le=1024)
    replication_factor: int = Field(default=-1, ge=-1, le=16)

    @model_validator(mode="after")
    def _credentials_fit_the_protocol(self) -> "KafkaSettings":
        _at_most_one(self, "password", "password_file")
        given = bool(self.username) and (self.password is not None or self.password_file is not None)
        if self.security_protocol.startswith("SASL") and not given:
            raise ValueError(f"must have username and password (or password_file) for {self.security_protocol}")
        if not self.security_protocol.startswith("SASL") and (self.username or self.password or self.password_file):
            raise ValueError(
                f"must have no username and password with {self.security_protocol}: they would not be used"
            )
        if (self.cert_file is None) != (self.cert_key_file is None):
            raise ValueError("must have cert_file and cert_key_file together")
        if not self.security_protocol.endswith("SSL") and (self.ca_file or self.cert_file):
            raise ValueError(f"must have no ca_file and cert_file with {self.security_protocol}")
        return self


class RedisSettings(Section):
    """Where records, candidates and events are kept. The user's name stands in `url`, the password here. `prefix`
    begins every key, so that several PICEs can share a Redis."""

    url: RedisUrl
    password: Secret | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,60}$")] = "pice"
    max_candidates: Count = 65_536

    @model_validator(mode="after")
    def _credentials_fit_the_address(self) -> "RedisSettings":
        if self.ca_file and not self.url.startswith("rediss:"):
            raise ValueError("must have no ca_file without TLS: the url of a server with TLS begins with rediss:")
        return _at_most_one(self, "password", "password_file")


class SecuritySettings(Section):
    """The secret from which the key of every site follows; for cloud nodes and collectors alone. A site has its own
    key (`sites.NAME.key_file`). Without, candidates are not signed, and a site is believed to be who it says."""

    secret: Secret | None = None
    secret_file: Path | None = None

    @model_validator(mode="after")
    def _one_secret(self) -> "SecuritySettings":
        return _at_most_one(self, "secret", "secret_file")


class ServiceSettings(Section):
    """What services have in common. `health_port` 0 takes any that is free; a site's lease lapses after `lease_s`
    without a sign of life of its holder."""

    health_host: str = "127.0.0.1"
    health_port: int = Field(default=0, ge=0, le=65535)
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    lease_s: float = Field(default=10.0, ge=1, le=600)


class JobSettings(Section):
    """Batch jobs in the queue: lines asked at once by one runner, and how long results are kept."""

    max_inflight: int = Field(default=64, ge=1, le=4096)
    keep_s: float = Field(default=7 * 86_400.0, gt=0, le=365 * 86_400)


class Settings(Section):
    """A whole configuration. With `kafka` and `redis` it describes services in several processes: each reads the same
    file, uses its own part of it and starts its own engines. Without, all runs in one process."""

    engines: dict[Name, EngineSettings]
    cloud: CloudSettings
    sites: dict[SiteName, SiteSettings] = {}
    planner: PlannerSettings = PlannerSettings()
    ensemble: EnsembleSettings = EnsembleSettings()
    limits: LimitSettings = LimitSettings()
    kafka: KafkaSettings | None = None
    redis: RedisSettings | None = None
    security: SecuritySettings = SecuritySettings()
    service: ServiceSettings = ServiceSettings()
    jobs: JobSettings = JobSettings()

"""The body of a chat completion request: what PICE honours, and a refusal by name of everything else."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from pice.core import NUM_SEEDS, Message, Mode, Sampling

UNSUPPORTED = "unsupported_parameter"
"""Type of the validation errors that say: understood, but PICE cannot do that."""

_DEFAULT = Sampling()


def _joined(content: object) -> object:
    """Text of a list of text parts, one part per line; anything but a list as it came."""
    if not isinstance(content, list):
        return content
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            shown = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise PydanticCustomError(
                UNSUPPORTED,
                'must be a string or parts like {"type": "text", "text": "..."}, got {got}',
                {"got": shown},
            )
    return "\n".join(part["text"] for part in content)


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


Text = Annotated[str, BeforeValidator(_joined)]
Stops = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_as_list)]


class Strict(BaseModel):
    """An object in which null means absent and unknown keys are refused, but for those that change nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Keys accepted with any value: they do not touch the answer."""

    neutral: ClassVar[dict[str, tuple[object, ...]]] = {}
    """Keys accepted only with the values that ask for what PICE does anyway."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_asks_for_nothing(cls, given: Any) -> Any:
        return {key: value for key, value in given.items() if cls._asks(key, value)} if type(given) is dict else given

    @classmethod
    def _asks(cls, key: str, value: object) -> bool:
        return (
            value is not None
            and key not in cls.harmless
            and not any(type(value) is type(neutral) and value == neutral for neutral in cls.neutral.get(key, ()))
        )


class Turn(Strict):
    """One message."""

    neutral: ClassVar[dict[str, tuple[object, ...]]] = {"tool_calls": ([],), "annotations": ([],)}

    role: Literal["system", "developer", "user", "assistant"]
    content: Text

    def message(self) -> Message:
        return Message("system" if self.role == "developer" else self.role, self.content)


class PiceOptions(Strict):
    """The `pice` object of a body: our own options."""

    mode: Mode | None = None
    timeout_s: float | None = Field(default=None, gt=0, le=86_400)


class Body(Strict):
    """A chat completion request, checked."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
    )
    neutral: ClassVar[dict[str, tuple[object, ...]]] = {
        "n": (1,),
        "stream": (False,),
        "logprobs": (False,),
        "top_logprobs": (0,),
        "logit_bias": ({},),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "parallel_tool_calls": (True, False),
        "response_format": ({"type": "text"},),
        "modalities": (["text"],),
    }

    model: str = Field(min_length=1)
    messages: list[Turn] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=_DEFAULT.temperature, ge=0, le=2)
    top_p: float = Field(default=_DEFAULT.top_p, gt=0, le=1)
    top_k: int = Field(default=_DEFAULT.top_k, ge=-1)
    min_p: float = Field(default=_DEFAULT.min_p, ge=0, le=1)
    repetition_penalty: float = Field(default=_DEFAULT.repeat_penalty, gt=0, le=2)
    presence_penalty: float = Field(default=_DEFAULT.presence_penalty, ge=-2, le=2)
    frequency_penalty: float = Field(default=_DEFAULT.frequency_penalty, ge=-2, le=2)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Stops = []
    pice: PiceOptions = PiceOptions()

    @field_validator("messages")
    @classmethod
    def _somebody_asks_something(cls, turns: list[Turn]) -> list[Turn]:
        asked = [turn for turn in turns if turn.role == "user"]
        if not asked or turns[-1].role == "assistant":
            raise PydanticCustomError("no_question", "must ask: a message of role user, and the assistant's not last")
        if any(not turn.content.strip() for turn in asked):
            raise PydanticCustomError(
                "empty_question", "must have text in every message of role user, got an empty one"
            )
        return turns

    @field_validator("max_completion_tokens")
    @classmethod
    def _one_limit(cls, limit: int | None, info: ValidationInfo) -> int | None:
        if info.data.get("max_tokens") not in (None, limit):
            raise PydanticCustomError("two_limits", "must equal max_tokens where both are given")
        return limit

    def sampling(self) -> Sampling:
        """How tokens are to be drawn; `top_k` -1 (vLLM's way of saying off) becomes 0, a seed one of `NUM_SEEDS`."""
        return Sampling(
            max_tokens=self.max_completion_tokens or self.max_tokens or _DEFAULT.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(self.top_k, 0),
            min_p=self.min_p,
            repeat_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else self.seed % NUM_SEEDS,
            stop=tuple(self.stop),
        )

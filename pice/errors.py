"""Everything PICE raises on purpose.

    PiceError
    +-- ConfigError             a setting is wrong; says file, key, what was expected
    +-- InputError              what the user sent is wrong; nothing was started
    |   +-- PromptTooLong       the prompt does not fit the model's context
    |   +-- UnsupportedParameter
    +-- DecodeError             bytes that are no message of ours
    +-- EngineError             an engine could not write the text
    |   +-- ModelLoadError      a model file or server cannot be used at all
    |   +-- EngineUnavailable   down, overloaded or restarting; another try may work      (retriable)
    +-- TransportError          the queue could not take or give a message                (retriable)
    |   +-- NoSite              no site is up that can take the work
    |   +-- MessageTooLarge
    |   +-- Full                a bound is reached; says when to come back
    +-- OutputLost              a result could not be written; says what is kept
    +-- RequestFailed           the request ended without an answer
        +-- Overloaded          refused at the door; says when to come back               (retriable)
        +-- Unavailable         something it needs is down; another try may work          (retriable)
        +-- DeadlineExceeded
        +-- Cancelled

`retriable` says whether the same call may work later; `code` is the stable name that people and HTTP clients see.
"""

from typing import ClassVar


class PiceError(Exception):
    """Base of all errors this package raises on purpose."""

    code: ClassVar[str] = "internal_error"
    retriable: ClassVar[bool] = False


class ConfigError(PiceError):
    code = "invalid_config"


class InputError(PiceError):
    code = "invalid_request"


class PromptTooLong(InputError):
    """The prompt (and what must be written after it) does not fit the model's context."""

    code = "context_length_exceeded"

    def __init__(self, *, model: str, num_prompt_tokens: int, max_tokens: int, context_tokens: int) -> None:
        super().__init__(
            f"the prompt has {num_prompt_tokens} tokens and asks for {max_tokens} more, but {model} has a context "
            f"of {context_tokens}: shorten the prompt, ask for fewer tokens or use a model with a longer context"
        )
        self.model = model
        self.num_prompt_tokens = num_prompt_tokens
        self.max_tokens = max_tokens
        self.context_tokens = context_tokens


class UnsupportedParameter(InputError):
    code = "unsupported_parameter"

    def __init__(self, param: str, message: str) -> None:
        super().__init__(message)
        self.param = param


class DecodeError(PiceError):
    code = "undecodable_message"


class EngineError(PiceError):
    code = "engine_error"


class ModelLoadError(EngineError):
    code = "model_unusable"


class EngineUnavailable(EngineError):
    code = "engine_unavailable"
    retriable = True


class TransportError(PiceError):
    code = "transport_error"
    retriable = True


class NoSite(TransportError):
    code = "edge_unavailable"


class MessageTooLarge(TransportError):
    code = "message_too_large"
    retriable = False


class Full(TransportError):
    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OutputLost(PiceError):
    """A result could not be written. All lines before it are whole and kept."""

    code = "output_lost"


class RequestFailed(PiceError):
    """The request ended without an answer. `failure_code` names the cause."""

    code = "request_failed"

    def __init__(self, message: str, *, failure_code: str = "request_failed") -> None:
        super().__init__(message)
        self.failure_code = failure_code


class Overloaded(RequestFailed):
    code = "queue_full"
    retriable = True

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message, failure_code=self.code)
        self.retry_after_s = retry_after_s


class Unavailable(RequestFailed):
    """Something the request needs is down; `failure_code` names it."""

    retriable = True


class DeadlineExceeded(RequestFailed):
    code = "deadline_exceeded"

    def __init__(self, message: str) -> None:
        super().__init__(message, failure_code=self.code)


class Cancelled(RequestFailed):
    code = "cancelled"

    def __init__(self, message: str) -> None:
        super().__init__(message, failure_code=self.code)

"""How much an engine has still to write: the figure that placement decides by."""

from dataclasses import dataclass

from pice.core import ModelState
from pice.engine.base import EngineInfo


@dataclass(slots=True)
class Load:
    """Generations given to one engine that are not finished. Each is a `Share`."""

    num_outstanding: int = 0
    backlog_tokens: int = 0

    def add(self, num_tokens: int) -> "Share":
        """A generation that is expected to write `num_tokens`."""
        self.num_outstanding += 1
        self.backlog_tokens += num_tokens
        return Share(self, num_tokens)

    def state(self, info: EngineInfo) -> ModelState:
        return ModelState(
            info.model, info.context_tokens, info.max_inflight, info.curve, self.num_outstanding, self.backlog_tokens
        )


@dataclass(slots=True)
class Share:
    """One generation's part of a load; counts down as it writes."""

    load: Load
    left: int
    ended: bool = False

    def wrote(self, num_tokens: int) -> None:
        done = min(num_tokens, self.left)
        self.left -= done
        self.load.backlog_tokens -= done

    def end(self) -> None:
        """Finished, failed or dropped; calling it again changes nothing."""
        if not self.ended:
            self.ended = True
            self.load.num_outstanding -= 1
            self.wrote(self.left)

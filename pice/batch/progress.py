"""How far a batch is."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of input lines. Those `_before` were finished by a former run; rates are of this run alone."""

    total: int
    answered_before: int = 0
    failed_before: int = 0
    answered: int = 0
    failed: int = 0
    num_output_tokens: int = 0
    elapsed_s: float = 0.0

    @property
    def finished(self) -> int:
        """Lines that have their result, whichever run wrote it."""
        return self.answered_before + self.failed_before + self.answered + self.failed

    @property
    def left(self) -> int:
        return self.total - self.finished

    @property
    def requests_per_s(self) -> float:
        return (self.answered + self.failed) / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def output_tokens_per_s(self) -> float:
        return self.num_output_tokens / self.elapsed_s if self.elapsed_s > 0 else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds until the last line is finished at the rate so far; None while there is no rate."""
        return self.left / self.requests_per_s if self.requests_per_s > 0 else None

"""How many threads an engine computes with, by how long its steps take.

Threads meet at a barrier after every operation and spin there. Where something else takes one of their cores, each
barrier waits for the thread that has lost it: two threads on two cores went from 92 tokens a second to 0.7 beside one
busy program, one thread from 69 to 65. So now and then a few steps are made with fewer threads, or with more again,
and what was faster stays. What is computed does not depend on it, as far as was seen.
"""

from dataclasses import dataclass, field
from statistics import median

TRIAL_STEPS, TRIAL_S = 3, 0.3
"""Steps by which two settings are compared; fewer if they take so long together."""
MUCH_SLOWER = 3.0
"""A step that takes so many times its usual time says that something is wrong."""
FASTER = 0.95
"""Of the time as it is now: what takes less is worth a change."""
FIRST_TRIAL_S, LAST_TRIAL_S = 0.5, 64.0
"""Between trials: doubled with each that changed nothing."""


@dataclass(slots=True)
class Pace:
    """Of one engine with at most `num_threads`. Points in time are seconds on any clock."""

    num_threads: int
    ladder: tuple[int, ...] = ()
    rung: int = 0
    _recent_s: dict[int, list[float]] = field(default_factory=dict)
    _trial: int | None = None
    _tried_s: list[float] = field(default_factory=list)
    _num_tokens: int = 0
    _every_s: float = FIRST_TRIAL_S
    _next_s: float | None = None
    _num_slow: int = 0

    def __post_init__(self) -> None:
        most = self.num_threads
        self.ladder = tuple(sorted({most, -(-most * 3 // 4) if most > 2 else 1, most // 2 or 1, 1}, reverse=True))

    @property
    def now_threads(self) -> int:
        """With how many the next step is to be made."""
        return self.ladder[self.rung if self._trial is None else self._trial]

    def observe(self, num_tokens: int, step_s: float, at_s: float) -> None:
        """Notes a step that evaluated one token of each of `num_tokens` sequences and ended at `at_s`."""
        if len(self.ladder) == 1:
            return
        if self._next_s is None:
            self._next_s = at_s + self._every_s
        if self._trial is None:
            self._note(num_tokens, step_s, at_s)
        elif num_tokens != self._num_tokens:
            self._trial = None
        else:
            self._compare(step_s, at_s)

    def _note(self, num_tokens: int, step_s: float, at_s: float) -> None:
        recent = self._recent_s.setdefault(num_tokens, [])
        is_slow = _is_enough(recent) and step_s > MUCH_SLOWER * median(recent)
        self._num_slow = self._num_slow + 1 if is_slow else 0
        if not is_slow:
            recent.append(step_s)
            del recent[:-TRIAL_STEPS]
        assert self._next_s is not None
        if self._num_slow > 1:
            self._recent_s[num_tokens] = [step_s]
            self._begin_trial(num_tokens, down=True)
        elif at_s >= self._next_s and _is_enough(recent):
            self._begin_trial(num_tokens, down=self.rung == 0)

    def _begin_trial(self, num_tokens: int, *, down: bool) -> None:
        self._num_slow = 0
        rung = self.rung + 1 if down else self.rung - 1
        if rung < len(self.ladder):
            self._trial, self._num_tokens, self._tried_s = rung, num_tokens, []

    def _compare(self, step_s: float, at_s: float) -> None:
        """Of one setting's steps with the other's; one very slow step is enough to give it up."""
        assert self._trial is not None
        usual_s = median(self._recent_s[self._num_tokens])
        self._tried_s.append(step_s)
        if step_s > MUCH_SLOWER * usual_s:
            self._end_trial(at_s)
        elif _is_enough(self._tried_s):
            if median(self._tried_s) < FASTER * usual_s:
                self._change()
            self._end_trial(at_s)

    def _change(self) -> None:
        assert self._trial is not None
        self.rung, self._every_s = self._trial, FIRST_TRIAL_S / 2
        self._recent_s = {self._num_tokens: self._tried_s}

    def _end_trial(self, at_s: float) -> None:
        self._trial = None
        self._every_s = min(LAST_TRIAL_S, 2 * self._every_s)
        self._next_s = at_s + self._every_s


def _is_enough(steps_s: list[float]) -> bool:
    return len(steps_s) == TRIAL_STEPS or sum(steps_s) > TRIAL_S

"""The planner port: the decisions, free of clocks, queues and engines."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pice.core import Answer, Candidate, Placement, Plan, Request, Segment, SiteState

TOKENS_PER_WORD = 1.4
"""Tokens an average word takes; the share of a token above one is for punctuation and split words. A planning
figure only: budgets sent to engines come from `pice.sketch.segments.token_budget`."""


Where = Literal["anywhere", "edge", "cloud"]


@dataclass(frozen=True, slots=True, order=True)
class Target:
    """A model at a site, as named in a placement."""

    site: str
    model: str


class Planner(Protocol):
    """Decides for one node. Same calls in the same order give the same decisions; no call waits or does I/O."""

    def see(self, sites: Sequence[SiteState]) -> None:
        """Takes the latest heartbeats; what was placed since each was sent still counts on top of it."""
        ...

    def decide(self, request: Request, num_prompt_tokens: int) -> Plan:
        """The plan of a request. Never knowingly slower than answering at the cloud."""
        ...

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
        """Where a segment is expected to be finished first, of what `where` allows: "anywhere" means the edge, and
        the cloud only if no edge site is left. None when no model that is not excluded can take it."""
        ...

    def withdraw(self, segment: Segment, placement: Placement) -> None:
        """A placement that was given was not carried out."""
        ...

    def address(self, site: str) -> tuple[str, int]:
        """Pool and partition of a site that was seen. Raises KeyError for one that never was."""
        ...

    def finished(self, candidate: Candidate) -> None:
        """A candidate came back: its site has that much less to do."""
        ...

    def learn(self, answer: Answer) -> None:
        """A request ended: what it took informs later plans."""
        ...

"""What nodes tell of their work, for whoever counts it."""

from pice.core import Answer, Candidate, Failure, Placement, Plan, Span
from pice.store.base import Counted


class Telemetry:
    """Called by nodes as things happen, each time once; this one counts nothing. No call may wait, fail or take long.

    Names in candidates are what their message says: whoever makes labels of them bounds how many.
    """

    def planned(self, plan: Plan) -> None:
        """A cloud node begins an attempt with this plan. What became of it is `closed`: the model may answer directly
        where a sketch was planned."""

    def placed(self, placement: Placement) -> None:
        """A segment was published to a site."""

    def written(self, candidate: Candidate) -> None:
        """An edge node published a candidate, or that there will be none (`error`). Not told again where its segment
        comes twice."""

    def counted(self, candidate: Candidate, counted: Counted) -> None:
        """A collector looked at a candidate."""

    def forged(self, site: str) -> None:
        """A collector refused a candidate that names this site and was not signed with its key."""

    def chosen(self, span: Span) -> None:
        """A segment has its text."""

    def closed(self, outcome: Answer | Failure) -> None:
        """A request was ended here."""

    def retried(self, topic: str) -> None:
        """A delivery was given back, to be tried again."""

    def buried(self, topic: str) -> None:
        """A message of this topic was put aside to `pice.dead`."""


SILENT = Telemetry()
"""Told by nodes that nobody counts for."""

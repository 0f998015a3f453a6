"""What nodes tell of their work, for whoever counts it."""

from pice.core import Answer, Candidate, Failure, Placement, Plan, Span
from pice.store.base import Counted


class Telemetry:
    """Called by nodes as things happen; this one counts nothing. No call may wait, fail or take long."""

    def planned(self, plan: Plan) -> None:
        """A cloud node has decided how a request is answered."""

    def placed(self, placement: Placement) -> None:
        """A segment was published to a site."""

    def written(self, candidate: Candidate) -> None:
        """An edge node published a candidate, or that there will be none (`error`)."""

    def counted(self, candidate: Candidate, counted: Counted) -> None:
        """A collector looked at a candidate."""

    def forged(self, site: str) -> None:
        """A collector refused a candidate that was not signed with its site's key."""

    def chosen(self, span: Span) -> None:
        """A segment has its text."""

    def closed(self, outcome: Answer | Failure) -> None:
        """A request was ended here."""

    def retried(self, topic: str) -> None:
        """A delivery was given back, to be tried again."""

    def buried(self, topic: str) -> None:
        """A message of this topic was put aside to `pice.dead`."""

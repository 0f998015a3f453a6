"""What one node knows of every site: the last heartbeats, and what it has placed since."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pice.core import CLOUD_SITE, Candidate, Curve, ModelState, SiteState
from pice.plan.base import Target
from pice.plan.estimate import decode_s, finish_s


@dataclass(slots=True)
class Option:
    """A model at a site that may be given work, as it is believed to stand now."""

    target: Target
    rtt_s: float
    context_tokens: int
    max_inflight: int
    curve: Curve
    num_outstanding: int
    backlog_tokens: int
    _start_s: float = 0.0
    _token_s: float = 0.0
    _is_known: bool = False

    def add(self, num_outstanding: int, tokens: int) -> None:
        self.num_outstanding = max(0, self.num_outstanding + num_outstanding)
        self.backlog_tokens = max(0, self.backlog_tokens + tokens)
        self._is_known = False

    def finish_s(self, num_prompt_tokens: int, num_tokens: float) -> float:
        """As `pice.plan.estimate.finish_s`, round trip included; what changes only with the load is kept."""
        if not self._is_known:
            self._start_s, self._token_s = finish_s(self, 0, 0.0, self.rtt_s), decode_s(self, 1.0)
            self._is_known = True
        return self._start_s + self.curve.prefill_s_per_token * num_prompt_tokens + num_tokens * self._token_s

    def copy(self) -> "Option":
        return Option(
            self.target,
            self.rtt_s,
            self.context_tokens,
            self.max_inflight,
            self.curve,
            self.num_outstanding,
            self.backlog_tokens,
        )


@dataclass(frozen=True, slots=True)
class _Sent:
    at_s: float
    tokens: int


class SiteBoard:
    """Sites as last heard of, with this node's own placements added until a later heartbeat contains them."""

    def __init__(self) -> None:
        self.edges: list[Option] = []
        self.cloud: Option | None = None
        self._addresses: dict[str, tuple[str, int]] = {}
        self._sent: dict[Target, list[_Sent]] = {}
        self._options: dict[Target, Option] = {}

    def see(self, sites: Sequence[SiteState]) -> None:
        """Takes the heartbeats of all sites that live; the others may be given nothing."""
        self._addresses |= {site.site: (site.pool, site.partition) for site in sites}
        options = [self._option(site, model) for site in sites for model in site.models]
        self._options = {option.target: option for option in options}
        self._forget_sent(self._options)
        draining = {site.site for site in sites if site.draining}
        usable = [option for option in options if option.target.site not in draining]
        self.edges = [option for option in usable if option.target.site != CLOUD_SITE]
        self.cloud = next((option for option in usable if option.target.site == CLOUD_SITE), None)

    def address(self, site: str) -> tuple[str, int]:
        """Pool and partition; kept for sites that are silent now, since their messages may still stand there."""
        return self._addresses[site]

    def sent(self, option: Option, tokens: int, now_s: float) -> None:
        self._sent.setdefault(option.target, []).append(_Sent(now_s, tokens))
        option.add(1, tokens)

    def withdraw(self, target: Target, tokens: int, at_s: float) -> None:
        """What was `sent` was not."""
        sent = _Sent(at_s, tokens)
        if sent in (placed := self._sent.get(target, [])):
            placed.remove(sent)
            if option := self._options.get(target):
                option.add(-1, -tokens)

    def finished(self, candidate: Candidate) -> None:
        if option := self._options.get(Target(candidate.site, candidate.model)):
            option.add(-1, -candidate.num_output_tokens)

    def _option(self, site: SiteState, model: ModelState) -> Option:
        target = Target(site.site, model.model)
        sent = [sent for sent in self._sent.get(target, ()) if sent.at_s >= site.at_s]
        if target in self._sent:
            self._sent[target] = sent
        return Option(
            target,
            site.rtt_s,
            model.context_tokens,
            model.max_inflight,
            model.curve,
            model.num_outstanding + len(sent),
            model.backlog_tokens + sum(one.tokens for one in sent),
        )

    def _forget_sent(self, known: Collection[Target]) -> None:
        """What went to a site that fell silent is not added to what it says when it comes back."""
        for target in self._sent.keys() - known:
            del self._sent[target]

"""What one node knows of every site: the last heartbeats, and what it has placed since."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pice.core import CLOUD_SITE, Candidate, ModelState, SiteState
from pice.plan.base import Target


@dataclass(slots=True)
class _Sent:
    at_s: float
    tokens: int


class SiteBoard:
    """Sites as last heard of, with this node's own placements added until a later heartbeat contains them."""

    def __init__(self) -> None:
        self._sites: dict[str, SiteState] = {}
        self._addresses: dict[str, tuple[str, int]] = {}
        self._sent: dict[Target, list[_Sent]] = {}
        self._models: dict[Target, ModelState] = {}

    def see(self, sites: Sequence[SiteState]) -> None:
        self._sites = {site.site: site for site in sites}
        self._addresses |= {site.site: (site.pool, site.partition) for site in sites}
        heard = {Target(site.site, model.model): site.at_s for site in sites for model in site.models}
        self._sent = {
            target: [sent for sent in placed if sent.at_s >= heard[target]]
            for target, placed in self._sent.items()
            if target in heard
        }
        self._models = {
            Target(site.site, model.model): model for site in sites if not site.draining for model in site.models
        }
        for target in self._sent.keys() & self._models.keys():
            self._add(target, len(self._sent[target]), sum(sent.tokens for sent in self._sent[target]))

    def address(self, site: str) -> tuple[str, int]:
        """Pool and partition; kept for sites that are silent now, since their messages may still stand there."""
        return self._addresses[site]

    def edges(self) -> Iterator[tuple[Target, SiteState, ModelState]]:
        """Every model at every site that may be given work, the cloud's left out."""
        for target, model in self._models.items():
            if target.site != CLOUD_SITE:
                yield target, self._sites[target.site], model

    def cloud(self) -> tuple[Target, SiteState, ModelState] | None:
        found = next((item for item in self._models.items() if item[0].site == CLOUD_SITE), None)
        return (found[0], self._sites[CLOUD_SITE], found[1]) if found else None

    def sent(self, target: Target, tokens: int, now_s: float) -> None:
        self._sent.setdefault(target, []).append(_Sent(now_s, tokens))
        self._add(target, 1, tokens)

    def finished(self, candidate: Candidate) -> None:
        target = Target(candidate.site, candidate.model)
        if target in self._models:
            self._add(target, -1, -candidate.num_output_tokens)

    def _add(self, target: Target, outstanding: int, tokens: int) -> None:
        model = self._models[target]
        self._models[target] = replace(
            model,
            num_outstanding=max(0, model.num_outstanding + outstanding),
            backlog_tokens=max(0, model.backlog_tokens + tokens),
        )

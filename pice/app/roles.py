"""Which services a process runs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Roles:
    """What a process serves as."""

    cloud: bool = False
    sites: tuple[str, ...] = ()
    collector: bool = False

    @property
    def name(self) -> str:
        """As logs and the registry show it."""
        return "+".join([*(["cloud"] if self.cloud else []), *self.sites, *(["collector"] if self.collector else [])])

"""The registry port: which sites there are, which partition is whose, and who may serve it."""

from dataclasses import dataclass
from typing import Literal, Protocol

Hold = Literal["held", "draining", "lost"]


@dataclass(frozen=True, slots=True)
class RegisteredSite:
    """A site as the registry knows it. `holder` is "" and `lease_left_s` 0 where nobody serves it; `token` is the
    highest that was given for it, 0 before the first."""

    name: str
    pool: str
    partition: int
    draining: bool
    holder: str
    token: int
    lease_left_s: float


class Registry(Protocol):
    """Shared by all processes. Every change is atomic and may be said again when its answer was lost. Raises
    `TransportError` when its server is gone."""

    async def register(self, name: str, pool: str) -> int:
        """The site's partition in its pool's topic: the one it has, or else the lowest that no site of the pool has.

        Raises:
            ConfigError: the site is known in another pool.
        """
        ...

    async def acquire(self, name: str, holder: str, *, lease_s: float) -> int | None:
        """Takes the lease of a site: a fencing token, above all that were ever given for this name; None while another
        holds it, or where no such site is registered. `holder` is the name of one process alone: the same one is
        given a new token at once, and what it had is void."""
        ...

    async def renew(self, name: str, token: int, *, lease_s: float) -> Hold:
        """Holds the lease for `lease_s` more. "draining" says so too, and that no new work shall be taken. "lost": the
        site is gone from the registry, the lease was given back, or another took it after it had lapsed; a lapsed one
        that nobody took is held again."""
        ...

    async def release(self, name: str, token: int) -> None:
        """Gives the lease back; nothing happens if it is not held with this token."""
        ...

    async def drain(self, name: str, *, draining: bool) -> bool:
        """Says whether the site shall be given no more work; False where there is no such site."""
        ...

    async def remove(self, name: str) -> bool:
        """Forgets a site, and its partition may be given to another; False where there is no such site.

        Raises:
            InputError: its lease is held: drain it and stop its process first.
        """
        ...

    async def sites(self) -> list[RegisteredSite]:
        """All registered sites, by name."""
        ...


def in_another_pool(name: str, pool: str, wanted: str) -> str:
    """Why `register` refuses."""
    return (
        f"site {name} is registered in pool {pool}, not in {wanted}: give it its pool or another name, or remove it "
        f"first: `pice sites remove {name}`"
    )


def is_held(name: str, holder: str) -> str:
    """Why `remove` refuses."""
    return f"site {name} is served by {holder}: drain it and stop its process first"

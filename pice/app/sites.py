"""What an operator sees of the sites and does about them, on the Redis of a deployment."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pice.app.packages import cluster_packages
from pice.config import read_secret
from pice.core import SiteState
from pice.errors import ConfigError, InputError
from pice.message.signing import site_key
from pice.registry.base import RegisteredSite, Registry
from pice.settings import Settings, SiteName
from pice.store.base import Store

Status = Literal["up", "draining", "silent"]


@dataclass(frozen=True, slots=True)
class SiteLine:
    """One site as the registry and its heartbeat tell of it. `partition` is -1 where it is in no registry; "silent" is
    one whose heartbeat has stopped, or never came."""

    name: str
    pool: str
    partition: int
    models: tuple[str, ...]
    holder: str
    lease_left_s: float
    status: Status
    num_outstanding: int
    backlog_tokens: int


class Sites:
    """The sites of a deployment. Raises `TransportError` when its Redis is gone."""

    def __init__(self, registry: Registry, store: Store) -> None:
        self._registry = registry
        self._store = store

    async def lines(self) -> list[SiteLine]:
        """Every site that is registered or alive, by name."""
        registered = {site.name: site for site in await self._registry.sites()}
        alive = {state.site: state for state in await self._store.sites()}
        names = sorted(registered.keys() | alive.keys())
        return [_line(name, registered.get(name), alive.get(name)) for name in names]

    async def drain(self, name: str, *, draining: bool) -> None:
        """
        Raises:
            InputError: there is no such site.
        """
        if not await self._registry.drain(name, draining=draining):
            raise InputError(await self._unknown(name))

    async def remove(self, name: str) -> None:
        """
        Raises:
            InputError: there is no such site, or a process serves it.
        """
        if not await self._registry.remove(name):
            raise InputError(await self._unknown(name))

    async def _unknown(self, name: str) -> str:
        known = ", ".join(site.name for site in await self._registry.sites()) or "none"
        return f"no site {name!r} is registered; registered are: {known}"


@asynccontextmanager
async def open_sites(settings: Settings) -> AsyncIterator[Sites]:
    """The sites in the Redis that the settings name.

    Raises:
        ConfigError: they name none, or it refuses us; says what to change.
        TransportError: it does not answer.
    """
    redis = settings.redis
    if redis is None:
        raise ConfigError(
            "sites are registered in Redis, and the settings have no [redis]: pass the --config of a deployment, as "
            "config/cluster.toml"
        )
    with cluster_packages():
        from pice.redis_client import connect_redis
        from pice.registry.redis import RedisRegistry
        from pice.store.redis import RedisStore
    password = read_secret(redis.password, redis.password_file, "redis.password_file")
    client = await connect_redis(redis.url, password=password, ca_file=redis.ca_file)
    try:
        yield Sites(RedisRegistry(client, redis.prefix), RedisStore(client, prefix=redis.prefix))
    finally:
        await client.close()


def key_of_site(settings: Settings, name: str) -> str:
    """The key with which a site signs, of the deployment's secret.

    Raises:
        InputError: no site can have this name.
        ConfigError: there is no secret.
    """
    try:
        TypeAdapter(SiteName).validate_python(name)
    except ValidationError as error:
        raise InputError(f"{name!r} {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    security = settings.security
    secret = read_secret(security.secret, security.secret_file, "security.secret_file")
    if not secret:
        raise ConfigError(
            "a site's key follows from the secret of the deployment, and there is none: set security.secret_file"
        )
    return site_key(secret, name)


def _line(name: str, registered: RegisteredSite | None, state: SiteState | None) -> SiteLine:
    models: Sequence[tuple[str, int, int]] = ()
    if state is not None:
        models = [(model.model, model.num_outstanding, model.backlog_tokens) for model in state.models]
    return SiteLine(
        name,
        registered.pool if registered else state.pool if state else "",
        registered.partition if registered else -1,
        tuple(model for model, _, _ in models),
        registered.holder if registered else "",
        registered.lease_left_s if registered else 0.0,
        _status(registered, state),
        sum(num_outstanding for _, num_outstanding, _ in models),
        sum(backlog_tokens for _, _, backlog_tokens in models),
    )


def _status(registered: RegisteredSite | None, state: SiteState | None) -> Status:
    if state is None:
        return "silent"
    return "draining" if state.draining or (registered is not None and registered.draining) else "up"

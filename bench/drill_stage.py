"""The brokers, links and services of a drill, started; everything that a fault may touch."""

import asyncio
import secrets
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.drill_link import Link
from bench.drill_service import Service, until_ready
from bench.report import ROOT
from pice.app.admin import create_topics
from pice.app.cluster import ClusterPorts, open_ports
from pice.config import load_settings
from pice.errors import ConfigError, TransportError
from pice.message.signing import site_key
from pice.settings import Settings
from tools.brokers.errors import NoBrokers
from tools.brokers.kafka_server import start_kafka
from tools.brokers.program import Program, free_port
from tools.brokers.redis_server import start_redis

CONFIG = ROOT / "bench" / "drill.toml"
FAR = ("lyon", "montreal")
"""Sites whose process reaches the brokers through links of its own."""
STANDBY = "lyon"
"""The site that two processes serve, one after the other."""
READY_WITHIN_S = 90.0
_WATCH_EVERY_S = 0.5
_RETRY_S = 0.2


@dataclass(slots=True)
class Stage:
    """What a drill plays on. `ended` says which services ended without being killed; they are started again. `buried`
    are the keys of all junk that belongs on `pice.dead`, of `num_junk` messages."""

    folder: Path
    kafka: Program
    redis: Program
    address: str
    overrides: Sequence[str]
    settings: Settings
    secret: str
    ports: ClusterPorts
    services: Mapping[str, Service]
    links: Mapping[str, Sequence[Link]]
    ended: list[str] = field(default_factory=list)
    buried: set[str] = field(default_factory=set)
    num_junk: int = 0

    async def all_ready(self) -> float:
        """Seconds until every service says that it is of use."""
        return await until_ready(list(self.services.values()), READY_WITHIN_S)

    async def holder(self, site: str) -> Service | None:
        """The service that holds a site's lease; None while none of ours does."""
        try:
            holders = {known.name: known.holder for known in await self.ports.registry.sites()}
        except TransportError:
            return None
        pid = _pid(holders.get(site, ""))
        return next((service for service in self.services.values() if pid and service.pid == pid), None)

    async def until_held(self, site: str, *, by_other_than: Service | None = None) -> Service:
        """Returns the holder once there is one, and it is another.

        Raises:
            ConfigError: that did not come about in time.
        """
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while True:
                    found = await self.holder(site)
                    if found is not None and found is not by_other_than:
                        return found
                    await asyncio.sleep(_RETRY_S)
        except TimeoutError:
            raise ConfigError(f"nobody else took {site} over within {READY_WITHIN_S:g} s") from None

    async def watch(self) -> None:
        """Starts what ended by itself again, as whoever runs services would; until cancelled."""
        while True:
            for service in self.services.values():
                if said := service.ended():
                    self.ended.append(said)
                    service.start()
            await asyncio.sleep(_WATCH_EVERY_S)


def _pid(holder: str) -> int:
    """A holder is named HOST.PID.NUMBER, where the host may have dots; 0 for none of ours."""
    parts = holder.rsplit(".", 2)
    return int(parts[1]) if len(parts) == 3 and parts[1].isdigit() else 0


@asynccontextmanager
async def staged(kept: Path | None) -> AsyncIterator[Stage]:
    """Everything started and ready; at the end all of it is stopped. Logs and data stay in the folder `kept`, if given.

    Raises:
        ConfigError: there is no Kafka or Redis to be had, or a service does not come up.
    """
    async with AsyncExitStack() as stack:
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pice-drill-")))
        folder.mkdir(parents=True, exist_ok=True)
        port, redis_port = free_port(), free_port()
        links = {site: (Link(free_port(), free_port()), Link(free_port(), redis_port)) for site in FAR}
        doors = {kafka.target: kafka.port for kafka, _ in links.values()}
        kafka, redis = await asyncio.to_thread(_start_brokers, folder, port, redis_port, doors)
        stack.callback(redis.stop)
        stack.callback(kafka.stop)
        for pair in links.values():
            for link in pair:
                await link.mend()
                stack.push_async_callback(link.cut)
        secret = secrets.token_hex(32)
        overrides = _addresses(port, redis_port)
        settings = load_settings(CONFIG, overrides, environ={})
        await create_topics(settings)
        services = _services(folder, settings, secret, overrides, links)
        for service in services.values():
            service.start()
            stack.callback(service.kill)
        await until_ready(list(services.values()), READY_WITHIN_S)
        ports = await stack.enter_async_context(open_ports(settings))
        yield Stage(folder, kafka, redis, f"127.0.0.1:{port}", overrides, settings, secret, ports, services, links)


def _start_brokers(folder: Path, port: int, redis_port: int, doors: Mapping[int, int]) -> tuple[Program, Program]:
    with ExitStack() as started:
        try:
            redis = start_redis(folder, redis_port, keeps=True)
            started.callback(redis.stop)
            kafka = start_kafka(folder, port, advertised=doors)
        except NoBrokers as error:
            raise ConfigError(str(error)) from error
        started.pop_all()
    return kafka, redis


def _addresses(kafka_port: int, redis_port: int) -> list[str]:
    return [f"kafka.bootstrap_servers=127.0.0.1:{kafka_port}", f"redis.url=redis://127.0.0.1:{redis_port}/0"]


def _services(
    folder: Path,
    settings: Settings,
    secret: str,
    overrides: Sequence[str],
    links: Mapping[str, Sequence[Link]],
) -> dict[str, Service]:
    """Two cloud nodes, two collectors, every site, and a standby of one; sites have their own key and no secret."""
    shared = [*overrides, f"security.secret_file={_secret_file(folder, 'secret', secret)}"]
    made = [
        Service(f"{kind}-{number}", [kind], CONFIG, shared, folder)
        for kind in ("cloud", "collector")
        for number in (1, 2)
    ]
    for site in settings.sites:
        key = f"sites.{site}.key_file={_secret_file(folder, site, site_key(secret, site))}"
        near, far = [*overrides, key], links.get(site)
        reached = [*_addresses(far[0].port, far[1].port), key] if far else near
        made.append(Service(site, ["edge", "--site", site], CONFIG, reached, folder))
        if site == STANDBY:
            made.append(Service(f"{site}-standby", ["edge", "--site", site], CONFIG, near, folder))
    return {service.name: service for service in made}


def _secret_file(folder: Path, name: str, secret: str) -> Path:
    path = folder / f"{name}.key"
    path.touch(mode=0o600)
    path.write_text(secret, encoding="utf-8")
    return path

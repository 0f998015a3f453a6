"""Services as users with the rights of docs/security.md and docs/redis-acl.md alone, on brokers of their own."""

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pice.settings import SiteSettings
from tests.contract.own_kafka import OwnKafka, own_kafka
from tests.system.cluster import SITES, Cluster
from tests.system.command import ROOT
from tests.system.test_ask import QUESTION, check_record
from tools.brokers.kafka_server import ADMIN
from tools.brokers.program import Program, found, free_port, listens
from tools.make_secrets import make

CLIENT, CLOUD, COLLECTOR, OPERATOR = "pice-client", "pice-cloud", "pice-collector", "pice-operator"
SITE = "pice-site-{}"
USERS = (ADMIN, CLIENT, CLOUD, COLLECTOR, OPERATOR, *map(SITE.format, SITES))


@dataclass(frozen=True)
class Guarded:
    """A deployment, and how a process of it connects as one of the users."""

    cluster: Cluster
    kafka: OwnKafka
    redis: str
    secrets: Path

    def as_user(self, user: str) -> list[str]:
        site = user.removeprefix("pice-site-") if user.startswith("pice-site-") else ""
        redis_user, secret = (f"site-{site}", f"{site}_redis_password") if site else ("pice", "redis_password")
        return [
            f"kafka.bootstrap_servers={self.kafka.address}",
            "kafka.prefix=''",
            "kafka.security_protocol=SASL_PLAINTEXT",
            f"kafka.username={user}",
            f"kafka.password={self.kafka.users[user]}",
            f"redis.url=redis://{redis_user}@{self.redis}/0",
            f"redis.password_file={self.secrets / secret}",
            "redis.prefix=pice",
        ]


def rules() -> list[str]:
    """The rights on the page, those of the site paris for each of ours."""
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^\$ALLOW (.*)$", text, re.MULTILINE)
    return [rule.replace("paris", site) for rule in shown for site in (SITES if "paris" in rule else SITES[:1])]


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Guarded]:
    secrets = tmp_path / "secrets"
    make(secrets, {site: SiteSettings(engines=("x",)) for site in SITES})
    with own_kafka(tmp_path, {user: f"{user}-secret" for user in USERS}) as kafka:
        asyncio.run(kafka.allow(*rules()))
        port = free_port()
        words = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--aclfile", str(secrets / "redis_users")]
        redis = Program("redis", [found("redis-server", "redis-server"), *words, "--dir", str(tmp_path)], tmp_path)
        cluster = Cluster(tmp_path)
        try:
            redis.wait_until(lambda: listens(port))
            yield Guarded(cluster, kafka, f"127.0.0.1:{port}", secrets)
        finally:
            cluster.close()
            redis.stop()


def test_services_and_commands_need_no_more_rights_than_are_documented(guarded: Guarded) -> None:
    cluster, as_user = guarded.cluster, guarded.as_user
    assert cluster.pice("topics", "create", overrides=as_user(CLIENT)).code == 2
    assert cluster.pice("topics", "create", overrides=as_user(OPERATOR)).code == 0
    services = [
        cluster.start("cloud", overrides=as_user(CLOUD)),
        *(cluster.start("edge", "--site", site, overrides=as_user(SITE.format(site))) for site in SITES),
        cluster.start("collector", overrides=as_user(COLLECTOR)),
    ]
    for service in services:
        service.ready()
    ran = cluster.pice("ask", "--mode", "progressive", "--json", QUESTION, overrides=as_user(CLIENT))
    assert (ran.code, ran.err) == (0, "")
    record = json.loads(ran.out)
    check_record(record)
    assert {span["site"] for span in record["spans"]} <= set(SITES)
    assert cluster.pice("topics", "describe", overrides=as_user(OPERATOR)).code == 0
    assert cluster.pice("dead", "list", overrides=as_user(OPERATOR)).out == ""
    for service in services:
        service.stop()
    assert [service.ended() for service in services] == [0] * len(services)


def test_site_with_the_redis_user_of_another_does_not_start(guarded: Guarded) -> None:
    cluster, (own, other) = guarded.cluster, SITES
    assert cluster.pice("topics", "create", overrides=guarded.as_user(OPERATOR)).code == 0
    service = cluster.start("edge", "--site", own, overrides=guarded.as_user(SITE.format(other)))
    assert service.ended() == 2
    assert "refuses us" in service.said()

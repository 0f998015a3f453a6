"""Which topics a deployment has."""

from pathlib import Path

import pytest

from pice.app.roles import Roles
from pice.config import load_settings
from pice.errors import ConfigError

pytest.importorskip("aiokafka", reason="aiokafka is not installed: pip install 'pice[cluster]'")

from pice.app.topics import topic_specs, used_topics

PLAIN = """\
[engines.big]
kind = "emulated"
curve = { batch = [1], step_s = [0.0] }
[cloud]
engine = "big"
"""
DEPLOYED = """\
[kafka]
bootstrap_servers = "127.0.0.1:9092"
num_partitions = 4
replication_factor = 3
[redis]
url = "redis://127.0.0.1:6379/0"
[jobs]
keep_s = 1000
[sites.paris]
engines = ["big"]
pool = "france"
[sites.lyon]
engines = ["big"]
pool = "france"
[sites.pisa]
engines = ["big"]
pool = "italy"
"""


def test_each_pool_has_a_partition_for_every_site_and_the_cloud_one(tmp_path: Path) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(PLAIN + DEPLOYED)
    specs = topic_specs(load_settings(config))
    assert {spec.name: spec.num_partitions for spec in specs} == {
        "pice.requests": 4,
        "pice.jobs": 4,
        "pice.dead": 1,
        "pice.segments.cloud": 1,
        "pice.segments.france": 2,
        "pice.segments.italy": 1,
    }
    assert {spec.num_copies for spec in specs} == {3}
    assert {spec.name: spec.retention_s for spec in specs}["pice.jobs"] == 1000


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        (Roles(sites=("pisa",)), {"dead", "segments.italy"}),
        (Roles(cloud=True), {"dead", "requests", "segments.cloud", "segments.france", "segments.italy"}),
        (
            Roles(collector=True),
            {"dead", "requests", "jobs", "segments.cloud", "segments.france", "segments.italy"},
        ),
    ],
    ids=["site", "cloud", "collector"],
)
def test_service_needs_only_the_topics_that_it_uses(tmp_path: Path, roles: Roles, names: set[str]) -> None:
    config = tmp_path / "cluster.toml"
    config.write_text(PLAIN + DEPLOYED)
    specs = used_topics(load_settings(config), roles)
    assert {spec.name for spec in specs} == {f"pice.{name}" for name in names}
    assert {spec.num_partitions for spec in specs} == {1}


def test_settings_without_brokers_have_no_topics(tmp_path: Path) -> None:
    config = tmp_path / "plain.toml"
    config.write_text(PLAIN)
    with pytest.raises(ConfigError, match=r"\[kafka\] and \[redis\]"):
        topic_specs(load_settings(config))

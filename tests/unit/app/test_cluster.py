"""What settings say of brokers, and what is said where they say nothing."""

import sys
from pathlib import Path

import pytest

import pice
from pice.app.cluster import kafka_options, redis_password
from pice.app.roles import Roles
from pice.app.topics import brokers_of
from pice.config import load_settings
from pice.errors import ConfigError
from pice.loop import Shutdown

CONFIG = Path(__file__).parents[3] / "config" / "emulated.toml"
BROKERS = ("kafka.bootstrap_servers=k1:9092", "redis.url=redis://r1/0")


def test_settings_without_brokers_are_told_what_to_add() -> None:
    with pytest.raises(ConfigError, match=r"\[kafka\] and \[redis\].*config/cluster\.toml"):
        brokers_of(load_settings(CONFIG, environ={}))


def test_passwords_are_read_from_their_files_and_shown_to_nobody(tmp_path: Path) -> None:
    for name in ("kafka", "redis"):
        (tmp_path / name).write_text(f"{name} secret\n", encoding="utf-8")
    overrides = (
        *BROKERS,
        "kafka.security_protocol=SASL_PLAINTEXT",
        "kafka.username=pice",
        f"kafka.password_file={tmp_path / 'kafka'}",
        f"redis.password_file={tmp_path / 'redis'}",
    )
    kafka, redis = brokers_of(load_settings(CONFIG, overrides, environ={}))
    options = kafka_options(kafka, 1000)
    assert (options.username, options.password, options.max_bytes) == ("pice", "kafka secret", 1000)
    assert redis_password(redis) == "redis secret"
    assert "secret" not in f"{options!r} {kafka!r} {redis!r}"


def test_password_file_that_is_missing_is_named(tmp_path: Path) -> None:
    overrides = (*BROKERS, f"redis.password_file={tmp_path / 'absent'}")
    _, redis = brokers_of(load_settings(CONFIG, overrides, environ={}))
    with pytest.raises(ConfigError, match=r"redis\.password_file .*absent cannot be read"):
        redis_password(redis)


async def test_packages_that_a_deployment_needs_and_are_missing_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from pice.app import serve

    for module in ("pice.app.cluster", "pice.app.services"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'pice\[cluster\]'"):
        pice.open(CONFIG, overrides=BROKERS)
    with pytest.raises(ConfigError, match=r"pip install 'pice\[cluster\]'"):
        await serve(load_settings(CONFIG, BROKERS, environ={}), Roles(cloud=True), Shutdown())

"""What an operator sees of the sites, and what `pice sites` says and refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pice.app.sites import SiteLine, Sites, key_of_site
from pice.cli.sites import commands, table
from pice.config import load_settings
from pice.core import Curve, ModelState, SiteState
from pice.errors import ConfigError, InputError
from pice.message.signing import site_key
from pice.registry.memory import MemoryRegistry
from pice.settings import Settings
from pice.store.memory import MemoryStore

ROOT = Path(__file__).parents[3]
CURVE = Curve((1,), (0.1,))


def state(site: str, *, draining: bool = False) -> SiteState:
    models = (ModelState("small", 4096, 4, CURVE, 2, 300), ModelState("tiny", 4096, 4, CURVE, 1, 50))
    return SiteState(site, "main", 7, models, 0.0, draining=draining)


async def a_house() -> Sites:
    """Sites in every state."""
    registry, store = MemoryRegistry(), MemoryStore()
    for name in ("up", "leaving", "asked-to-drain", "silent"):
        await registry.register(name, "main")
    for name in ("up", "leaving", "asked-to-drain", "unregistered"):
        await store.heartbeat(state(name, draining=name == "leaving"), ttl_s=30)
    await registry.drain("asked-to-drain", draining=True)
    await registry.acquire("up", "host.1", lease_s=30)
    return Sites(registry, store)


async def test_site_is_shown_with_its_state_its_holder_and_its_load() -> None:
    lines = {line.name: line for line in await (await a_house()).lines()}
    assert list(lines) == ["asked-to-drain", "leaving", "silent", "unregistered", "up"]
    up, silent, unregistered = lines["up"], lines["silent"], lines["unregistered"]
    assert (up.pool, up.partition, up.models, up.status) == ("main", 0, ("small", "tiny"), "up")
    assert (up.holder, up.num_outstanding, up.backlog_tokens) == ("host.1", 3, 350)
    assert 0 < up.lease_left_s <= 30
    assert silent == SiteLine("silent", "main", 3, (), "", 0.0, "silent", 0, 0)
    assert (unregistered.pool, unregistered.partition, unregistered.status) == ("main", -1, "up")
    assert [lines[name].status for name in ("leaving", "asked-to-drain")] == ["draining", "draining"]


async def test_unknown_site_is_refused_with_those_that_there_are() -> None:
    sites = await a_house()
    for call in (sites.drain("rome", draining=True), sites.remove("rome")):
        with pytest.raises(InputError, match="no site 'rome' is registered; registered are: asked-to-drain, leaving, "):
            await call
    with pytest.raises(InputError, match=r"served by host\.1"):
        await sites.remove("up")
    await sites.remove("silent")
    assert "silent" not in [line.name for line in await sites.lines()]


def test_table_has_a_line_for_each_site_and_nothing_that_steers_the_terminal() -> None:
    lines = [
        SiteLine("paris", "main", 0, ("small", "t\x1b[2Jiny"), "host\n1", 7.25, "up", 3, 350),
        SiteLine("rome", "main", -1, (), "", 0.0, "silent", 0, 0),
    ]
    assert table(lines).splitlines() == [
        "SITE   POOL  PARTITION  STATUS  HOLDER  LEASE  OUTSTANDING  BACKLOG     MODELS",
        "paris  main  0          up      host 1  7.2 s  3            350 tokens  small, t[2Jiny",
        "rome   main  -          silent  -       -      0            0 tokens    -",
    ]
    assert table([]).startswith("no site is registered: start one with `pice edge")


def settings(*overrides: str) -> Settings:
    return load_settings(ROOT / "config" / "emulated.toml", overrides, environ={})


def test_key_of_a_site_follows_from_the_secret(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("of the cluster\n", encoding="utf-8")
    assert key_of_site(settings(f"security.secret_file={tmp_path}/secret"), "paris") == site_key(
        "of the cluster", "paris"
    )


@pytest.mark.parametrize(
    ("name", "says"),
    [("Paris", "'Paris' is no name: names are made of"), ("cloud", "'cloud' is reserved"), ("", "'' is no name")],
)
def test_key_is_refused_for_what_no_site_is_called(name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        key_of_site(settings("security.secret=x"), name)


def test_key_without_a_secret_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"set security\.secret_file"):
        key_of_site(settings(), "paris")


@pytest.mark.parametrize("words", [[], ["--json"], ["drain", "paris"], ["remove", "paris"]], ids=" ".join)
def test_without_redis_in_the_settings_nothing_is_listed(words: list[str]) -> None:
    ran = CliRunner().invoke(commands, [*words, "--config", str(ROOT / "config" / "emulated.toml")])
    assert isinstance(ran.exception, ConfigError)
    assert "no [redis]" in str(ran.exception)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--watch", "--json"], "give one of them"),
        (["--json", "drain", "paris"], "options stand after the command"),
        (["--config", "x.toml", "remove", "paris"], "options stand after the command"),
    ],
    ids=["both", "option for the list", "configuration before the command"],
)
def test_options_that_do_not_go_together_are_refused(words: list[str], says: str) -> None:
    ran = CliRunner().invoke(commands, words)
    assert isinstance(ran.exception, InputError)
    assert says in str(ran.exception)


def test_key_is_printed() -> None:
    words = ["key", "paris", "--config", str(ROOT / "config" / "emulated.toml"), "--set", "security.secret=s"]
    ran = CliRunner().invoke(commands, words)
    assert ran.output == site_key("s", "paris") + "\n"

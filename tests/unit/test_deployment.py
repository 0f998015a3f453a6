"""compose.yaml, Dockerfile and the configurations of a deployment, as far as they can be held to each other, to the
settings and to the commands without a container."""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
import yaml
from typer.testing import CliRunner

from pice.app.topics import topic_specs
from pice.cli import app
from pice.config import load, load_settings
from pice.errors import ConfigError
from pice.kafka_client import KafkaOptions
from pice.message.signing import site_key
from pice.redis_client import connect_redis
from pice.settings import LlamaCppSettings, OpenAISettings, Settings
from pice.transport.base import JOBS, REQUESTS, segments_topic
from tools.brokers.kafka_server import VERSION as KAFKA_VERSION
from tools.brokers.program import Program, found, free_port, listens
from tools.check_image import read_stages
from tools.make_secrets import REDIS_SITE_USER, REDIS_USER, make, redis_users

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "config" / "cluster.toml"
EMULATED = ROOT / "config" / "cluster-emulated.toml"
SEGMENTS = "pice.segments."
DEFAULT = re.compile(r"\$\{\w+:-([^}]*)\}")


def plain(value: Any) -> Any:
    """A part of compose.yaml, its variables replaced by their defaults."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return DEFAULT.sub(r"\1", value).replace("$$", "$") if isinstance(value, str) else value


TEXT = (ROOT / "compose.yaml").read_text(encoding="utf-8")
COMPOSE: Mapping[str, Any] = yaml.safe_load(TEXT)
SERVICES: Mapping[str, Mapping[str, Any]] = plain(COMPOSE["services"])
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("pice-")}
STAYING = {name: service for name, service in OURS.items() if name != "topics"}


def environ(service: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in service.get("environment", {}).items()}


def settings_of(name: str) -> Settings:
    """The settings as this service finds them."""
    return load_settings(CLUSTER, environ=environ(OURS[name]))


def seconds(text: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", text).groups()  # type: ignore[union-attr]  # no other form is used
    return int(number) * {"s": 1, "m": 60}[unit]


def granted(service: Mapping[str, Any]) -> dict[str, str]:
    """By its name under /run/secrets, which secret a container is given."""
    secrets = service.get("secrets", ())
    return dict((each, each) if isinstance(each, str) else (each["target"], each["source"]) for each in secrets)


def mounts(service: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Source on this machine and place in the container, of what is no volume of Docker's own."""
    for volume in service.get("volumes", ()):
        source, target, *_ = volume.split(":")
        if source.startswith("."):
            yield source, target


# --- compose.yaml by itself ---


def test_compose_file_fits_the_schema_of_the_compose_specification() -> None:
    why = "needs the schema that check-jsonschema brings: pip install check-jsonschema"
    pytest.importorskip("check_jsonschema", reason=why)
    jsonschema = pytest.importorskip("jsonschema", reason=why)
    schemas = files("check_jsonschema") / "builtin_schemas" / "vendor"
    jsonschema.validate(COMPOSE, orjson.loads((schemas / "compose-spec.json").read_bytes()))


def compose_command() -> list[str] | None:
    """Docker Compose of version 2 or later, with or without an engine."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]):
            ran = subprocess.run([*words, "version", "--short"], capture_output=True, text=True, check=False)
            if ran.returncode == 0 and not ran.stdout.startswith("1."):
                return words
    return None


@pytest.mark.parametrize("profile", ["gpu", "cpu", "observe"])
def test_docker_compose_reads_the_file(profile: str) -> None:
    if (command := compose_command()) is None:
        pytest.skip("needs Docker Compose 2 or later; an engine is not needed")
    words = [*command, "--profile", profile, "config", "--format", "json"]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    wanted = {name for name, service in SERVICES.items() if profile in service.get("profiles", [profile])}
    assert set(orjson.loads(ran.stdout)["services"]) == wanted


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_bounded_and_may_do_no_more_than_it_must(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"]["max-size"]
    assert not service.get("privileged")
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    if name != "topics":
        assert {"memory", "pids"} <= set(service["deploy"]["resources"]["limits"])
        assert service["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_service_of_ours_has_a_user_who_owns_nothing_and_files_it_cannot_change(name: str) -> None:
    service = OURS[name]
    assert service["read_only"] is True
    assert service["user"] == "10001:10001"
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert "model" not in service["networks"] or name == "cloud"


@pytest.mark.parametrize("name", sorted(set(SERVICES) - set(OURS)))
def test_image_of_others_is_named_with_its_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+", SERVICES[name]["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_service_starts_after_what_it_needs(name: str) -> None:
    needed = SERVICES[name].get("depends_on", {})
    if name in STAYING:
        assert {"kafka", "redis", "topics"} <= set(needed)
    for other, how in needed.items():
        ends = how["condition"] == "service_completed_successfully"
        assert ends or how["condition"] == "service_healthy"
        assert ends or "test" in SERVICES[other]["healthcheck"]
        profiles = set(SERVICES[other].get("profiles", ()))
        assert profiles <= set(SERVICES[name].get("profiles", ())), "it may not be started"


def test_every_volume_secret_and_network_that_is_used_is_declared() -> None:
    for service in SERVICES.values():
        named = [volume.split(":")[0] for volume in service.get("volumes", ())]
        assert {volume for volume in named if volume[0] not in "./"} <= set(COMPOSE["volumes"])
        assert set(granted(service).values()) <= set(COMPOSE["secrets"])
        assert set(service["networks"]) <= set(COMPOSE["networks"])
    used = {secret for service in SERVICES.values() for secret in granted(service).values()}
    assert used == set(COMPOSE["secrets"])


# --- compose.yaml and the rest of the repository ---


@pytest.mark.parametrize("name", OURS)
def test_command_of_a_service_is_one_of_ours(name: str) -> None:
    ran = CliRunner().invoke(app, [*OURS[name]["command"], "--help"])
    assert ran.exit_code == 0, ran.output


@pytest.mark.parametrize("name", OURS)
def test_environment_of_a_service_holds_settings_and_nothing_else(name: str) -> None:
    given = environ(OURS[name])
    loaded = load(CLUSTER, environ=given)
    assert {f"environment {variable}" for variable in given} <= set(loaded.origins.values())


@pytest.mark.parametrize("name", SERVICES)
def test_every_file_that_is_mounted_is_in_the_repository(name: str) -> None:
    ours = [source for source, _ in mounts(SERVICES[name]) if source != "./models"]
    assert [source for source in ours if not (ROOT / source).exists()] == []


@pytest.mark.parametrize("name", OURS)
def test_configuration_of_a_service_lies_where_its_image_looks_for_it(name: str) -> None:
    (place,) = [target for source, target in mounts(OURS[name]) if source == "./config/cluster.toml"]
    assert f"PICE_CONFIG={place}" in (ROOT / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", STAYING)
def test_health_check_asks_where_the_service_answers(name: str) -> None:
    service, settings = STAYING[name], settings_of(name).service
    (url,) = re.findall(r"http://[^']+", " ".join(service["healthcheck"]["test"]))
    assert urlsplit(url).port == settings.health_port
    assert urlsplit(url).path == "/readyz"
    assert '"/readyz": ' in (ROOT / "pice" / "service" / "http.py").read_text(encoding="utf-8")
    assert settings.health_host == "0.0.0.0"


def test_sites_of_the_configuration_are_the_edge_services() -> None:
    sites = load_settings(CLUSTER, environ={}).sites
    assert {name for name in OURS if name.startswith("edge-")} == {f"edge-{site}" for site in sites}
    for site in sites:
        assert OURS[f"edge-{site}"]["command"] == ["edge", "--site", site]


def secrets_in(*paths: Path | None) -> set[str]:
    assert all(path is None or path.parent == Path("/run/secrets") for path in paths)
    return {path.name for path in paths if path is not None}


@pytest.mark.parametrize("name", OURS)
def test_service_is_given_the_secrets_it_uses_and_no_other(name: str) -> None:
    settings = settings_of(name)
    assert settings.redis
    assert settings.kafka
    wanted = secrets_in(settings.redis.password_file, settings.kafka.password_file)
    if name in ("cloud", "cloud-cpu", "collector"):
        wanted |= secrets_in(settings.security.secret_file)
    if name.startswith("edge-"):
        wanted |= secrets_in(settings.sites[name.removeprefix("edge-")].key_file)
    assert set(granted(OURS[name])) == wanted


@pytest.mark.parametrize("name", OURS)
def test_service_has_the_redis_user_of_its_role(name: str) -> None:
    settings = settings_of(name)
    assert settings.redis
    user, secret = REDIS_USER, "redis_password"
    if name.startswith("edge-"):
        site = name.removeprefix("edge-")
        user, secret = REDIS_SITE_USER.format(site=site), f"{site}_redis_password"
    assert urlsplit(settings.redis.url).username == user
    assert granted(OURS[name])["redis_password"] == secret


@pytest.mark.parametrize("name", STAYING)
def test_service_is_stopped_no_sooner_than_it_has_drained(name: str) -> None:
    settings = settings_of(name)
    drain_s = settings.limits.drain_s + (settings.cloud.drain_s if name.startswith("cloud") else 0)
    assert seconds(STAYING[name]["stop_grace_period"]) >= drain_s + 10


def test_brokers_are_where_the_settings_look_for_them() -> None:
    settings = load_settings(CLUSTER, environ={})
    assert settings.kafka
    assert settings.redis
    kafka, redis = SERVICES["kafka"], SERVICES["redis"]
    assert kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"] == f"PLAINTEXT://{settings.kafka.bootstrap_servers}"
    url = urlsplit(settings.redis.url)
    assert (url.hostname, url.port, url.username) == ("redis", 6379, REDIS_USER)
    assert f"--user {REDIS_USER} " in redis["healthcheck"]["test"][1]
    assert settings.redis.prefix == "pice"


def test_kafka_takes_the_longest_message_and_makes_no_topic_by_itself() -> None:
    kafka = SERVICES["kafka"]["environment"]
    longest = load_settings(CLUSTER, environ={}).limits.max_message_bytes
    assert kafka["KAFKA_MESSAGE_MAX_BYTES"] >= KafkaOptions("", max_bytes=longest).max_record_bytes
    assert kafka["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{KAFKA_VERSION}", "tests should run on the version that is run"


def test_redis_keeps_what_it_confirms_and_throws_nothing_away() -> None:
    words = SERVICES["redis"]["command"]
    options = dict(zip(words[1::2], words[2::2], strict=True))
    assert options["--appendonly"] == "yes"
    assert options["--appendfsync"] == "always"
    assert options["--maxmemory-policy"] == "noeviction"


def test_model_server_serves_the_model_that_is_asked_for() -> None:
    words = SERVICES["vllm"]["command"]
    options = dict(zip(words[::2], words[1::2], strict=True))
    engine = settings_of("cloud").engines["cloud"]
    assert isinstance(engine, OpenAISettings)
    assert engine.model == options["--model"]
    assert engine.model == load_settings(CLUSTER, environ={}).engines["cloud"].model
    assert engine.context_tokens == int(options["--max-model-len"])
    assert urlsplit(engine.base_url).hostname == "vllm"


def engines_of(name: str) -> list[str]:
    settings = settings_of(name)
    if name.startswith("cloud"):
        return [settings.cloud.engine]
    return list(settings.sites[name.removeprefix("edge-")].engines)


@pytest.mark.parametrize("name", ["cloud-cpu", "edge-paris", "edge-lyon", "edge-nice"])
def test_llama_cpp_has_a_thread_for_each_core_of_its_container(name: str) -> None:
    cpus = int(OURS[name]["deploy"]["resources"]["limits"]["cpus"])
    for settings in (settings_of(name), load_settings(CLUSTER, environ={})):
        for engine in (settings.engines[each] for each in engines_of(name)):
            assert isinstance(engine, LlamaCppSettings)
            assert engine.n_threads == cpus
            assert engine.path.parent == Path("/models")
    assert OURS[name]["image"] == "pice-edge", "the other image has no llama.cpp"


def yaml_of(*parts: str) -> Any:
    return yaml.safe_load(ROOT.joinpath("config", "observe", *parts).read_text(encoding="utf-8"))


def test_prometheus_asks_every_service_where_it_answers() -> None:
    jobs = yaml_of("prometheus.yml")["scrape_configs"]
    targets = {target for job in jobs for group in job["static_configs"] for target in group["targets"]}
    port = load_settings(CLUSTER, environ={}).service.health_port
    assert SERVICES["cloud-cpu"]["networks"]["queue"]["aliases"] == ["cloud"]
    assert targets == {f"{name}:{port}" for name in set(STAYING) - {"cloud-cpu"}}
    for name in STAYING:
        assert set(STAYING[name]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_rules_and_dashboards_are_mounted_where_they_are_looked_for() -> None:
    places = dict(mounts(SERVICES["prometheus"]))
    rules = yaml_of("prometheus.yml")["rule_files"]
    assert {f"/etc/prometheus/{name}" for name in rules} <= set(places.values())
    assert {Path(source).name for source, target in places.items() if target.endswith(tuple(rules))} == set(rules)
    (provider,) = yaml_of("grafana", "provisioning", "dashboards", "pice.yml")["providers"]
    assert provider["options"]["path"] in dict(mounts(SERVICES["grafana"])).values()
    (source,) = yaml_of("grafana", "provisioning", "datasources", "prometheus.yml")["datasources"]
    assert urlsplit(source["url"]).hostname == "prometheus"
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])


# --- Dockerfile ---


STAGES = read_stages((ROOT / "Dockerfile").read_text(encoding="utf-8"))
STEPS = [step for steps in STAGES.values() for step in steps]


def test_targets_that_compose_builds_are_stages_that_run_pice_as_nobody() -> None:
    for service in OURS.values():
        target = service["build"]["target"]
        assert service["image"] == f"pice-{target}"
        steps = STAGES[target]
        assert steps[0] == ("FROM", f"run AS {target}")
        assert steps[-1] == ("USER", service["user"])
    assert ("ENTRYPOINT", '["pice"]') in STAGES["run"]


def copied() -> list[str]:
    """What is copied from this folder."""
    words = [rest.split() for keyword, rest in STEPS if keyword == "COPY"]
    return [source for each in words if not each[0].startswith("--from") for source in each[:-1]]


def test_everything_that_is_copied_is_there_and_gets_past_dockerignore() -> None:
    patterns = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    admitted = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    assert "*" in patterns, "nothing is copied by accident"
    assert [source for source in copied() if not (ROOT / source).exists()] == []
    assert sorted(set(copied())) == sorted(admitted)
    assert any(fnmatch("pice/__pycache__", pattern) for pattern in patterns if pattern != "*")


def test_final_stages_have_nothing_to_build_with() -> None:
    for name in ("cloud", "edge", "run"):
        ran = " ".join(rest for keyword, rest in STAGES[name] if keyword == "RUN")
        assert "build-essential" not in ran
        assert "pip" not in ran
    assert not any(keyword == "HEALTHCHECK" for keyword, _ in STEPS)


def test_llama_cpp_is_built_as_the_makefile_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (wanted,) = re.findall(r"^CMAKE_ARGS \?= (.+)$", makefile, re.MULTILINE)
    (ran,) = [rest for _, rest in STAGES["llama"] if "CMAKE_ARGS=" in rest and "pip wheel" in rest]
    assert wanted.replace("$(CURDIR)", "/build") in ran


def test_stages_copy_only_from_stages_there_are() -> None:
    known = set(STAGES)
    for steps in STAGES.values():
        for keyword, rest in steps:
            if keyword == "COPY" and rest.startswith("--from="):
                assert rest.split()[0].removeprefix("--from=") in known
    first = [steps[0][1].split()[0] for name, steps in STAGES.items() if name]
    assert [name for name in first if name not in known and not name.startswith("python:")] == []


# --- configurations and secrets ---

DIFFERS = {
    "kafka": {"bootstrap_servers"},
    "redis": {"url", "password_file"},
    "security": {"secret", "secret_file"},
    "service": {"health_host", "health_port", "log_format"},
}
"""What an emulated deployment has of its own, beside its engines and the keys of its sites."""


def test_emulated_deployment_is_the_other_with_emulated_engines_on_loopback() -> None:
    real, emulated = (load_settings(path, environ={}) for path in (CLUSTER, EMULATED))
    one, other = (
        settings.model_dump(exclude={"engines", "sites", *DIFFERS})
        | {name: getattr(settings, name).model_dump(exclude=keys) for name, keys in DIFFERS.items()}
        | {name: site.model_dump(exclude={"key", "key_file"}) for name, site in settings.sites.items()}
        for settings in (real, emulated)
    )
    assert one == other
    assert emulated.kafka
    assert emulated.redis
    assert emulated.kafka.bootstrap_servers.startswith("127.0.0.1:")
    assert urlsplit(emulated.redis.url).hostname == "127.0.0.1"
    assert {engine.kind for engine in emulated.engines.values()} == {"emulated"}


def test_keys_of_the_emulated_sites_follow_from_its_secret() -> None:
    settings = load_settings(EMULATED, environ={})
    assert settings.security.secret
    secret = settings.security.secret.get_secret_value()
    for name, site in settings.sites.items():
        assert site.key
        assert site.key.get_secret_value() == site_key(secret, name)


SITES = load_settings(CLUSTER, environ={}).sites


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text(encoding="ascii") for path in folder.iterdir()}


def test_secrets_are_made_for_all_that_compose_mounts(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    make(folder, SITES)
    made = contents(folder)
    assert made.keys() - {".gitignore"} == {Path(plain(it)["file"]).name for it in COMPOSE["secrets"].values()}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o444}
    assert len(bytes.fromhex(made["cluster_secret"])) == 32
    assert made["lyon_key"].strip() == site_key(made["cluster_secret"].strip(), "lyon")


def test_secrets_that_are_there_stay_and_what_follows_from_a_new_one_is_made_anew(tmp_path: Path) -> None:
    make(tmp_path, SITES)
    before = contents(tmp_path)
    make(tmp_path, SITES)
    assert contents(tmp_path) == before
    (tmp_path / "cluster_secret").unlink()
    (tmp_path / "lyon_redis_password").unlink()
    make(tmp_path, SITES)
    changed = {name for name, text in contents(tmp_path).items() if text != before[name]}
    assert changed == {"cluster_secret", "paris_key", "lyon_key", "nice_key", "lyon_redis_password", "redis_users"}


def test_redis_users_have_the_documented_rights_and_their_passwords_are_not_to_be_read() -> None:
    lines = redis_users("first-secret", dict.fromkeys(SITES, "second-secret"), SITES).splitlines()
    assert [line.split()[1:3] for line in lines] == [
        ["default", "off"],
        *[[user, "on"] for user in ("pice", "site-paris", "site-lyon", "site-nice")],
    ]
    assert "first-secret" not in "".join(lines)
    assert "second-secret" not in "".join(lines)
    page = (ROOT / "docs" / "redis-acl.md").read_text(encoding="utf-8")
    assert lines[2].partition(" resetchannels ")[2] in page
    assert lines[3].partition(" resetchannels ")[2] == lines[2].partition(" resetchannels ")[2].replace("paris", "lyon")


async def test_redis_starts_as_compose_starts_it_and_takes_the_users_that_are_made(tmp_path: Path) -> None:
    make(tmp_path, SITES)
    made, port = contents(tmp_path), free_port()
    command = [word.replace("/run/secrets", str(tmp_path)) for word in SERVICES["redis"]["command"]]
    words = [*command, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    program = Program("redis", [found("redis-server", "redis-server"), *words[1:]], tmp_path)
    try:
        program.wait_until(lambda: listens(port))
        for user, secret in ((REDIS_USER, "redis_password"), ("site-lyon", "lyon_redis_password")):
            url = f"redis://{user}@127.0.0.1:{port}/0"
            client = await connect_redis(url, password=made[secret].strip())
            await client.close()
            with pytest.raises(ConfigError, match="refuses us"):
                await connect_redis(url, password=made["grafana_password"].strip())
        with pytest.raises(ConfigError, match="refuses us"):
            await connect_redis(f"redis://127.0.0.1:{port}/0")
    finally:
        program.stop()


# --- docs/security.md ---


def test_acl_commands_name_topics_and_groups_that_there_are() -> None:
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    topics = {spec.name for spec in topic_specs(load_settings(CLUSTER, environ={}))}
    named = set(re.findall(r"--topic (\S+)", page))
    assert {topic for topic in topics if not topic.startswith(SEGMENTS)} <= named
    assert {topic for topic in named if not any(known.startswith(topic) for known in topics)} == set()
    groups = {f"{topic}.{group}" for topic, group in ((REQUESTS, "cloud"), (JOBS, "jobs"))}
    groups |= {f"{segments_topic('main')}.edge.0", f"{segments_topic('cloud')}.edge.0"}
    known = set(re.findall(r"--group (\S+)", page))
    assert {group for group in groups if not any(group.startswith(each) for each in known)} == set()

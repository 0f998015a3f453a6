"""Loading settings: what overrides what, and what each fault is called."""

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from pydantic import SecretStr

from pice.config import load, load_settings, read_secret, with_keys
from pice.core import Curve
from pice.errors import ConfigError
from pice.settings import EmulatedSettings, LlamaCppSettings, OpenAISettings, Settings

CONFIGS = sorted((Path(__file__).parents[2] / "config").glob("*.toml"))

SMALL = """\
[engines.big]
kind = "emulated"
curve = { batch = [1, 8], step_s = [0.03, 0.04] }
[engines.small]
kind = "llama_cpp"
path = "small.gguf"
n_seq_max = 64
[cloud]
engine = "big"
[sites.lyon]
engines = ["small"]
[sites.new-york]
engines = ["small"]
"""

SERVER = """\
[engines.big]
kind = "openai"
base_url = "http://127.0.0.1:8000/v1/"
model = "m"
[cloud]
engine = "big"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(folder: Path, text: str, *overrides: str, environ: dict[str, str] | None = None) -> list[str]:
    """The lines of the refusal, with the folder left out."""
    with pytest.raises(ConfigError) as caught:
        load_settings(written(folder, text), overrides, environ or {})
    return str(caught.value).replace(f"{folder}/", "").splitlines()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shipped_configuration_is_valid(path: Path) -> None:
    settings = load_settings(path, environ={})
    assert settings.cloud.engine == "cloud"
    assert settings.sites


def test_defaults_are_those_of_the_model_when_the_file_is_silent(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL), environ={})
    assert settings.planner.margin == 0.1
    assert settings.limits.max_message_bytes == 1 << 20
    assert settings.sites["lyon"].order == "multilist"


def test_override_beats_environment_beats_file_beats_default(tmp_path: Path) -> None:
    path = written(tmp_path, SMALL + "[planner]\nmargin = 0.2\nmax_points = 5\nsegment_words = 7\n")
    environ = {"PICE_PLANNER__MAX_POINTS": "6", "PICE_PLANNER__SEGMENT_WORDS": "8"}
    planner = load_settings(path, ["planner.segment_words=9"], environ).planner
    assert (planner.margin, planner.max_points, planner.segment_words, planner.max_segments) == (0.2, 6, 9, 24)


@pytest.mark.parametrize(
    ("text", "value"),
    [("terse", "terse"), ('"two words"', "two words"), ("7", "7")],
    ids=["bare word", "quoted", "number where a string is wanted"],
)
def test_override_value_is_toml_or_a_bare_word(tmp_path: Path, text: str, value: str) -> None:
    engine = load_settings(written(tmp_path, SMALL), [f"engines.big.model={text}"], {}).engines["big"]
    assert engine.model == value


def test_override_may_name_a_whole_table_and_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    override = "engines.big.curve={batch = [1], step_s = [0.5]}"
    path = written(tmp_path, SMALL.replace("0.04] }", "0.04], base_s = 0.25 }"))
    engine = load_settings(path, [override], {}).engines["big"]
    assert isinstance(engine, EmulatedSettings)
    assert engine.curve.curve() == Curve((1,), (0.5,), 0.0, 0.25)


def test_override_with_an_empty_table_empties_it(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, SMALL), ["sites={}"], {})
    assert loaded.settings.sites == {}
    assert "sites = {}  # --set sites" in loaded.lines()
    assert not [key for key in loaded.origins if key[:2] == ("sites", "lyon")]
    again = load_settings(tmp_path / "x.toml", ["sites={}", "sites.paris.engines=['big']"], {})
    assert set(again.sites) == {"paris"}


def test_of_two_settings_that_do_not_fit_the_one_set_last_is_blamed(tmp_path: Path) -> None:
    text = SMALL + "[planner]\nhedge_min_s = 4\n[limits]\nrequest_timeout_s = 5\n"
    assert refusal(tmp_path, text, "limits.request_timeout_s=3") == [
        "--set limits.request_timeout_s: limits.request_timeout_s must be above planner.hedge_min_s (4), got 3"
    ]
    assert refusal(
        tmp_path, text, "planner.hedge_min_s=6", environ={"PICE_LIMITS": "x", "PICE_LIMITS__DRAIN_S": "3"}
    ) == ["--set planner.hedge_min_s: planner.hedge_min_s must be below limits.request_timeout_s (5), got 6"]
    (line,) = refusal(tmp_path, text.replace("_s = 5", "_s = 4"))
    assert line.startswith("x.toml: limits.request_timeout_s must be above planner.hedge_min_s (4), got 4")


def test_override_with_a_line_break_cannot_smuggle_in_another_key(tmp_path: Path) -> None:
    engine = load_settings(written(tmp_path, SMALL), ["engines.big.model='a'\nb=2"], {}).engines["big"]
    assert engine.model == "'a'\nb=2"


@pytest.mark.parametrize("text", ["cloud.prompts", "=3", "cloud..prompts=3"])
def test_override_that_is_no_assignment_is_refused(tmp_path: Path, text: str) -> None:
    assert refusal(tmp_path, SMALL, text) == [f"--set must look like sites.lyon.rtt_s=0.05, got {text!r}"]


def test_what_is_no_utf8_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, SMALL, "cl\udcffoud.x=1")
    assert line == r"--set 'cl\udcffoud.x=1' must be UTF-8 text"
    (line,) = refusal(tmp_path, SMALL, environ={"PICE_ENGINES__BIG__API_KEY": "\udcff"})
    assert line == "environment 'PICE_ENGINES__BIG__API_KEY' must be UTF-8 text"


def test_environment_names_a_dashed_site_with_underscores(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL), environ={"PICE_SITES__NEW_YORK__RTT_S": "0.08"})
    assert settings.sites["new-york"].rtt_s == 0.08


def test_environment_value_may_be_a_list(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL), environ={"PICE_SITES__LYON__ENGINES": '["big", "small"]'})
    assert settings.sites["lyon"].engines == ("big", "small")


def test_environment_without_a_section_is_not_a_setting(tmp_path: Path) -> None:
    load_settings(written(tmp_path, SMALL), environ={"PICE_DATA": "/somewhere", "PICE_REQUIRE_BROKERS": "1"})


def test_environment_with_an_unknown_key_is_refused_by_its_own_name(tmp_path: Path) -> None:
    assert refusal(tmp_path, SMALL, environ={"PICE_PLANNER__MARGN": "0.2"}) == [
        "environment PICE_PLANNER__MARGN: planner.margn is not known: did you mean margin?"
    ]


def test_path_in_a_file_starts_from_the_files_folder(tmp_path: Path) -> None:
    engine = load_settings(written(tmp_path, SMALL), environ={}).engines["small"]
    assert isinstance(engine, LlamaCppSettings)
    assert engine.path == tmp_path / "small.gguf"
    assert engine.model == "small"


def test_path_in_a_file_is_shown_without_the_way_back_unless_a_link_is_on_it(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "away" / "config").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "away" / "config")
    for folder, path in (("config", "models/small.gguf"), ("linked", "linked/../models/small.gguf")):
        text = SMALL.replace("small.gguf", "../models/small.gguf")
        engine = load_settings(written(tmp_path / folder, text), environ={}).engines["small"]
        assert isinstance(engine, LlamaCppSettings)
        assert str(engine.path) == f"{tmp_path}/{path}"


def test_prompt_set_in_a_file_starts_from_the_files_folder(tmp_path: Path) -> None:
    for name in ("default.toml", "default.gbnf"):
        (tmp_path / name).write_bytes(files("pice.sketch").joinpath("prompts", name).read_bytes())
    text = SMALL.replace('engine = "big"', 'engine = "big"\nprompts = "default.toml"')
    settings = load_settings(
        written(tmp_path, text.replace('["small"]', '["small"]\nprompts = "default.toml"', 1)), (), {}
    )
    assert settings.cloud.prompts == settings.sites["lyon"].prompts == str(tmp_path / "default.toml")
    assert settings.sites["new-york"].prompts == "default"


def test_path_from_an_override_starts_from_the_current_directory(tmp_path: Path) -> None:
    engine = load_settings(written(tmp_path, SMALL), ["engines.small.path=other.gguf"], {}).engines["small"]
    assert isinstance(engine, LlamaCppSettings)
    assert engine.path == Path("other.gguf")


FAULTS = [
    ("cloud.max_inflight=0", "cloud.max_inflight must be >= 1, got 0"),
    ("cloud.max_inflight=1.5", "cloud.max_inflight must be a whole number, got 1.5"),
    ("planner.margin=much", "planner.margin must be a number, got 'much'"),
    ("planner.margin=nan", "planner.margin must be a finite number, got nan"),
    ("planner.sketch_ratio=1", "planner.sketch_ratio must be < 1.0, got 1"),
    ("planner.eager=7", "planner.eager must be true or false, got 7"),
    ("sites.lyon.order=lifo", "sites.lyon.order must be 'multilist', 'fcfs' or 'longest', got 'lifo'"),
    ("sites.lyon.engines=small", "sites.lyon.engines must be a list, got 'small'"),
    ("sites.lyon.engines=[]", "sites.lyon.engines must be a list of at least 1, got []"),
    ("sites.lyon=3", "sites.lyon must be a table, got 3"),
    ("cloud={}", "cloud.engine is missing"),
    ("limits.request_timeout_s=0.01", "limits.request_timeout_s must be above planner.hedge_min_s (2), got 0.01"),
    ("engines.big.curve={batch=[1], step_s=[nan]}", "engines.big.curve.step_s.0 must be a finite number, got nan"),
    ("engines.big.curve.batch=[1.5]", "engines.big.curve.batch.0 must be a whole number, got 1.5"),
    ("engines.big.curve.batch=[]", "engines.big.curve.batch must be a list of at least 1, got []"),
    (
        "sites.Paris.engines=['big']",
        "sites.Paris is no name: names are made of a-z, 0-9 and '-', at most 40 characters",
    ),
    (
        "sites.cloud.engines=['big']",
        "sites.cloud is reserved: 'cloud' is the site, and the pool, of the cloud engine itself",
    ),
    ("engines.small.n_cxt=9", "engines.small.n_cxt is not known: did you mean n_ctx?"),
    ("engines.big.curve.step=1", "engines.big.curve.step is not known: did you mean step_s?"),
    ("engines.big.kind=magic", "engines.big.kind must be one of emulated, llama_cpp, openai, got 'magic'"),
    ("engines.other.model=m", "engines.other.kind must be one of emulated, llama_cpp, openai"),
    ("engines.other.kind=llama_cpp", "engines.other.path is missing"),
    ("planers.margin=1", "planers is not known: did you mean planner?"),
    (
        "zzz=1",
        f"zzz is not known: known here are {', '.join(sorted(Settings.model_fields))}",
    ),
    ("ensemble.weights.agreemnt=1", "ensemble.weights.agreemnt is not known: did you mean agreement?"),
    (
        "cloud.prompts=terse",
        "cloud.prompts expected the name of a built-in set (default, demo) or a path to a .toml file, got 'terse'",
    ),
    (
        "sites.lyon.prompts=/no/set.toml",
        "sites.lyon.prompts /no/set.toml: cannot be read (No such file or directory); give the path of a prompt set",
    ),
    ("cloud.engine=bog", "cloud.engine must name one of the engines (big, small), got 'bog'"),
    ("sites.lyon.engines=['bog']", "sites.lyon.engines must name some of the engines (big, small), got 'bog'"),
    ("sites.lyon.engines=['small','small']", "sites.lyon.engines must be different models, got 'small' twice"),
    ("planner.hedge_min_s=500", "planner.hedge_min_s must be below limits.request_timeout_s (120), got 500"),
    (
        "engines.big.curve.batch=[1]",
        "engines.big.curve must have one step_s per batch size, got 1 sizes and 2 times",
    ),
    (
        "engines.big.curve.batch=[8, 1]",
        "engines.big.curve must have batch and step_s in ascending order: a larger batch takes no less time a step",
    ),
    ("engines.small.n_batch=32", "engines.small must have n_seq_max <= n_batch, got 64 > 32"),
    ("engines.big.style.points=[7, 5]", "engines.big.style.points must be [least, most], got [7, 5]"),
    ("engines.big.style.points=[7]", "engines.big.style.points.1 is missing"),
    ("ensemble.weights={logprob=0, length=0, overlap=0, agreement=0}", "ensemble.weights must not all be 0"),
]


@pytest.mark.parametrize(("override", "line"), FAULTS, ids=lambda text: text[:40])
def test_wrong_value_is_named_by_its_full_key(tmp_path: Path, override: str, line: str) -> None:
    (found,) = refusal(tmp_path, SMALL, override)
    assert found == f"--set {override.partition('=')[0]}: {line}"


def test_every_fault_is_reported_at_once(tmp_path: Path) -> None:
    lines = refusal(
        tmp_path, SMALL + "[limits]\nmax_deliveries = 0\n", "cloud.max_inflight=0", environ={"PICE_X__Y": "1"}
    )
    assert sorted(line.partition(":")[0] for line in lines) == [
        "--set cloud.max_inflight",
        "environment PICE_X__Y",
        "x.toml",
    ]


def test_missing_section_is_reported_for_the_file(tmp_path: Path) -> None:
    assert refusal(tmp_path, SMALL.replace('[cloud]\nengine = "big"\n', "")) == ["x.toml: cloud is missing"]


def test_syntax_error_names_the_line(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, "[cloud]\nengine big\n")
    assert line.startswith("x.toml: is not valid TOML: ")
    assert "line 2" in line


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not valid TOML"):
        load_settings(tmp_path / "x.toml", environ={})


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: cannot be read: No such file"):
        load_settings(tmp_path / "absent.toml", environ={})


@pytest.mark.parametrize("text", [None, "", "[planner]\nmargin = 0.2\n"], ids=["no file", "empty", "no engines"])
def test_configuration_without_engines_says_what_to_do(tmp_path: Path, text: str | None) -> None:
    with pytest.raises(ConfigError, match=r"no engine is configured: pass `--config config/emulated\.toml`"):
        load_settings(None if text is None else written(tmp_path, text), environ={})


SECRET = "sk-very-secret"


def server(settings: Settings) -> OpenAISettings:
    engine = settings.engines["big"]
    assert isinstance(engine, OpenAISettings)
    return engine


def test_secret_is_masked_wherever_settings_are_shown(tmp_path: Path) -> None:
    loaded = load(written(tmp_path, SERVER), environ={"PICE_ENGINES__BIG__API_KEY": SECRET})
    key = server(loaded.settings).api_key
    assert key is not None
    assert key.get_secret_value() == SECRET
    assert SECRET not in repr(loaded) + str(loaded.settings) + loaded.settings.model_dump_json() + "".join(
        loaded.lines()
    )


@pytest.mark.parametrize(
    "override", [f"engines.big.api_key=['{SECRET}']", f"engines.big.apikey={SECRET}", f"cloud.api_key={SECRET}"]
)
def test_refusal_does_not_repeat_a_secret(tmp_path: Path, override: str) -> None:
    assert SECRET not in "".join(refusal(tmp_path, SERVER, override))


def test_key_is_read_from_the_file_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "vllm.key").write_text(SECRET + "\n")
    path = written(tmp_path, SERVER.replace("[cloud]", 'api_key_file = "vllm.key"\n[cloud]'))
    key = server(load_settings(path, environ={})).api_key
    assert key is not None
    assert key.get_secret_value() == SECRET


@pytest.mark.parametrize(("content", "reason"), [(None, "No such file"), (" \n", "but is empty")])
def test_key_file_without_a_key_is_refused(tmp_path: Path, content: str | None, reason: str) -> None:
    if content is not None:
        (tmp_path / "vllm.key").write_text(content)
    (line,) = refusal(tmp_path, SERVER, f"engines.big.api_key_file={tmp_path}/vllm.key")
    assert line.startswith("engines.big.api_key_file vllm.key")
    assert reason in line


def test_key_and_key_file_together_are_refused(tmp_path: Path) -> None:
    environ = {"PICE_ENGINES__BIG__API_KEY": SECRET, "PICE_ENGINES__BIG__API_KEY_FILE": "vllm.key"}
    (line,) = refusal(tmp_path, SERVER, environ=environ)
    assert line.endswith("engines.big must have api_key or api_key_file, not both")
    assert SECRET not in line


def test_server_address_loses_its_last_slash_and_must_be_http(tmp_path: Path) -> None:
    assert server(load_settings(written(tmp_path, SERVER), environ={})).base_url == "http://127.0.0.1:8000/v1"
    assert refusal(tmp_path, SERVER, "engines.big.base_url=localhost:8000") == [
        "--set engines.big.base_url: engines.big.base_url must be an http:// or https:// address, got 'localhost:8000'"
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_shown_settings_are_a_file_that_gives_the_same_settings(path: Path, tmp_path: Path) -> None:
    loaded = load(path, ["planner.margin=0.3"], {})
    again = load_settings(written(tmp_path, "\n".join(loaded.lines())), environ={})
    assert again.model_dump(mode="json") == loaded.settings.model_dump(mode="json")  # which masks secrets


def test_shown_value_says_where_it_came_from_unless_it_is_a_default(tmp_path: Path) -> None:
    lines = load(written(tmp_path, SMALL), ["planner.margin=0.3"], {"PICE_LIMITS__DRAIN_S": "3"}).lines()
    assert f'cloud.engine = "big"  # {tmp_path}/x.toml' in lines
    assert "planner.margin = 0.3  # --set planner.margin" in lines
    assert "limits.drain_s = 3.0  # environment PICE_LIMITS__DRAIN_S" in lines
    assert "planner.max_points = 24" in lines
    assert tomllib.loads("\n".join(lines))["limits"]["max_deliveries"] == 5


# --- services ---

CLUSTER = (
    SMALL
    + """\
[kafka]
bootstrap_servers = "kafka:9092"
[redis]
url = "redis://pice@redis:6379/0"
"""
)
SECRETS = (
    "kafka.password",
    "redis.password",
    "security.secret",
    "sites.lyon.key",
)
SASL = ["kafka.security_protocol=SASL_SSL", "kafka.username=pice"]


def variable(key: str) -> str:
    return "PICE_" + key.replace(".", "__").upper()


def secret_of(settings: Settings, key: str) -> str:
    found: object = settings
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else getattr(found, name)
    assert isinstance(found, SecretStr)
    return found.get_secret_value()


def test_without_brokers_all_runs_in_one_process(tmp_path: Path) -> None:
    settings = load_settings(written(tmp_path, SMALL), environ={})
    assert settings.kafka is None
    assert settings.redis is None
    assert settings.security.secret is None
    assert settings.service.health_port == 0


CLUSTER_FAULTS = [
    ("kafka.bootstrap_servers=kafka", "kafka.bootstrap_servers must be HOST:PORT, several by comma, got 'kafka'"),
    ("kafka.bootstrap_servers=a:1,b:0", "kafka.bootstrap_servers must be HOST:PORT, several by comma, got 'a:1,b:0'"),
    (
        "kafka.security_protocol=TLS",
        "kafka.security_protocol must be 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL', got 'TLS'",
    ),
    ("kafka.security_protocol=SASL_SSL", "kafka must have username and password (or password_file) for SASL_SSL"),
    ("kafka.username=pice", "kafka must have no username and password with PLAINTEXT: they would not be used"),
    (
        "kafka.password_file=/run/secrets/x",
        "kafka must have no username and password with PLAINTEXT: they would not be used",
    ),
    ("kafka.ca_file=ca.pem", "kafka must have no ca_file and cert_file with PLAINTEXT"),
    ("kafka={security_protocol='SSL', cert_file='c.pem'}", "kafka must have cert_file and cert_key_file together"),
    ("kafka.replication_factor=17", "kafka.replication_factor must be <= 16, got 17"),
    ("redis.url=redis:6379", "redis.url must look like redis://host:6379/0, or rediss: for TLS"),
    ("redis.url=redis://redis?ssl_cert_reqs=none", "redis.url must end with the database: no options after it"),
    (
        "redis.ca_file=ca.pem",
        "redis must have no ca_file without TLS: the url of a server with TLS begins with rediss:",
    ),
    ("service.health_port=65536", "service.health_port must be <= 65535, got 65536"),
    ("service.lease_s=0.5", "service.lease_s must be >= 1.0, got 0.5"),
    ("service.log_format=xml", "service.log_format must be 'text' or 'json', got 'xml'"),
    (
        "sites.lyon.pool=cloud",
        "sites.lyon.pool is reserved: 'cloud' is the site, and the pool, of the cloud engine itself",
    ),
    ("jobs.keep_s=0", "jobs.keep_s must be > 0.0, got 0"),
]


@pytest.mark.parametrize(("override", "line"), CLUSTER_FAULTS, ids=lambda text: text[:40])
def test_wrong_value_of_a_service_is_named_by_its_full_key(tmp_path: Path, override: str, line: str) -> None:
    (found,) = refusal(tmp_path, CLUSTER, override)
    assert found.partition(": ")[2] == line


@pytest.mark.parametrize(("missing", "there"), [("redis", "kafka"), ("kafka", "redis")])
def test_one_broker_without_the_other_is_refused(tmp_path: Path, missing: str, there: str) -> None:
    before, _, rest = CLUSTER.partition(f"[{missing}]\n")
    text = before + rest.partition("\n")[2]
    (line,) = refusal(tmp_path, text)
    assert line == f"x.toml: {missing} is missing: services need it beside {there}"


@pytest.mark.parametrize("key", SECRETS)
def test_secret_of_a_service_is_masked_wherever_settings_are_shown(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, CLUSTER)
    loaded = load(path, SASL if key.startswith("kafka") else (), {variable(key): SECRET})
    assert secret_of(loaded.settings, key) == SECRET
    shown = repr(loaded) + str(loaded.settings) + loaded.settings.model_dump_json() + "".join(loaded.lines())
    assert SECRET not in shown
    assert any(line.startswith(f'{key} = "*****') and line.endswith(variable(key)) for line in loaded.lines())


@pytest.mark.parametrize("key", SECRETS)
def test_refusal_of_a_service_does_not_repeat_a_secret(tmp_path: Path, key: str) -> None:
    table, _, name = key.rpartition(".")
    wrong = [f"{key}=['{SECRET}']", f"{table}.{name}x={SECRET}", f"{key}={{a='{SECRET}'}}"]
    for override in wrong:
        lines = refusal(tmp_path, CLUSTER, override)
        assert any(table in line for line in lines)
        assert SECRET not in "".join(lines)


@pytest.mark.parametrize("key", SECRETS)
def test_secret_that_looks_like_a_number_is_taken_to_the_letter(tmp_path: Path, key: str) -> None:
    path = written(tmp_path, CLUSTER)
    for text in ("1e5", "0x10", "1_000", "2024-01-01", "true", "nan"):
        settings = load_settings(path, SASL if key.startswith("kafka") else (), {variable(key): text})
        assert secret_of(settings, key) == text


@pytest.mark.parametrize("key", SECRETS)
@pytest.mark.parametrize("text", ["", "  "], ids=["empty", "blank"])
def test_empty_secret_is_refused_since_it_would_switch_the_check_off(tmp_path: Path, key: str, text: str) -> None:
    lines = refusal(tmp_path, CLUSTER, *(SASL if key.startswith("kafka") else ()), environ={variable(key): text})
    assert lines == [f"environment {variable(key)}: {key} must not be empty: leave it out where there is none"]


@pytest.mark.parametrize("key", SECRETS)
def test_secret_and_its_file_together_are_refused(tmp_path: Path, key: str) -> None:
    table, _, name = key.rpartition(".")
    overrides = [f"{key}={SECRET}", f"{key}_file=x", *(SASL if table == "kafka" else ())]
    (line,) = refusal(tmp_path, CLUSTER, *overrides)
    assert line.endswith(f"{table} must have {name} or {name}_file, not both")
    assert SECRET not in line


def test_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    (line,) = refusal(tmp_path, CLUSTER, f"redis.url=redis://pice:{SECRET}@redis:6379/0")
    assert line.endswith("redis.url must hold no password: put that in redis.password or redis.password_file")
    assert SECRET not in line


def test_files_of_a_service_start_from_the_configurations_folder_and_are_read_by_who_uses_them(tmp_path: Path) -> None:
    text = CLUSTER.replace("[kafka]\n", '[kafka]\nsecurity_protocol = "SSL"\nca_file = "ca.pem"\n')
    text = text.replace("[sites.lyon]\n", '[sites.lyon]\nkey_file = "lyon.key"\n')
    text += 'password_file = "redis.password"\n[security]\nsecret_file = "secret"\n'
    settings = load_settings(written(tmp_path, text), environ={})  # none of these files is there
    assert settings.kafka
    assert settings.redis
    assert settings.kafka.ca_file == tmp_path / "ca.pem"
    assert settings.redis.password_file == tmp_path / "redis.password"
    assert settings.security.secret_file == tmp_path / "secret"
    assert settings.sites["lyon"].key_file == tmp_path / "lyon.key"


def test_key_of_a_server_is_read_by_the_service_that_uses_it_alone(tmp_path: Path) -> None:
    text = SERVER.replace("[cloud]", 'api_key_file = "vllm.key"\n[cloud]') + CLUSTER.partition("\n[kafka]")[2]
    text = text.replace("bootstrap_servers", "[kafka]\nbootstrap_servers", 1)
    settings = load_settings(written(tmp_path, text), environ={})
    assert server(settings).api_key is None
    (tmp_path / "vllm.key").write_text(SECRET)
    key = server(with_keys(settings, ["big"])).api_key
    assert key is not None
    assert key.get_secret_value() == SECRET


def test_secret_is_read_from_what_was_given_or_else_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(f" {SECRET}\n")
    assert read_secret(None, None, "security.secret_file") == ""
    assert read_secret(SecretStr("given"), None, "security.secret_file") == "given"
    assert read_secret(None, file, "security.secret_file") == SECRET


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read: .*No such file"),
        (b" \n", "must hold the secret, but is empty"),
        (b"\xff", "cannot be read"),
    ],
    ids=["missing", "empty", "no text"],
)
def test_secret_file_without_a_secret_is_refused_by_the_name_of_its_setting(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"^security\.secret_file {file} {reason}"):
        read_secret(None, file, "security.secret_file")

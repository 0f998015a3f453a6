"""Loads a configuration from a TOML file, the environment and `--set`, and says everything that is wrong with it.

A later source overrides an earlier one: defaults, file, environment (`PICE_SITES__LYON__RTT_S=0.05`), `--set
sites.lyon.rtt_s=0.05`. Relative paths in a file start from the file's folder, all others from the current directory.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from pydantic import SecretStr, ValidationError

from pice.errors import ConfigError
from pice.setting_faults import SECRETS, Key, describe_fault, is_echo
from pice.settings import OpenAISettings, Settings
from pice.sketch.prompts import load_prompts

ENV_PREFIX = "PICE_"
NO_ENGINES = (
    "no engine is configured: pass `--config config/emulated.toml` to try PICE without a model, or name two GGUF files "
    "as config/llama.toml does"
)
PATH_KEYS = {
    "engines": ("path", "api_key_file"),
    "sites": ("prompts", "key_file"),
    "cloud": ("prompts",),
    "kafka": ("ca_file", "cert_file", "cert_key_file", "password_file"),
    "redis": ("ca_file", "password_file"),
    "security": ("secret_file",),
}
"""Keys whose value is a path, or (prompts) one when it ends in .toml."""
NESTED = ("engines", "sites")
"""Tables of tables."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings, and for each key that is not a default where its value came from."""

    settings: Settings
    origins: Mapping[Key, str] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """TOML lines of every setting, secrets masked, with a comment where a value is not the default."""
        dump = self.settings.model_dump(mode="json", exclude_none=True)
        return [_line(key, value, self.origins.get(key)) for key, value in _leaves(dump)]


def load_settings(
    path: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> Settings:
    """The checked settings.

    Raises:
        ConfigError: one line for each fault found, all at once.
    """
    return load(path, overrides, environ).settings


def load(path: Path | None, overrides: Sequence[str] = (), environ: Mapping[str, str] = os.environ) -> Loaded:
    """As `load_settings`, with the origin of each value."""
    tree: dict[str, Any] = {}
    origins: dict[Key, str] = {}
    for key, value, origin in _entries(path, overrides, environ, tree):
        _put(tree, key, value)
        for known in [known for known in origins if known == key or (value == {} and known[: len(key)] == key)]:
            del origins[known]
        origins[key] = origin
    if not tree.get("engines"):
        raise ConfigError(f"{path}: {NO_ENGINES}" if path else NO_ENGINES)
    try:
        settings = Settings.model_validate(tree)
    except ValidationError as error:
        faults = [describe_fault(fault, tree) for fault in error.errors(include_url=False) if not is_echo(fault)]
        raise _refusal(faults, origins, path) from None
    if faults := list(_contradictions(settings, origins)):
        raise _refusal(faults, origins, path)
    return Loaded(settings if settings.kafka else with_keys(settings, settings.engines), origins)


def _entries(
    path: Path | None, overrides: Sequence[str], environ: Mapping[str, str], tree: dict[str, Any]
) -> Iterator[tuple[Key, Any, str]]:
    if path is not None:
        for key, value in _leaves(_anchored(_read(path), path.parent)):
            yield key, value, str(path)
    for name in sorted(environ):  # by now `tree` holds what the file says
        if name.startswith(ENV_PREFIX) and "__" in name:
            _refuse_bytes(name + environ[name], f"environment {name!a}")
            key = _env_key(name, tree)
            yield key, _parsed(key, environ[name]), f"environment {name}"
    for text in overrides:
        _refuse_bytes(text, f"--set {text!a}")
        key, value = _override(text)
        yield from ((leaf_key, leaf, f"--set {'.'.join(key)}") for leaf_key, leaf in _leaves(value, key))


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _anchored(tree: dict[str, Any], folder: Path) -> dict[str, Any]:
    for section, names in PATH_KEYS.items():
        for table in _tables(tree.get(section), nested=section in NESTED):
            for name in names:
                given = table.get(name)
                if isinstance(given, str) and (name != "prompts" or given.endswith(".toml")):
                    table[name] = str(_plain(folder / Path(given).expanduser()))
    return tree


def _plain(path: Path) -> Path:
    """The path without `..`, unless that would be another file: `..` after a link leads elsewhere."""
    plain = Path(os.path.normpath(path))
    return plain if plain.resolve() == path.resolve() else path


def _tables(section: Any, *, nested: bool) -> list[dict[str, Any]]:
    tables = section.values() if nested and isinstance(section, dict) else [section]
    return [table for table in tables if isinstance(table, dict)]


def _leaves(value: Any, key: Key = ()) -> Iterator[tuple[Key, Any]]:
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    else:
        yield key, value


def _put(tree: dict[str, Any], key: Key, value: Any) -> None:
    for name in key[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {}
        tree = tree[name]
    tree[key[-1]] = value


def _env_key(name: str, tree: Any) -> Key:
    """`PICE_SITES__NEW_YORK__RTT_S` names `sites.new-york.rtt_s` when there is such a site: shells allow no `-`."""
    key: Key = ()
    for part in name.removeprefix(ENV_PREFIX).lower().split("__"):
        dashed = part.replace("_", "-")
        known = dashed if isinstance(tree, dict) and part not in tree and dashed in tree else part
        key = (*key, known)
        tree = tree.get(known) if isinstance(tree, dict) else None
    return key


def _refuse_bytes(text: str, origin: str) -> None:
    """What came from the shell and is no UTF-8 has surrogates in it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"{origin} must be UTF-8 text") from None


def _override(text: str) -> tuple[Key, Any]:
    name, equals, value = text.partition("=")
    key = tuple(part.strip() for part in name.split("."))
    if not equals or not all(key):
        raise ConfigError(f"--set must look like sites.lyon.rtt_s=0.05, got {text!r}")
    return key, _parsed(key, value)


def _parsed(key: Key, text: str) -> Any:
    """A TOML value; what is none is taken as a bare string, and so is a secret that looks like a number or a date."""
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = document["value"]
    is_plain = len(document) > 1 or (key[-1] in SECRETS and not isinstance(value, str | list | dict))
    return text if is_plain else value


def _contradictions(settings: Settings, origins: Mapping[Key, str]) -> Iterator[tuple[Key, str]]:
    known = ", ".join(sorted(settings.engines))
    if settings.cloud.engine not in settings.engines:
        yield ("cloud", "engine"), f"must name one of the engines ({known}), got {settings.cloud.engine!r}"
    yield from _prompt_fault(("cloud", "prompts"), settings.cloud.prompts)
    for name, site in settings.sites.items():
        yield from _prompt_fault(("sites", name, "prompts"), site.prompts)
        key = ("sites", name, "engines")
        unknown = [engine for engine in site.engines if engine not in settings.engines]
        yield from ((key, f"must name some of the engines ({known}), got {engine!r}") for engine in unknown)
        models = [settings.engines[engine].model for engine in site.engines if engine in settings.engines]
        twice = sorted({model for model in models if models.count(model) > 1})
        yield from ((key, f"must be different models, got {model!r} twice") for model in twice)
    if (settings.kafka is None) != (settings.redis is None):
        missing, there = ("redis", "kafka") if settings.kafka else ("kafka", "redis")
        yield (missing,), f"is missing: services need it beside {there}"
    planner, limits = settings.planner, settings.limits
    if planner.hedge_min_s >= limits.request_timeout_s:
        below, above = ("planner", "hedge_min_s"), ("limits", "request_timeout_s")
        if _set_at(above, origins) > _set_at(below, origins):
            yield (
                above,
                f"must be above planner.hedge_min_s ({planner.hedge_min_s:g}), got {limits.request_timeout_s:g}",
            )
        else:
            yield (
                below,
                f"must be below limits.request_timeout_s ({limits.request_timeout_s:g}), got {planner.hedge_min_s:g}",
            )


def _set_at(key: Key, origins: Mapping[Key, str]) -> int:
    """When the key, or a table around it, was last set; -1 if it is a default."""
    return max((place for place, known in enumerate(origins) if key[: len(known)] == known), default=-1)


def _prompt_fault(key: Key, name_or_path: str) -> Iterator[tuple[Key, str]]:
    try:
        load_prompts(name_or_path)
    except ConfigError as error:
        yield key, str(error).removeprefix("prompts: ")


def _refusal(faults: Sequence[tuple[Key, str]], origins: Mapping[Key, str], path: Path | None) -> ConfigError:
    lines = [f"{_origin(key, origins) or path or 'settings'}: {'.'.join(key)} {text}" for key, text in faults]
    return ConfigError("\n".join(dict.fromkeys(lines)))


def _origin(key: Key, origins: Mapping[Key, str]) -> str | None:
    """Who set this key, or else who last set something within it, or else beside it."""
    if key in origins:
        return origins[key]
    for length in range(len(key), 0, -1):
        for known, origin in reversed(list(origins.items())):
            if known[:length] == key[:length]:
                return origin
    return None


def with_keys(settings: Settings, names: Iterable[str]) -> Settings:
    """The settings with the API keys of these engines read from their files. Of services each reads only what it
    uses: the file of another's key is not on its machine.

    Raises:
        ConfigError: one cannot be read.
    """
    engines = dict(settings.engines)
    for name in names:
        if isinstance(engine := engines[name], OpenAISettings):
            key = read_secret(engine.api_key, engine.api_key_file, f"engines.{name}.api_key_file")
            engines[name] = engine.model_copy(update={"api_key": SecretStr(key) if key else None})
    return settings.model_copy(update={"engines": engines})


def read_secret(given: SecretStr | None, file: Path | None, key: str) -> str:
    """What was given, or what stands in `file`; "" for neither. `key` is the setting that names the file.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return given.get_secret_value() if given else ""
    try:
        secret = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key} {file} cannot be read: {error}") from error
    if not secret:
        raise ConfigError(f"{key} {file} must hold the secret, but is empty")
    return secret


def _line(key: Key, value: Any, origin: str | None) -> str:
    name = ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else orjson.dumps(part).decode() for part in key)
    return f"{name} = {orjson.dumps(value).decode()}" + (f"  # {origin}" if origin else "")

"""What README and docs say that can be looked up: links, files, commands, tests, settings, errors."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from pice import errors, settings
from pice.batch.completion import _STATUS as STATUS
from pice.cli import app
from pice.config import load_settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(ROOT.glob("docs/*.md"))
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
CODE_BLOCK = re.compile(r"^```\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TOML_BLOCK = re.compile(r"^```toml\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| (.+?) \|", re.MULTILINE)
COMMAND = re.compile(r"^(?:\.venv/bin/)?pice (.+)$", re.MULTILINE)
TREE_LINE = re.compile(r"^(?P<indent> *)(?P<names>\S.*?)(?: {2,}\S.*)?$")
NAMED_FILE = re.compile(r"`((?:pice|tests|config|bench|tools|docs)/[\w./-]+)`")
NAMED_TEST = re.compile(r"`(test_\w+)`")

SECTIONS: Mapping[str, type[BaseModel]] = {
    "engines.NAME (emulated)": settings.EmulatedSettings,
    "engines.NAME.curve": settings.CurveSettings,
    "engines.NAME.style": settings.StyleSettings,
    "engines.NAME (llama_cpp)": settings.LlamaCppSettings,
    "engines.NAME (openai)": settings.OpenAISettings,
    "cloud": settings.CloudSettings,
    "sites.NAME": settings.SiteSettings,
    "planner": settings.PlannerSettings,
    "ensemble": settings.EnsembleSettings,
    "ensemble.weights": settings.WeightSettings,
    "limits": settings.LimitSettings,
    "kafka": settings.KafkaSettings,
    "redis": settings.RedisSettings,
    "security": settings.SecuritySettings,
    "service": settings.ServiceSettings,
    "jobs": settings.JobSettings,
}


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def page_ids(page: Path) -> str:
    return page.name


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    found = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text(page)))
    return {heading.replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in LINK.findall(text(page)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pytest.mark.parametrize("page", PAGES, ids=page_ids)
def test_every_file_and_test_that_is_named_exists(page: Path) -> None:
    tests = set(re.findall(r"def (test_\w+)", "\n".join(text(path) for path in ROOT.glob("tests/**/test_*.py"))))
    assert [name for name in NAMED_FILE.findall(text(page)) if not (ROOT / name).exists()] == []
    assert [name for name in NAMED_TEST.findall(text(page)) if name not in tests] == []


def tree() -> set[str]:
    """Paths of the file tree in README: what is indented lies in the folder above it."""
    block = next(block for block in CODE_BLOCK.findall(text(ROOT / "README.md")) if block.startswith("pice/"))
    above: dict[int, str] = {-1: ""}
    paths = set()
    for match in filter(None, map(TREE_LINE.match, block.splitlines())):
        depth = len(match["indent"])
        folder = next(above[at] for at in sorted(above, reverse=True) if at < depth)
        for name in match["names"].split():
            paths.add(folder + name)
            above = {at: path for at, path in above.items() if at < depth} | {depth: folder + name}
    return paths


def test_file_tree_of_readme_names_what_there_is() -> None:
    assert [path for path in sorted(tree()) if not (ROOT / path).exists()] == []


def test_file_tree_of_readme_names_every_module() -> None:
    found = (path for folder in ("pice", "bench", "tools") for path in ROOT.glob(f"{folder}/**/*.py"))
    modules = {path.relative_to(ROOT).as_posix() for path in found if path.name not in ("__init__.py", "__main__.py")}
    assert sorted(modules - tree()) == []


def commands() -> Iterator[list[str]]:
    """Arguments of every `pice` command in a code block, without redirections."""
    for block in (block for page in PAGES for block in CODE_BLOCK.findall(text(page))):
        for match in COMMAND.finditer(block.replace("\\\n", " ")):
            words = shlex.split(match[1].partition(" | ")[0], comments=True)
            yield [word for word in words if not word.startswith((">", "<"))]


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_every_command_that_is_shown_parses(arguments: list[str]) -> None:
    """Options are looked up before `--help` is obeyed, so a wrong one is a wrong usage all the same."""
    ran = CliRunner().invoke(app, [*arguments, "--help"])
    assert ran.exit_code == 0, ran.output
    files = [after for option, after in pairwise(arguments) if option in ("--config", "-c")]
    assert [file for file in files if not (ROOT / file).is_file()] == []


def test_every_configuration_that_is_shown_is_valid(tmp_path: Path) -> None:
    shown = [block for page in PAGES for block in TOML_BLOCK.findall(text(page))]
    assert shown
    for block in shown:
        (tmp_path / "shown.toml").write_text(block, encoding="utf-8")
        load_settings(tmp_path / "shown.toml", environ={})


def sections() -> dict[str, str]:
    """Text under each heading of the configuration page."""
    parts = re.split(r"^## (.+)$", text(ROOT / "docs" / "configuration.md"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def shown_default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default: Any = field.default
    if isinstance(default, BaseModel):
        return "table"
    return "none" if default is None else f"`{json.dumps(default)}`"


@pytest.mark.parametrize("name", SECTIONS)
def test_every_setting_is_documented_with_its_default(name: str) -> None:
    wanted = {key: shown_default(field) for key, field in SECTIONS[name].model_fields.items()}
    assert dict(ROW.findall(sections()[name])) == wanted


def test_every_table_of_the_settings_has_a_section() -> None:
    known = {each for each in vars(settings).values() if isinstance(each, type) and issubclass(each, settings.Section)}
    assert known - {settings.Section, settings.Settings} == set(SECTIONS.values())
    assert set(sections()) == set(SECTIONS)


def error_codes() -> set[str]:
    classes = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.PiceError)]
    return {each.code for each in classes}


def test_every_error_code_is_documented_with_its_http_status() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", text(ROOT / "docs" / "behaviour.md"), flags=re.MULTILINE)
    shown = {code: None if status == "none" else int(status) for code, status in rows}
    assert error_codes() - shown.keys() == set()
    assert STATUS.items() <= shown.items()
    assert {code for code, status in shown.items() if status is not None} == set(STATUS)

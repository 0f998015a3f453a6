"""What the files around the code promise each other."""

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIN = re.compile(r"([a-z0-9]+(?:-[a-z0-9]+)*)==\d[\w.]*")


def pins() -> list[str]:
    return (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()


def test_constraints_are_plain_pins_in_order() -> None:
    assert [pin for pin in pins() if not PIN.fullmatch(pin)] == []
    assert pins() == sorted(set(pins()))


def test_every_requirement_but_vllm_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    wanted = {re.split(r"[^\w.-]", requirement)[0] for group in groups for requirement in group}
    assert wanted - {pin.partition("==")[0] for pin in pins()} == {"vllm"}


def test_ci_script_can_be_run() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

"""What is shipped for Prometheus and Grafana, and docs/metrics.md, name the metrics that there are."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pice.core import Failure
from pice.node.load import Load
from pice.service.health import Health
from pice.service.metrics import PrometheusTelemetry, health_metrics
from pice.store.base import Counted
from tests.unit.service.test_metrics import ANSWER, CANDIDATE, PLACEMENT, PLAN, SPAN

ROOT = Path(__file__).parents[3]
OBSERVE = ROOT / "config" / "observe"
YAML_FILES = sorted(OBSERVE.rglob("*.yml"))
DASHBOARD = OBSERVE / "grafana" / "dashboards" / "pice.json"

METRIC = re.compile(r"\b((?:pice|process)_\w+)")
GROUPING = re.compile(r"\b(?:by|on) ?\(([\w, ]+)\)")
SELECTED = re.compile(r"\b((?:pice|process)_\w+)\{([^}]*)\}")
LABEL = re.compile(r"(\w+)(?:=~|!~|!=|=)")
ROW = re.compile(r"^\| `((?:pice|process)_\w+)` \| (\w+) \|([^|]*)\|", re.MULTILINE)

GIVEN_BY_PROMETHEUS = {"job", "instance", "le"}


def shipped() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric, by its name in Prometheus; all that can happen has happened."""
    telemetry, health = PrometheusTelemetry(), Health()
    telemetry.planned(PLAN)
    telemetry.placed(PLACEMENT)
    telemetry.written(CANDIDATE)
    telemetry.counted(CANDIDATE, Counted.NEW)
    telemetry.forged("paris")
    telemetry.chosen(SPAN)
    telemetry.closed(ANSWER)
    telemetry.closed(Failure("r-2", "cancelled", "gone"))
    telemetry.retried("pice.requests")
    telemetry.buried("pice.requests")
    telemetry.watch_load("paris", "small", Load())
    telemetry.watch_requests("cloud", lambda: 1)
    telemetry.lease_held("paris", held=True)
    health.up("kafka")
    with health_metrics(telemetry.registry, health):
        families = list(telemetry.registry.collect())
    found = {}
    for family in families:
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert family.samples, f"{family.name} has no sample: let it happen in this test"
        name = {"counter": f"{family.name}_total", "info": f"{family.name}_info"}.get(family.type, family.name)
        found[name] = ("gauge" if family.type == "info" else family.type, labels)
    return found


SHIPPED = shipped()


def base(name: str) -> str:
    """A metric's name without what Prometheus adds for the samples of a histogram."""
    stem = re.sub(r"_(bucket|sum|count)$", "", name)
    return stem if SHIPPED.get(stem, ("", ()))[0] == "histogram" else name


def panels() -> list[dict[str, Any]]:
    board: dict[str, list[dict[str, Any]]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return board["panels"]


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((OBSERVE / "rules.yml").read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in panels():
        yield from ((f"{panel['title']} {target['refId']}", target["expr"]) for target in panel["targets"])
    yield from ((rule["alert"], rule["expr"]) for rule in rules())


@pytest.mark.parametrize(("where", "expression"), list(expressions()), ids=[where for where, _ in expressions()])
def test_expression_names_metrics_and_labels_that_there_are(where: str, expression: str) -> None:
    names = {base(name) for name in METRIC.findall(expression)}
    labels = set().union(*(SHIPPED[name][1] for name in names), GIVEN_BY_PROMETHEUS)
    grouped = {label.strip() for group in GROUPING.findall(expression) for label in group.split(",")}
    assert names or expression.startswith("up{")
    assert grouped <= labels
    for name, selection in SELECTED.findall(expression):
        assert set(LABEL.findall(selection)) <= SHIPPED[base(name)][1] | GIVEN_BY_PROMETHEUS
    assert expression.count("(") == expression.count(")")


def test_quantiles_are_taken_of_buckets_of_histograms() -> None:
    quantiles = [expression for _, expression in expressions() if "histogram_quantile" in expression]
    assert quantiles
    for expression in quantiles:
        (name,) = METRIC.findall(expression)
        assert name.endswith("_bucket")
        assert SHIPPED[base(name)][0] == "histogram"
        assert "by (le" in expression


def test_legend_shows_labels_that_its_expression_keeps() -> None:
    for panel in panels():
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            grouped = {label.strip() for group in GROUPING.findall(target["expr"]) for label in group.split(",")}
            assert shown <= (grouped or {"instance", "component"}), panel["title"]


def test_panels_have_numbers_and_places_of_their_own() -> None:
    taken = [
        (x, y)
        for panel in panels()
        for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
        for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_panels_and_provisioning_agree_on_the_datasource() -> None:
    path = OBSERVE / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}


@pytest.mark.parametrize("path", YAML_FILES, ids=[path.relative_to(OBSERVE).as_posix() for path in YAML_FILES])
def test_file_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_prometheus_reads_the_rules_and_every_service() -> None:
    settings = yaml.safe_load((OBSERVE / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job["static_configs"][0]["targets"] for job in settings["scrape_configs"]}
    assert [(OBSERVE / name).is_file() for name in settings["rule_files"]] == [True]
    assert jobs == {
        "cloud": ["cloud:9464"],
        "edge": ["edge-paris:9464", "edge-lyon:9464", "edge-nice:9464"],
        "collector": ["collector:9464"],
    }


def test_every_alert_says_what_is_wrong_how_bad_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "action"}, rule["alert"]


def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    """By Prometheus itself, on series that are written out in `rules_test.yml`."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("promtool is not installed (Debian: it is in the package prometheus)")
    for path in (OBSERVE / "rules.yml", Path(__file__).with_name("rules_test.yml")):
        shutil.copy(path, tmp_path)
    ran = subprocess.run(
        [promtool, "test", "rules", "rules_test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def documented() -> dict[str, tuple[str, set[str]]]:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in ROW.findall(page)}


def test_docs_describe_every_metric_with_its_type_and_labels_and_no_other() -> None:
    ours = {name: facts for name, facts in documented().items() if name.startswith("pice_")}
    assert ours == {name: facts for name, facts in SHIPPED.items() if name.startswith("pice_")}


def test_docs_describe_every_metric_of_the_process() -> None:
    """A platform without /proc has none of them."""
    of_process = {name: facts for name, facts in SHIPPED.items() if name.startswith("process_")}
    assert of_process.items() <= documented().items() or not of_process


def test_docs_list_every_alert() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    listed = {
        name for row in re.findall(r"^\| (`Pice.+?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert listed == {rule["alert"] for rule in rules()}

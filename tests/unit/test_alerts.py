"""Alert rules, by promtool; rules, dashboard, runbook and docs held to the metrics that trainings tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from astroclip_dist.train.metrics import METRICS, RUN_LABEL

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "ops" / "prometheus"
# Named astroclip_... or, by our own recording rules, astroclip:...
NAME = re.compile(r"\bastroclip[_:][a-z0-9_:]+")


@pytest.fixture(scope="module")
def promtool() -> str:
    if found := shutil.which("promtool"):
        return found
    command = [sys.executable, str(ROOT / "ops" / "debian_package.py"), "prometheus", "usr/bin/promtool"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode != 0:
        pytest.skip(f"no promtool here: {done.stderr.strip()}")
    return done.stdout.strip()


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((SHIPPED / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def headings(page: Path, level: str) -> list[str]:
    return re.findall(rf"^{level} (.+)$", page.read_text(), re.MULTILINE)


def test_each_alert_fires_and_does_not(promtool: str) -> None:
    done = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=SHIPPED, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["> 900", '{after="failure"}', " and on (run) astroclip:training", "for: 5m"])
def test_a_broken_rule_is_noticed(promtool: str, tmp_path: Path, broken: str) -> None:
    text = (SHIPPED / "alerts.yml").read_text()
    assert broken in text
    (tmp_path / "alerts.yml").write_text(text.replace(broken, "> 9" if broken.startswith(">") else ""))
    shutil.copy(SHIPPED / "alerts_test.yml", tmp_path)
    done = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert "FAILED" in done.stdout + done.stderr


def test_the_configuration_is_one(promtool: str, tmp_path: Path) -> None:
    """``check config`` looks for the files that are named, the token's among them."""
    shutil.copytree(SHIPPED, tmp_path, dirs_exist_ok=True)
    (tmp_path / "ray-token").write_text("secret")
    done = subprocess.run([promtool, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules())} rules found" in done.stdout


@pytest.mark.parametrize("option", ["--rules", "--ray-token", "--targets"])
def test_a_file_that_is_not_there_is_named_before_anything_starts(promtool: str, tmp_path: Path, option: str) -> None:
    """Of a token that is not there Prometheus itself would only tell its log, and watch nobody."""
    command = [sys.executable, str(ROOT / "ops" / "prometheus.py"), "start", str(tmp_path / "prometheus")]
    command += ["--ray", "http://127.0.0.1:8265", option, "/proc/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "[Errno 2] No such file or directory: '/proc/nowhere'\n"


def test_every_alert_is_tested_firing() -> None:
    text = (SHIPPED / "alerts_test.yml").read_text()
    cases = [
        case
        for test in yaml.safe_load(text)["tests"]
        for kind in ("alert_rule_test", "promql_expr_test")
        for case in test.get(kind, [])
    ]
    fired = {case["alertname"] for case in cases if case.get("exp_alerts")}
    for case in cases:
        for sample in case.get("exp_samples", []):
            fired |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))
    assert fired == {alert["alert"] for alert in alerts()}


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    for alert in alerts():
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["annotations"]["summary"]
        assert alert["annotations"]["description"]
        page, anchor = alert["annotations"]["runbook_url"].split("#")
        assert anchor == alert["alert"].lower()
        assert anchor in [heading.lower() for heading in headings(ROOT / page, "###")]


def test_the_runbook_has_every_alert_and_every_exit_code() -> None:
    found = headings(ROOT / "ops" / "runbook.md", "###")
    assert [heading for heading in found if heading.startswith("Astroclip")] == [alert["alert"] for alert in alerts()]
    assert [heading for heading in found if heading.startswith("Exit")] == [
        f"Exit {code}" for code in (0, 1, 2, 70, 75, 130, 137)
    ]


def test_rules_and_dashboard_ask_for_metrics_that_there_are() -> None:
    known = {*METRICS, *recorded()}
    asked = {name for rule in rules() for name in NAME.findall(rule["expr"])}
    assert asked <= known
    dashboard = json.loads((ROOT / "ops" / "grafana" / "astroclip.json").read_text())
    shown = {
        name for panel in dashboard["panels"] for target in panel["targets"] for name in NAME.findall(target["expr"])
    }
    shown |= {name for entry in dashboard["annotations"]["list"] for name in NAME.findall(entry["expr"])}
    assert shown <= known
    # What is told is looked at by somebody.
    assert {*METRICS} <= asked | shown
    lines = re.findall(r"^ +- (?:series|expr): .+$", (SHIPPED / "alerts_test.yml").read_text(), re.MULTILINE)
    series = set(NAME.findall("\n".join(lines)))
    assert series <= known


def test_rules_and_dashboard_ask_for_labels_that_there_are() -> None:
    """Of a label that no series has, a selector finds nothing and ``by`` makes nothing: silently."""
    dashboard = json.loads((ROOT / "ops" / "grafana" / "astroclip.json").read_text())
    targets = [target for panel in dashboard["panels"] for target in panel["targets"]]
    asked = [(rule["expr"], str(rule.get("annotations"))) for rule in rules()]
    asked += [(target["expr"], target.get("legendFormat", "")) for target in targets]
    for expression, text in asked:
        names = set(NAME.findall(expression)) & {*METRICS}
        own = {label for name in names for label in METRICS[name].labels}
        for name, selectors in re.findall(r"(\w+)\{(.+?)\}", expression):
            if name in METRICS:
                assert set(re.findall(r"(\w+)[=!]", selectors)) <= {RUN_LABEL, *METRICS[name].labels}, expression
        kept = {label for by in re.findall(r"\b(?:by|on) \((.+?)\)", expression) for label in by.split(", ")}
        # Prometheus gives ``up`` the instance.
        assert kept <= {RUN_LABEL, *own, *({"instance"} if "up{" in expression else ())}, expression
        shown = set(re.findall(r"\{\{ ?(?:\$labels\.)?(\w+) ?\}\}", text))
        assert shown <= (kept or {RUN_LABEL}), expression


def test_panels_lie_side_by_side_and_ask_for_the_run_that_is_chosen() -> None:
    dashboard = json.loads((ROOT / "ops" / "grafana" / "astroclip.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + column, place["y"] + row) for column in range(place["w"]) for row in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        assert all('run=~"$run"' in target["expr"] for target in panel["targets"])
    assert [variable["name"] for variable in dashboard["templating"]["list"]] == ["datasource", "run"]


def test_the_docs_list_every_metric_as_it_is() -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    rows = re.findall(r"^\| `(astroclip_\w+)`(?: \((.*?)\))? \| (\w+) \| (.*) \|$", text, re.MULTILINE)
    expected = [
        (metric.name, ", ".join(f"`{label}`" for label in metric.labels), metric.kind, metric.help)
        for metric in METRICS.values()
    ]
    assert rows == expected
    for alert in alerts():
        assert (
            f"[{alert['alert']}](../ops/runbook.md#{alert['alert'].lower()}) | {alert['labels']['severity']} |" in text
        )


def test_links_of_both_pages_lead_somewhere() -> None:
    for page in (ROOT / "docs" / "monitoring.md", ROOT / "ops" / "runbook.md"):
        for link in re.findall(r"\]\(([^)#]+)?(?:#([^)]+))?\)", page.read_text()):
            target = (page.parent / link[0]).resolve() if link[0] else page
            assert target.exists(), link
            if link[1]:
                anchors = [
                    heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", target.read_text(), re.M)
                ]
                assert link[1] in anchors, link

"""The doctor on several nodes: what is said of which, whatever a node answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from astroclip_dist.cli import main
from astroclip_dist.doctor.each_node import lines_of_nodes, reports_of_each_node
from astroclip_dist.doctor.nodes import Node, nodes_here
from astroclip_dist.errors import ConfigError
from launchers.jobs.places import SlurmPlace
from launchers.jobs.spec import job_beside
from launchers.jobs.task import tasks_of
from launchers.slurm.script import script_of


def report(disk: str, state: str = "ok") -> str:
    """As ``doctor --json`` prints it, with what libraries print around it."""
    findings = [{"state": state, "what": disk, "mend": "Free space." if state != "ok" else "", "values": {}}]
    free = {"state": "ok", "what": "free", "mend": "", "values": {"port": 7}}
    checks = [{"check": "disks", "findings": findings}, {"check": "ports", "findings": [free]}]
    return "a warning\n" + json.dumps({"host": "?", "ok": state != "problem", "checks": checks}) + "\nanother"


def nodes(monkeypatch: pytest.MonkeyPatch, *outputs: str, rank: str = "") -> list[list[str]]:
    """Nodes n1, n2, ... that print these; gives the commands that they get."""
    commands: list[list[str]] = []

    def node(number: int, output: str) -> Node:
        def run(command: Sequence[str], within_s: float) -> str:
            commands.append(list(command))
            return rank if "astroclip_dist.doctor.rank" in command else output

        return Node(f"n{number}", f"10.0.0.{number}", run)

    found = [node(number, output) for number, output in enumerate(outputs, 1)]
    monkeypatch.setattr("astroclip_dist.doctor.each_node.nodes_here", lambda: found)
    return commands


def test_each_finding_names_its_nodes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    slow, full = report("slow", "warning"), report("full", "problem")
    commands = nodes(monkeypatch, slow, report("fast"), full, slow, rank='{"bytes_a_second": 2e9}')
    assert main(["doctor", "--each-node", "s3://survey/data"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "warning  disks        n1, n4: slow",
        "                      -> Free space.",
        "ok       network      all: 4 nodes over gloo: 2 GB/s in an all-reduce",
        "problem  disks        n3: full",
        "                      -> Free space.",
        "4 nodes: problems on n3",
    ]
    assert [command[2:] for command in commands[:4]] == [["doctor", "--json", "s3://survey/data"]] * 4
    ranks = sorted(command[2:] for command in commands[4:])
    assert ranks == [["gloo", "4", "tcp://10.0.0.1:7", str(number)] for number in range(4)]


def test_a_node_that_does_not_answer_is_a_problem_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, report("fast"), "srun: error: Unable to create step: Node n2 is down\n")
    reports = reports_of_each_node([])
    assert [(one["host"], one["ok"]) for one in reports] == [("n1", True), ("n2", False)]
    said = "problem  report       n2: no report: srun: error: Unable to create step: Node n2 is down"
    assert next(lines_of_nodes(reports)) == said


def test_a_network_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes(monkeypatch, report("fast"), report("fast"), rank="Traceback ...\nRuntimeError: no route to host\n")
    last = list(lines_of_nodes(reports_of_each_node([])))[-3:]
    assert last[0] == "problem  network      all: 2 nodes over gloo: RuntimeError: no route to host"
    assert last[2] == "2 nodes: problems on all"


def test_without_nodes_and_with_a_wrong_command_nothing_is_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("SLURM_JOB_NODELIST", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="--each-node: no nodes are known"):
        nodes_here()
    commands = nodes(monkeypatch, report("fast"))
    assert main(["doctor", "--each-node", "seed=3"]) == 2
    assert "Values belong to a configuration" in capsys.readouterr().err
    assert commands == []


def test_a_job_may_have_several_nodes_for_it_and_for_no_other_command() -> None:
    values = {"name": "check", "nodes": 2, "launcher": {"name": "slurm", "folder": "/shared"}}
    job = job_beside(Path(), {**values, "command": ["doctor", "--each-node", "s3://survey/data"]})
    script = script_of(tasks_of(job), SlurmPlace(name="slurm", folder="/shared"), 0, ())
    assert "#SBATCH --nodes=2" in script
    assert script.rstrip().endswith("-- doctor --each-node s3://survey/data")
    with pytest.raises(ConfigError, match="one node; all are examined by doctor --each-node"):
        job_beside(Path(), {**values, "command": ["doctor"]})

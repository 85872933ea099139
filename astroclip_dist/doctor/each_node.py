"""The doctor on every node of a job, and between them: one report, whose findings name their nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from astroclip_dist.doctor.checks import CHECKS
from astroclip_dist.doctor.collectives import measured
from astroclip_dist.doctor.examination import Examined
from astroclip_dist.doctor.findings import Finding, problem
from astroclip_dist.doctor.nodes import Node, nodes_here, on_each
from astroclip_dist.doctor.outcome import last_json, last_words
from astroclip_dist.doctor.showing import as_json, lines
from astroclip_dist.runs.wording import many

# Every check at its deadline, and the imports on a node that is slow.
_WITHIN_S = sum(check.deadline_s for check in CHECKS) + 60
_RANKS_WITHIN_S = 120.0


def reports_of_each_node(arguments: Sequence[str]) -> list[dict[str, Any]]:
    """What the doctor says on each node, as its JSON with the engine's name of the node, and last of their network.

    Args:
        arguments: configuration, overrides and URLs; a node has to find the file of a configuration.

    Raises:
        ConfigError, StorageError: there are no nodes to ask.
    """
    nodes = nodes_here()
    outputs = on_each(nodes, [["-m", "astroclip_dist.cli", "doctor", "--json", *arguments]] * len(nodes), _WITHIN_S)
    reports = [{**_report(output), "host": node.name} for node, output in zip(nodes, outputs, strict=True)]
    if len(nodes) > 1 and all(_value(report, "ports", "port") for report in reports):
        reports.append({**as_json([Examined("network", [_between(nodes, reports)], 0.0)]), "host": "all"})
    return reports


def lines_of_nodes(reports: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Each warning and problem once, with the nodes that have it; the last line is the verdict."""
    hosts: dict[tuple[str, str, str, str], list[str]] = {}
    for report in reports:
        for check in report["checks"]:
            for found in check["findings"]:
                if found["state"] != "ok" or report["host"] == "all":
                    key = (found["state"], check["check"], found["what"], found["mend"])
                    hosts.setdefault(key, []).append(report["host"])
    for (state, check, what, mend), names in sorted(hosts.items(), key=lambda item: item[0][0] == "problem"):
        finding = Finding(state, f"{', '.join(names)}: {what}", mend)  # type: ignore[arg-type]
        yield from lines(Examined(check, [finding], 0.0))
    bad = [report["host"] for report in reports if not report["ok"]]
    count = many(sum(report["host"] != "all" for report in reports), "node")
    yield f"{count}: {'problems on ' + ', '.join(bad) if bad else 'no problem'}"


def _report(output: str) -> dict[str, Any]:
    if (report := last_json(output, "host")) is not None:
        return report
    mend = "See whether a job runs on that node alone; leave it out until then."
    return as_json([Examined("report", [problem(f"no report: {last_words(output)}", mend)], 0.0)])


def _between(nodes: Sequence[Node], reports: Sequence[dict[str, Any]]) -> Finding:
    """One rank a node; they meet on the first one, at a port that was free there a moment ago."""
    backend = "nccl" if all(_value(report, "gpus", "gpus") for report in reports) else "gloo"
    meeting = f"tcp://{nodes[0].address}:{_value(reports[0], 'ports', 'port')}"
    rank = ["-m", "astroclip_dist.doctor.rank", backend, str(len(nodes)), meeting]
    outputs = on_each(nodes, [[*rank, str(number)] for number in range(len(nodes))], _RANKS_WITHIN_S)
    return measured(backend, f"{len(nodes)} nodes", outputs)


def _value(report: dict[str, Any], check: str, name: str) -> Any:
    """A number among the findings of a check; None where it is not told."""
    findings = next((one["findings"] for one in report["checks"] if one["check"] == check), ())
    return next((found["values"][name] for found in findings if name in found["values"]), None)

"""The doctor on all nodes of a real Slurm job, and of a real Ray cluster; nodes are network namespaces."""

from __future__ import annotations

import json
import sys

import pytest

from tests.system.hosts import why_not
from tests.system.ray_nodes import ray_nodes
from tests.system.slurm_cluster import astroclip, small_slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(why_not()), reason=str(why_not())),
]


def test_a_job_of_slurm_examines_its_nodes_and_what_is_between_them() -> None:
    with small_slurm(2) as cluster:
        file = cluster.folder / "file"
        file.touch()
        text = "nodes: 2\ncommand: [doctor, --each-node, {}]\nenvironment: {{GLOO_SOCKET_IFNAME: eth0, HOME: /}}\n"
        astroclip("jobs", "submit", cluster.write_job("nodes", text.format(cluster.folder)))
        told = astroclip("jobs", "logs", "nodes", "-f")
        assert "ok       network      all: 2 nodes over gloo: " in told
        assert cluster.status("nodes")["state"] == "succeeded", told
        assert "2 nodes: no problem" in told
        # Nothing can be written below a file: on both nodes.
        astroclip("jobs", "submit", cluster.write_job("broken", text.format(f"file://{file}/runs")))
        told = astroclip("jobs", "logs", "broken", "-f")
        assert f"problem  disks        n1, n2: folder ({file}/runs): {file} is a file" in told
        assert "2 nodes: problems on n1, n2" in told
        assert cluster.status("broken")["state"] == "failed", told


def test_the_nodes_of_a_ray_cluster_are_examined_but_for_a_head_that_only_coordinates() -> None:
    with ray_nodes() as cluster:
        command = [sys.executable, "-m", "astroclip_dist.cli", "doctor", "--each-node", "--json"]
        log = cluster.folder / "doctor.log"
        code = cluster.hosts.start("head", command, cluster.environment, log).wait(600)
        (line,) = [line for line in log.read_text().splitlines() if line.startswith('{"ok"')]
        *nodes, network = json.loads(line)["nodes"]
        problems = [f for one in nodes for c in one["checks"] for f in c["findings"] if f["state"] == "problem"]
        assert (code, problems) == (0, [])
        assert len(nodes) == 2
        (found,) = network["checks"][0]["findings"]
        assert (found["state"], found["values"]["ranks"]) == ("ok", 2)

"""A real API server that has the definitions of KubeRay and Kueue, where ``ASTROCLIP_TEST_KUBECONFIG`` names one.

Nothing is left there but what the dry runs of a cluster's own webhooks keep; jobs are created in the namespace
``survey``, with Kueue's objects of ``ops/kubernetes/queues.yaml``, and deleted. docs/kubernetes.md says against which
server this was seen to pass.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from astroclip_dist.errors import ConfigError
from launchers.jobs.places import KubernetesPlace
from launchers.kubernetes.cluster import Cluster, ExistsError, MissingError
from launchers.kubernetes.manifest import ray_job
from launchers.kubernetes.queue import KubernetesQueue
from tests.conftest import REPOSITORY
from tests.unit.kubernetes_jobs import task, write_run_config

KUBECONFIG = os.environ.get("ASTROCLIP_TEST_KUBECONFIG")
GOLDEN = sorted((REPOSITORY / "tests" / "unit" / "golden").glob("*.yaml"))
PLACE = KubernetesPlace(namespace="survey")
PLURALS = {
    "Topology": "topologies",
    "ResourceFlavor": "resourceflavors",
    "Cohort": "cohorts",
    "ClusterQueue": "clusterqueues",
    "LocalQueue": "localqueues",
    "WorkloadPriorityClass": "workloadpriorityclasses",
}
CLUSTER_WIDE = set(PLURALS) - {"LocalQueue"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(KUBECONFIG is None, reason="no API server: ASTROCLIP_TEST_KUBECONFIG names none"),
]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    monkeypatch.setenv("KUBECONFIG", str(KUBECONFIG))
    return Cluster(PLACE)


def kueue_objects() -> list[dict[str, Any]]:
    text = (REPOSITORY / "ops" / "kubernetes" / "queues.yaml").read_text()
    return [found for found in yaml.safe_load_all(text) if found is not None]


def path_of(manifest: dict[str, Any]) -> str:
    space = "" if manifest["kind"] in CLUSTER_WIDE else f"/namespaces/{manifest['metadata']['namespace']}"
    return f"/apis/{manifest['apiVersion']}{space}/{PLURALS[manifest['kind']]}"


def create(cluster: Cluster, manifest: dict[str, Any], dry_run: bool) -> None:
    query = {"fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
    cluster._ask("POST", path_of(manifest), query, manifest)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_the_server_takes_the_jobs_that_we_make(cluster: Cluster, path: Path) -> None:
    cluster.create_job(yaml.safe_load(path.read_text()), dry_run=True)


def test_the_server_refuses_what_is_wrong_in_them(cluster: Cluster, tmp_path: Path) -> None:
    good = json.dumps(ray_job(task(write_run_config(tmp_path), nodes=2)))
    with pytest.raises(ConfigError, match="unknown field"):
        cluster.create_job(json.loads(good.replace('"suspend"', '"suspendd"')), dry_run=True)
    manifest = json.loads(good)
    manifest["spec"]["backoffLimit"] = "often"
    with pytest.raises(ConfigError, match="backoffLimit"):
        cluster.create_job(manifest, dry_run=True)


def test_the_server_takes_the_queues_and_refuses_broken_ones(cluster: Cluster) -> None:
    for manifest in kueue_objects():
        try:
            create(cluster, manifest, dry_run=True)
        except ExistsError:
            continue
    queue = next(found for found in kueue_objects() if found["kind"] == "ClusterQueue")
    queue["metadata"]["name"] = "lonely"
    del queue["spec"]["cohortName"]
    # A rule in CEL: only a member of a cohort borrows.
    with pytest.raises(ConfigError, match="borrowingLimit must be nil when cohort is empty"):
        create(cluster, queue, dry_run=True)


@pytest.fixture
def queue_objects(cluster: Cluster) -> Iterator[None]:
    """LocalQueue and priority classes, for the time of a test."""
    made = []
    for manifest in kueue_objects():
        if manifest["kind"] in ("LocalQueue", "WorkloadPriorityClass"):
            try:
                create(cluster, manifest, dry_run=False)
                made.append(f"{path_of(manifest)}/{manifest['metadata']['name']}")
            except ExistsError:
                continue
    yield
    for path in made:
        cluster._ask("DELETE", path)


@pytest.mark.usefixtures("queue_objects")
def test_a_job_is_checked_created_once_found_and_cancelled(cluster: Cluster, tmp_path: Path) -> None:
    config = write_run_config(tmp_path)
    queue = KubernetesQueue(PLACE)
    one = task(config, nodes=2, gpus_per_node=8, priority="high", name="astroclip-test")
    with pytest.raises(ConfigError, match="There is no such LocalQueue"):
        queue.check([task(config, queue="nowhere")])
    with pytest.raises(ConfigError, match="There is no such WorkloadPriorityClass"):
        queue.check([task(config, priority="royal")])
    queue.check([one])
    assert cluster.job("astroclip-test") is None
    try:
        assert queue.submit([one], 0) == ("astroclip-test",)
        created = cluster.job("astroclip-test")
        assert created is not None
        assert created["spec"]["suspend"] is True
        assert queue.submit([one], 0) == ("astroclip-test",)
        assert (cluster.job("astroclip-test") or {})["metadata"]["uid"] == created["metadata"]["uid"]
        assert (queue.find("astroclip-test", 0), queue.find("astroclip-test", 1)) == ("astroclip-test", None)
        with pytest.raises(ConfigError, match="Another job of that name"):
            queue.submit([task(config, nodes=1, name="astroclip-test", environment={"A": "b"})], 0)
    finally:
        queue.cancel("astroclip-test")
    if (left := cluster.job("astroclip-test")) is not None:
        assert "deletionTimestamp" in left["metadata"]
        # A server without a garbage collector would keep it for ever; one that has one may be quicker.
        with suppress(MissingError):
            cluster._ask("PATCH", cluster._ray_jobs("astroclip-test"), body={"metadata": {"finalizers": None}})
    assert cluster.job("astroclip-test") is None

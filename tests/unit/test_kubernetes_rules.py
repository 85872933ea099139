"""Controls: each rule that manifests are held to refuses what breaks it. And what ops/kubernetes holds is valid."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from launchers.kubernetes.manifest import MANAGED_BY, ray_job
from tests.crd_validation import Definitions, kueue_problems
from tests.unit.kubernetes_jobs import task, write_run_config

OPS = Path(__file__).resolve().parents[2] / "ops/kubernetes"
Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def definitions(real_data: Path) -> Definitions:
    return Definitions(real_data / "crds")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return ray_job(task(write_run_config(tmp_path_factory.mktemp("job")), nodes=2, gpus_per_node=8))


def _spec(**fields: Any) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["spec"].update(fields)


def _cluster(**fields: Any) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["spec"]["rayClusterSpec"].update(fields)


def _group(**fields: Any) -> Callable[[Manifest], None]:
    return lambda manifest: manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(fields)


def _container(**fields: Any) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        [group] = manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        group["template"]["spec"]["containers"][0].update(fields)

    return change


def _labels(**labels: str | None) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for name, value in labels.items():
            manifest["metadata"]["labels"][f"kueue.x-k8s.io/{name.replace('_', '-')}"] = value

    return change


def _without_most(manifest: Manifest) -> None:
    del manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["maxReplicas"]


def _many_groups(manifest: Manifest) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    cluster["workerGroupSpecs"] = [{**group, "groupName": f"group-{number}"} for number in range(7)]


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("unknown field", _spec(shutdownAfterJobFinish=True)),
        ("is no boolean", _spec(suspend="true")),
        ("is no integer", _spec(backoffLimit=True)),
        ("is no int32", _spec(backoffLimit=2**31)),
        ("is no array", _cluster(workerGroupSpecs={})),
        ("maxReplicas: missing", _without_most),
        ("is none of", _cluster(authOptions={"mode": "password"})),
        ("is neither a number nor text", _container(resources={"limits": {"cpu": None}})),
        ("does not match", _container(resources={"limits": {"memory": "16 GB"}})),
        ("given twice", _container(env=[{"name": "A", "value": "1"}, {"name": "A", "value": "2"}])),
        ("managedBy", _spec(managedBy="me")),
        ("deletionStrategy", _spec(deletionStrategy={})),
        ("metadata.name", lambda manifest: manifest["metadata"].update(name="Align")),
        ("metadata.labels", lambda manifest: manifest["metadata"]["labels"].update(a="b c")),
        ("metadata.annotations", lambda manifest: manifest["metadata"].update(annotations={"a": 1})),
        ("metadata.uid", lambda manifest: manifest["metadata"].update(uid="1")),
    ],
)  # fmt: skip
def test_the_real_definitions_refuse(
    says: str, change: Callable[[Manifest], None], definitions: Definitions, good: Manifest
) -> None:
    assert definitions.problems(good) == []
    bad = copy.deepcopy(good)
    change(bad)
    assert any(says in problem for problem in definitions.problems(bad))


@pytest.mark.parametrize(
    ("says", "change"),
    [
        ("queue's name", lambda manifest: manifest["metadata"]["labels"].pop("kueue.x-k8s.io/queue-name")),
        ("priority class", _labels(priority_class="")),
        ("before Kueue admits", _spec(suspend=False)),
        ("existing cluster", _spec(clusterSelector={"ray.io/cluster": "mine"})),
        ("delete its cluster", _spec(shutdownAfterJobFinishes=False)),
        ("is required", _spec(rayClusterSpec=None)),
        ("autoscaling", _cluster(enableInTreeAutoscaling=True)),
        ("too many", _many_groups),
        ("another pod set", _group(groupName="head")),
        ("fixed size", _group(minReplicas=1)),
        ("no container", _group(template={"spec": {}})),
        ("labels is not supported", _group(rayStartParams={"labels": "a=b"})),
        ("2.52", _cluster(rayVersion="2.51.0")),
        ("no name of a RayJob", lambda manifest: manifest["metadata"].update(name="a" * 48)),
        ("negative", _spec(ttlSecondsAfterFinished=-1)),
        ("must be positive", _spec(activeDeadlineSeconds=0)),
    ],
)
def test_kueue_and_kuberay_refuse(says: str, change: Callable[[Manifest], None], good: Manifest) -> None:
    assert kueue_problems(good) == []
    bad = copy.deepcopy(good)
    change(bad)
    assert any(says in problem for problem in kueue_problems(bad))


def test_the_queues_of_ops_are_valid(definitions: Definitions) -> None:
    kinds = set()
    for manifest in _manifests("queues.yaml"):
        assert definitions.problems(manifest) == [], manifest["metadata"]["name"]
        kinds.add(manifest["kind"])
    assert kinds == {"Topology", "ResourceFlavor", "Cohort", "ClusterQueue", "LocalQueue", "WorkloadPriorityClass"}


@pytest.mark.parametrize(
    ("kind", "says", "change"),
    [
        ("ClusterQueue", "borrowingLimit must be nil when cohort", lambda spec: spec.pop("cohortName")),
        ("ClusterQueue", "reclaimWithinCohort", lambda spec: spec["preemption"].update(
            reclaimWithinCohort="Never", borrowWithinCohort={"policy": "LowerPriority"})),
        ("ClusterQueue", "flavors must have", lambda spec: spec["resourceGroups"][0]["coveredResources"].append("a")),
        ("ClusterQueue", "does not match", lambda spec: spec["resourceGroups"][0]["flavors"][0]["resources"][0].update(
            nominalQuota="40 GPUs")),
        ("ResourceFlavor", "nodeLabel", lambda spec: spec.pop("nodeLabels")),
        ("ResourceFlavor", "toleration", lambda spec: spec["tolerations"][0].update(effect="Never")),
        ("Topology", "kubernetes.io/hostname", lambda spec: spec["levels"].reverse()),
    ],
)  # fmt: skip
def test_the_real_definitions_refuse_queues(
    kind: str, says: str, change: Callable[[Manifest], Any], definitions: Definitions
) -> None:
    bad = next(manifest for manifest in _manifests("queues.yaml") if manifest["kind"] == kind)
    change(bad["spec"])
    problems = definitions.problems(bad)
    assert any(says.lower() in problem.lower() for problem in problems), problems


def test_the_queues_fit_each_other_and_the_example_job() -> None:
    """What no schema tells: that every name that is named is there."""
    named = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in _manifests("queues.yaml")}
    flavor = named["ResourceFlavor", "h100"]
    assert ("Topology", flavor["spec"]["topologyName"]) in named
    tenants = {manifest["metadata"].get("namespace") for manifest in _manifests("tenant.yaml")}
    for (kind, name), manifest in named.items():
        if kind == "LocalQueue":
            queue = named["ClusterQueue", manifest["spec"]["clusterQueue"]]
            selected = queue["spec"]["namespaceSelector"]["matchLabels"]
            assert selected == {"kubernetes.io/metadata.name": manifest["metadata"]["namespace"]}
        if kind == "ClusterQueue":
            assert ("Cohort", manifest["spec"]["cohortName"]) in named
            [group] = manifest["spec"]["resourceGroups"]
            assert [one["name"] for one in group["flavors"]] == ["h100"]
            assert name in tenants or name == "methods"


def test_a_team_gets_what_the_client_asks_for() -> None:
    """Objects of Kubernetes' own, by the models of its own client; no field of theirs is unknown."""
    client = pytest.importorskip("kubernetes.client")
    for manifest in _manifests("tenant.yaml"):
        model = getattr(client, f"V1{manifest['kind']}")
        model.model_validate(manifest)
        assert _unknown_fields(manifest, model) == []
    with pytest.raises(ValueError, match="labels"):
        client.V1ServiceAccount.model_validate({"metadata": {"labels": "a"}})
    assert _unknown_fields({"metadata": {"nam": "a"}}, client.V1ServiceAccount) == ["metadata.nam"]
    # Applied again, it would put its empty values in the place of those that somebody has given.
    assert "Secret" not in [manifest["kind"] for manifest in _manifests("tenant.yaml")]


def test_prometheus_finds_the_pods(good: Manifest) -> None:
    [monitor] = _manifests("monitoring.yaml")
    assert monitor["spec"]["selector"]["matchLabels"] == MANAGED_BY
    cluster = good["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        assert group["template"]["metadata"]["labels"].items() >= MANAGED_BY.items()
        [container] = group["template"]["spec"]["containers"]
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in [port["name"] for port in container["ports"]]


def test_the_image_is_made_of_what_is_there_for_the_user_of_the_pods(good: Manifest) -> None:
    dockerfile, root = (OPS.parent / "Dockerfile").read_text(), OPS.parents[1]
    [user] = re.findall(r"(?m)^USER (\d+)$", dockerfile)
    head = good["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert int(user) == head["securityContext"]["runAsUser"]
    sources = [source for line in re.findall(r"(?m)^COPY (.*) \S+$", dockerfile) for source in line.split()]
    assert all((root / source).exists() for source in sources)
    # Another line of code must not cost another image of gigabytes.
    assert dockerfile.index("pip install --no-cache-dir -c constraints.txt .") < dockerfile.index("COPY astroclip_dist")
    ignored = (root / ".dockerignore").read_text().splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(sources)


def _manifests(name: str) -> list[Manifest]:
    return list(yaml.safe_load_all((OPS / name).read_text()))


def _unknown_fields(value: Any, model: Any, at: str = "") -> list[str]:
    """Fields that a model of the client does not have, at any depth."""
    aliases = {field.serialization_alias or name: field.annotation for name, field in model.model_fields.items()}
    found = []
    for name, inner in value.items():
        path = f"{at}{name}"
        if name not in aliases:
            found.append(path)
            continue
        models = [one for one in _models_in(aliases[name]) if hasattr(one, "model_fields")]
        for one in inner if isinstance(inner, list) else [inner]:
            if models and isinstance(one, dict):
                found += _unknown_fields(one, models[0], f"{path}.")
    return found


def _models_in(annotation: Any) -> list[Any]:
    inner = getattr(annotation, "__args__", ())
    return [annotation] if not inner else [model for one in inner for model in _models_in(one)]

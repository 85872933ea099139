"""A job as a RayJob: golden files, what is refused, and that whatever a job file may say makes a valid manifest."""

from __future__ import annotations

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from astroclip_dist.errors import ConfigError
from launchers.jobs.spec import load_job
from launchers.jobs.task import CONFIG_VARIABLE, Task, tasks_of
from launchers.kubernetes.manifest import ARGUMENTS_VARIABLE, RAY_VERSION, ray_job
from launchers.kubernetes.queue import KubernetesQueue
from tests.crd_validation import Definitions, kueue_problems
from tests.unit.kubernetes_jobs import job, task, write_run_config

GOLDEN = Path(__file__).parent / "golden"
EXAMPLE = Path(__file__).resolve().parents[2] / "configs/jobs/kubernetes.yaml"
TWO_NODES: dict[str, Any] = {
    "launcher": {
        "topology": "cloud.site/block",
        "secret": "astroclip",
        "pull_secret": "registry",
        "service_account": "training",
        "node_selector": {"cloud.site/pool": "h100"},
    },
    "priority": "high",
    "nodes": 2,
    "min_nodes": 1,
    "gpus_per_node": 8,
    "cpus_per_node": 96,
    "memory_per_node": "900 GB",
    "environment": {"NCCL_IB_HCA": "mlx5", "GREETING": "$(HOME) costs $5"},
    "secrets": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
}
ON_A_VOLUME: dict[str, Any] = {
    "launcher": {"volume": {"name": "surveys", "mount": "/shared"}},
    "command": ["embed", "file:///shared/runs/align", "file:///shared/pairs", "file:///shared/it's out; $HOME"],
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_config(tmp_path_factory.mktemp("job"))


@pytest.fixture(scope="module")
def definitions(real_data: Path) -> Definitions:
    return Definitions(real_data / "crds")


def golden_task(name: str, config: Path) -> Task:
    match name:
        case "one-node":
            return task(config, gpus_per_node=1)
        case "two-nodes":
            return task(config, **TWO_NODES)
        case _:
            return task(None, **ON_A_VOLUME)


@pytest.mark.parametrize("name", ["one-node", "two-nodes", "command"])
def test_three_jobs_are_valid(name: str, config: Path, definitions: Definitions) -> None:
    manifest = ray_job(golden_task(name, config))
    assert definitions.problems(manifest) == []
    assert kueue_problems(manifest) == []


@pytest.mark.parametrize("name", ["one-node", "two-nodes", "command"])
def test_manifests_are_those_that_were_read_and_found_good(name: str, config: Path) -> None:
    manifest = ray_job(golden_task(name, config))
    # Both change with every key that a configuration gets.
    manifest["metadata"]["annotations"]["astroclip-dist/digest"] = "DIGEST"
    for container in _ray_containers(manifest):
        for variable in container["env"]:
            if variable["name"] == CONFIG_VARIABLE:
                variable["value"] = "CONFIGURATION"
    assert manifest == yaml.safe_load((GOLDEN / f"{name}.yaml").read_text())


def test_the_example_is_valid(definitions: Definitions) -> None:
    urls = ["override.data=s3://galaxies/images", "override.run=s3://runs/image"]
    [one] = tasks_of(load_job(EXAMPLE, ["image=registry.site/astroclip:0.1.0", "queue=training", *urls]))
    manifest = ray_job(one)
    assert definitions.problems(manifest) == []
    assert kueue_problems(manifest) == []


def test_what_is_printed_is_what_is_handed_over(config: Path) -> None:
    tasks = tasks_of(job(config, sweep={"optimizer.lr": [1e-4, 1e-3]}))
    printed = KubernetesQueue(job(config).launcher).render(tasks)  # type: ignore[arg-type]
    assert list(yaml.safe_load_all(printed)) == [ray_job(task) for task in tasks]


def test_a_training_gets_its_configuration_and_leaves_in_time(config: Path) -> None:
    manifest = ray_job(task(config, nodes=2), attempt=3)
    assert manifest["metadata"]["labels"]["astroclip-dist/attempt"] == "3"
    for pod in _pods(manifest):
        [container] = pod["spec"]["containers"]
        assert _variables(container)[CONFIG_VARIABLE].startswith("data:\n- s3://galaxies/pairs\nrun: s3://runs/align\n")
        assert json.loads(_variables(container)[ARGUMENTS_VARIABLE]) == ["train", "env:ASTROCLIP_CONFIG"]
        # 90 s to save, what the launcher adds, and Ray's own end.
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command == ["python", "-m", "launchers.kubernetes.leave", "110"]
        assert pod["spec"]["terminationGracePeriodSeconds"] == 140


def test_the_ray_that_is_named_is_the_one_that_is_installed() -> None:
    constraints = (GOLDEN.parents[2] / "constraints.txt").read_text()
    assert f"ray=={RAY_VERSION}\n" in constraints


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("queue", {"queue": None}),
        ("queue", {"queue": "My Queue"}),
        ("priority", {"priority": "a_b"}),
        ("image", {"image": None}),
        ("image", {"image": "a b"}),
        ("cpus_per_node", {"cpus_per_node": None}),
        ("cpus_per_node", {"cpus_per_node": 2, "workers_per_node": 4}),
        ("memory_per_node", {"memory_per_node": None}),
        ("nodes", {"nodes": 2**31, "override": {"batch.lanes": 2**31, "batch.global_size": 2**31}}),
        ("max_restarts", {"max_restarts": 2**31}),
        ("time_limit", {"time_limit": "1 h"}),
        ("sweep_at_once", {"sweep": {"seed": [1, 2]}, "sweep_at_once": 1}),
        ("launcher.secret", {"secrets": ["TOKEN"]}),
        ("environment", {"environment": {"RAY_ADDRESS": "auto"}}),
        ("run", {"override": {"run": "file:///home/me/run"}}),
        ("data", {"override": {"data": "file:///shared/pairs"}}),
        ("run", {"override": {"run": "file:///sharedly/run"}, "launcher": {"volume": {"name": "a"}}}),
        ("tracking.uri", {"override": {"tracking.uri": "sqlite:////me/a.db"}, "launcher": {"volume": {"name": "a"}}}),
        ("tracking.uri", {"override": {"tracking.uri": None}}),
        ("launcher.volume.mount", {"launcher": {"volume": {"name": "a", "mount": "/dev/shm"}}}),
    ],
)  # fmt: skip
def test_what_cannot_be_there_is_refused_by_its_field(field: str, given: dict[str, Any], config: Path) -> None:
    tasks = tasks_of(job(config, **given))
    with pytest.raises(ConfigError) as refusal:
        ray_job(tasks[0])
    assert refusal.value.field == field


def test_a_run_may_lie_on_the_volume(config: Path) -> None:
    on_volume = {
        "run": "file:///shared/runs/a",
        "data": "file:///shared/pairs",
        "tracking.uri": "sqlite:////shared/m.db",
    }
    manifest = ray_job(task(config, {"volume": {"name": "surveys"}}, override=on_volume))
    for container in _ray_containers(manifest):
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]


_TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_LABEL = st.from_regex(r"[a-z]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
_VARIABLES = st.sampled_from(["A", "PATH_TO", "_x1", "NCCL_DEBUG", "OMP_NUM_THREADS", "RAY_USAGE_STATS_ENABLED"])
_SECRETS = st.lists(st.sampled_from(["AWS_SECRET_ACCESS_KEY", "TOKEN", "MLFLOW_TRACKING_PASSWORD"]), unique=True)
_KEYS = st.from_regex(r"[a-z]{1,5}\.[a-z]{2,3}/[A-Za-z]([-_.a-zA-Z0-9]{0,10}[a-z])?", fullmatch=True)
_PLACES = st.fixed_dictionaries(
    {"namespace": _LABEL, "secret": _LABEL},
    optional={
        "service_account": _LABEL,
        "pull_secret": _LABEL,
        "volume": st.fixed_dictionaries(
            {"name": _LABEL}, optional={"mount": st.sampled_from(["/a", "/data/surveys.1"])}
        ),
        "node_selector": st.dictionaries(_KEYS, st.sampled_from(["", "a", "H100-80GB_x.y"]), max_size=2),
        "gpu_resource": st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb"]),
        "topology": _KEYS,
        "keep_for": st.sampled_from(["0 s", "90.5 s", "24 h"]),
    },
)
_JOBS = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", fullmatch=True),
        "queue": _LABEL,
        "image": st.sampled_from(["a", "registry.site:5000/a/b@sha256:0123"]),
        "nodes": st.sampled_from([1, 2, 4, 16]),
        "cpus_per_node": st.integers(16, 500),
        "memory_per_node": st.integers(100_000_000, 10**14),
        "secrets": _SECRETS,
    },
    optional={
        "priority": _LABEL,
        "min_nodes": st.just(1),
        "gpus_per_node": st.sampled_from([0, 1, 4, 8]),
        "max_restarts": st.integers(0, 2**31 - 1),
        "environment": st.dictionaries(_VARIABLES, _TEXT, max_size=3),
        "override": st.fixed_dictionaries({"health.preemption_deadline": st.sampled_from(["0.5 s", "10 min"])}),
    },
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=_JOBS, launcher=_PLACES, is_command=st.booleans(), arguments=st.lists(_TEXT, min_size=1, max_size=4))
def test_whatever_a_job_may_say_makes_a_valid_manifest(
    fields: dict[str, Any],
    launcher: dict[str, Any],
    is_command: bool,
    arguments: list[str],
    config: Path,
    definitions: Definitions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in fields["secrets"]:
        monkeypatch.setenv(name, "the-value-of-a-secret")
    lanes = {"batch.lanes": 128, "batch.global_size": 128}
    what = {"override": {**fields.pop("override", {}), **lanes}}
    if is_command:
        # A path that no other pod would find is refused, and tested elsewhere.
        what = {"command": [argument.replace("file:", "") for argument in arguments], "nodes": 1}
        fields.pop("min_nodes", None)
    one = task(None if is_command else config, launcher, **{**fields, **what})
    manifest = yaml.safe_load(KubernetesQueue(one.job.launcher).render([one]))  # type: ignore[arg-type]
    assert definitions.problems(manifest) == []
    assert kueue_problems(manifest) == []
    assert "the-value-of-a-secret" not in json.dumps(manifest)
    for pod in (*_pods(manifest), manifest["spec"]["submitterPodTemplate"]):
        for container in pod["spec"]["containers"]:
            assert container["resources"]["requests"] == container["resources"]["limits"]
            assert all(_number(amount) > 0 for amount in container["resources"]["limits"].values())
    worker = _pods(manifest)[-1]["spec"]["containers"][0]
    assert _number(worker["resources"]["limits"]["memory"]) == one.job.memory_per_node
    expected = {**one.environment, ARGUMENTS_VARIABLE: json.dumps(one.arguments)}
    assert {name: _variables(worker)[name] for name in expected} == expected


def _pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = manifest["spec"]["rayClusterSpec"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster.get("workerGroupSpecs", []))]


def _ray_containers(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for pod in _pods(manifest) for container in pod["spec"]["containers"]]


def _variables(container: dict[str, Any]) -> dict[str, str]:
    """As the container sees them: k8s.io/kubernetes third_party/forked/golang/expansion, with no variable known."""
    plain = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    return {name: re.sub(r"\$(\$|\([^)]*\))", lambda match: match[1][0], value) for name, value in plain.items()}


def _number(quantity: str) -> Decimal:
    """k8s.io/apimachinery pkg/api/resource/quantity.go."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(m|k|M|G|T|P|E|[KMGTPE]i)?", quantity)
    assert match, quantity
    decimal = {"m": Decimal("0.001"), "": Decimal(1)} | {
        prefix: Decimal(1000) ** power for power, prefix in enumerate("kMGTPE", 1)
    }
    binary = {f"{prefix}i": Decimal(1024) ** power for power, prefix in enumerate("KMGTPE", 1)}
    return Decimal(match[1]) * (decimal | binary)[match[2] or ""]

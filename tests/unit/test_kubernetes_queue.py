"""Jobs handed to a server that speaks Kubernetes, validated there by the real definitions; KubeRay and Kueue are played
by the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from astroclip_dist.errors import ConfigError, StorageError
from launchers.jobs.desk import JobDesk
from launchers.jobs.records import JobRecords
from launchers.jobs.status import JobState
from launchers.jobs.task import tasks_of
from launchers.kubernetes import queue as queue_module
from launchers.kubernetes.manifest import ray_job
from launchers.kubernetes.queue import KubernetesQueue
from tests.crd_validation import Definitions
from tests.unit.kubernetes_api import CLASSES, LOCAL_QUEUES, RAY_JOBS, WORKLOADS, KubernetesApi, Object
from tests.unit.kubernetes_jobs import job, task, write_run_config

REFUSED_BY_QUOTA = (
    "couldn't assign flavors to pod set nodes: insufficient quota for nvidia.com/gpu in flavor h100, "
    "request > maximum capacity (64 > 40)"
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run_config(tmp_path_factory.mktemp("job"))


@pytest.fixture
def api(real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[KubernetesApi]:
    pytest.importorskip("kubernetes")
    api = KubernetesApi(Definitions(real_data / "crds"))
    api.add(LOCAL_QUEUES, "training")
    api.add(CLASSES, "high")
    api.write_kubeconfig(tmp_path / "kubeconfig")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr(queue_module, "_POLL_S", 0.01)
    yield api
    api.close()


@pytest.fixture
def queue(api: KubernetesApi, config: Path) -> KubernetesQueue:
    return KubernetesQueue(job(config).launcher)  # type: ignore[arg-type]


def test_a_job_is_checked_without_a_trace_then_created_once(
    api: KubernetesApi, queue: KubernetesQueue, config: Path
) -> None:
    one = task(config, nodes=2, gpus_per_node=8, priority="high")
    queue.check([one])
    assert not api.objects[RAY_JOBS]
    assert queue.submit([one], 0) == ("align",)
    assert api.objects[RAY_JOBS]["align"]["spec"]["suspend"] is True
    uid = api.objects[RAY_JOBS]["align"]["metadata"]["uid"]
    assert queue.submit([one], 0) == ("align",)
    assert api.objects[RAY_JOBS]["align"]["metadata"]["uid"] == uid
    assert (queue.find("align", 0), queue.find("align", 1), queue.find("other", 0)) == ("align", None, None)


def test_another_try_replaces_the_job_that_is_over(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    queue.submit([task(config)], 0)
    api.objects[RAY_JOBS]["align"]["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    queue.check([task(config)])
    api.keeps_deleted = True

    def garbage_collector() -> None:
        while "deletionTimestamp" not in api.objects[RAY_JOBS]["align"]["metadata"]:
            time.sleep(0.01)
        del api.objects[RAY_JOBS]["align"]

    collector = threading.Thread(target=garbage_collector)
    collector.start()
    queue.submit([task(config)], 1)
    collector.join()
    assert queue.find("align", 1) == "align"
    assert queue.statuses(["align"])["align"].state is JobState.PENDING


def test_a_name_that_somebody_takes_while_the_former_job_leaves_is_a_clash(
    api: KubernetesApi, queue: KubernetesQueue, config: Path
) -> None:
    queue.submit([task(config)], 0)
    api.objects[RAY_JOBS]["align"]["status"] = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}
    theirs = ray_job(task(config, environment={"A": "b"}))
    ask = queue._cluster._ask

    def other(method: str, path: str, *rest: Any, **named: Any) -> Object:
        if method == "POST" and not api.objects[RAY_JOBS]:
            ask("POST", path, None, theirs)
        return ask(method, path, *rest, **named)

    queue._cluster._ask = other  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match="Another job of that name"):
        queue.submit([task(config)], 1)
    assert queue.find("align", 0) == "align"


def test_a_name_that_somebody_else_uses_is_a_clash(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    sweep = tasks_of(job(config, sweep={"seed": [1, 2]}))
    queue.submit([task(config, name="align-1")], 0)
    with pytest.raises(ConfigError, match="align-1"):
        queue.submit(sweep, 0)
    # The point that was created before the clash is gone.
    assert list(api.objects[RAY_JOBS]) == ["align-1"]


@pytest.mark.parametrize(
    ("field", "says", "given"),
    [
        ("queue", "training", {"queue": "trainings"}),
        ("priority", "high", {"priority": "highest"}),
        ("launcher.secret", "secrets", {"launcher": {"secret": "none"}}),
        ("launcher.pull_secret", "secrets", {"launcher": {"pull_secret": "none"}}),
        ("launcher.service_account", "serviceaccounts", {"launcher": {"service_account": "none"}}),
        ("launcher.volume.name", "persistentvolumeclaims", {"launcher": {"volume": {"name": "none"}}}),
        ("launcher.context", "get-contexts", {"launcher": {"context": "elsewhere"}}),
        ("after", "pipeline", {"after": ["align"]}),
    ],
)
def test_what_is_missing_is_named(
    field: str, says: str, given: dict[str, Any], api: KubernetesApi, config: Path
) -> None:
    after = given.pop("after", [])
    one = task(config, **given)
    queue = KubernetesQueue(one.job.launcher)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=says) as refusal:
        queue.check([one]) if not after else queue.submit([one], 0, after)
    assert refusal.value.field == field
    assert not api.objects[RAY_JOBS]


def test_a_namespace_that_is_not_there(api: KubernetesApi, config: Path) -> None:
    one = task(config, {"namespace": "elsewhere"})
    with pytest.raises(ConfigError, match="none of that name") as refusal:
        KubernetesQueue(one.job.launcher).submit([one], 0)  # type: ignore[arg-type]
    assert refusal.value.field == "launcher.namespace"


@pytest.mark.parametrize(("kinds", "what"), [([RAY_JOBS], "KubeRay"), ([LOCAL_QUEUES, WORKLOADS], "Kueue")])
def test_a_cluster_without_its_operators(
    kinds: list[str], what: str, api: KubernetesApi, queue: KubernetesQueue, config: Path
) -> None:
    queue.submit([task(config)], 0)
    for kind in kinds:
        del api.objects[kind]
    with pytest.raises(ConfigError, match=f"install {what}"):
        queue.check([task(config)])
    with pytest.raises(ConfigError, match=f"install {what}"):
        queue.statuses(["align"])


def test_rights(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    # Who may not look at Secrets is not told that there is none.
    api.forbidden = {("get", "secrets")}
    queue.check([task(config, {"secret": "perhaps"})])
    api.forbidden = {("create", "rayjobs")}
    with pytest.raises(ConfigError, match=r"tenant\.yaml.*cannot create"):
        queue.check([task(config)])


def test_a_secret_is_looked_for_without_its_content(api: KubernetesApi, config: Path) -> None:
    api.add("v1/secrets", "astroclip", data={"TOKEN": "c2VjcmV0"})
    one = task(config, {"secret": "astroclip"}, secrets=["TOKEN"])
    KubernetesQueue(one.job.launcher).check([one])  # type: ignore[arg-type]
    assert ("GET", "/api/v1/namespaces/survey/secrets/astroclip") in api.requests


def test_who_asks_is_unknown_and_the_server_fails_or_is_gone(
    api: KubernetesApi, config: Path, tmp_path: Path, queue: KubernetesQueue
) -> None:
    api.write_kubeconfig(tmp_path / "kubeconfig", token="wrong")
    with pytest.raises(ConfigError, match="does not know you"):
        KubernetesQueue(job(config).launcher).statuses(["align"])  # type: ignore[arg-type]
    api.write_kubeconfig(tmp_path / "kubeconfig")
    api.fails = 500
    with pytest.raises(StorageError, match="etcdserver"):
        queue.statuses(["align"])
    api.close()
    with pytest.raises(StorageError, match="does not answer"):
        KubernetesQueue(job(config).launcher).statuses(["align"])  # type: ignore[arg-type]


def test_the_server_checks_what_is_sent(
    api: KubernetesApi, queue: KubernetesQueue, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control of these tests: what the real definitions, or Kueue, refuse comes back as an error."""
    one, manifest = task(config), ray_job(task(config))
    for wrong, says in (("entrypont", "unknown field"), ("clusterSelector", "existing cluster")):
        sent = {**manifest, "spec": {**manifest["spec"], wrong: {"a": "b"}}}
        monkeypatch.setattr(queue_module, "ray_job", lambda *_, sent=sent: sent)
        with pytest.raises(ConfigError, match=f"refuses it: .*{says}"):
            queue.check([one])


class Controllers:
    """KubeRay and Kueue, as far as a client sees them."""

    def __init__(self, api: KubernetesApi, name: str = "align") -> None:
        self.api, self.job = api, api.objects[RAY_JOBS][name]
        owner = {"uid": self.job["metadata"]["uid"], "kind": "RayJob"}
        metadata = {"ownerReferences": [owner]}
        self.workload = api.add(WORKLOADS, f"rayjob-{name}-1a2b", metadata=metadata, spec={"active": True}, status={})

    def conditions(self, **reasons: tuple[bool, str, str]) -> None:
        """Of the Workload: type = (holds, reason, message)."""
        self.workload["status"]["conditions"] = [
            {"type": kind, "status": str(holds), "reason": reason, "message": message}
            for kind, (holds, reason, message) in reasons.items()
        ]

    def admit(self) -> None:
        self.conditions(QuotaReserved=(True, "QuotaReserved", ""), Admitted=(True, "Admitted", ""))
        self.job["spec"]["suspend"] = False
        self.kuberay(jobDeploymentStatus="Initializing", rayClusterName="align-x7k2p", startTime="2026-11-22T12:10:00Z")

    def kuberay(self, **status: Any) -> None:
        self.job["status"] = {**self.job.get("status", {}), **status}

    def pod(self, name: str, **status: Any) -> Object:
        labels = {"ray.io/cluster": "align-x7k2p"}
        return self.api.add(
            "v1/pods", name, metadata={"labels": labels}, spec={"nodeName": f"of-{name}"}, status=status
        )


def told(queue: KubernetesQueue) -> tuple[str, str | None, int]:
    status = queue.statuses(["align"])["align"]
    return status.state.value, status.reason, status.restarts


def test_a_job_is_told_of_from_its_queue_to_its_end(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    assert queue.statuses(["align"])["align"].state is JobState.UNKNOWN
    queue.submit([task(config, nodes=2)], 0)
    assert told(queue) == ("pending", "Kueue has not seen it yet", 0)
    controllers = Controllers(api)
    controllers.conditions(QuotaReserved=(False, "Pending", REFUSED_BY_QUOTA))
    assert told(queue) == ("pending", REFUSED_BY_QUOTA, 0)

    controllers.admit()
    assert told(queue) == ("running", "its pods start", 0)
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "astroclip:0"'}
    pod = controllers.pod("head", containerStatuses=[{"state": {"waiting": waiting}}])
    assert told(queue) == ("running", 'pod head: ImagePullBackOff: Back-off pulling image "astroclip:0"', 0)
    unschedulable = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/8 nodes"}
    pod["status"] = {"conditions": [unschedulable]}
    assert told(queue) == ("running", "pod head: Unschedulable: 0/8 nodes", 0)
    pod["status"] = {}
    controllers.kuberay(jobDeploymentStatus="Running", jobStatus="RUNNING")
    status = queue.statuses(["align"])["align"]
    assert (status.state, status.reason, status.nodes) == (JobState.RUNNING, None, ("of-head",))
    assert (status.submitted, status.started) == ("2026-11-22T12:00:00Z", "2026-11-22T12:10:00Z")

    controllers.kuberay(jobDeploymentStatus="Retrying", failed=1)
    assert told(queue) == ("running", "the pods of the last start leave", 1)
    controllers.kuberay(jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", endTime="2026-11-22T14:00:00Z")
    assert told(queue) == ("succeeded", None, 1)
    assert queue.statuses(["align"])["align"].ended == "2026-11-22T14:00:00Z"


def test_a_job_that_is_preempted_waits_for_its_next_start(
    api: KubernetesApi, queue: KubernetesQueue, config: Path
) -> None:
    queue.submit([task(config)], 0)
    controllers = Controllers(api)
    controllers.admit()
    controllers.job["spec"]["suspend"] = True
    controllers.kuberay(jobDeploymentStatus="Suspending")
    message = "Preempted to accommodate a workload (UID: 1) due to prioritization in the ClusterQueue"
    controllers.conditions(
        Evicted=(True, "Preempted", message), QuotaReserved=(False, "Pending", "waits"), Admitted=(False, "", "")
    )
    evictions = [{"reason": "Preempted", "underlyingCause": "", "count": 2}]
    controllers.workload["status"]["schedulingStats"] = {"evictions": evictions}
    assert told(queue) == ("requeued", f"Preempted: {message}; waits", 2)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "exit code 1"},
         "AppFailed: exit code 1"),
        ({"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed", "message": "bad"},
         "ValidationFailed: bad"),
        ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped, because no restart mends its failure"),
    ],
)  # fmt: skip
def test_how_jobs_fail(status: Object, reason: str, api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    queue.submit([task(config)], 0)
    api.objects[RAY_JOBS]["align"]["status"] = {**status, "failed": 3}
    state, words, _ = told(queue)
    assert state == "failed"
    assert words is not None
    assert words.startswith(reason)


def test_cancelling_deletes_what_is_not_over(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    queue.submit([task(config)], 0)
    api.keeps_deleted = True
    queue.cancel("align")
    assert told(queue) == ("cancelled", "its pods save and leave", 0)
    del api.objects[RAY_JOBS]["align"]
    queue.cancel("align")
    queue.submit([task(config)], 1)
    api.objects[RAY_JOBS]["align"]["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    queue.cancel("align")
    assert told(queue)[0] == "succeeded"


def test_a_deleted_job_stays_cancelled_at_the_desk(api: KubernetesApi, config: Path, tmp_path: Path) -> None:
    desk = JobDesk(JobRecords(tmp_path / "jobs"))
    [submission] = desk.submit([task(config)])
    assert submission.is_new
    desk.cancel("align")
    assert not api.objects[RAY_JOBS]
    assert desk.jobs(["align"])[0].status.state is JobState.CANCELLED
    [submission] = desk.submit([task(config)])
    assert (submission.is_new, submission.record.attempt) == (True, 1)
    assert not desk.submit([task(config)])[0].is_new


def test_requeueing_takes_the_machines_and_lets_it_go_on(
    api: KubernetesApi, queue: KubernetesQueue, config: Path
) -> None:
    queue.submit([task(config)], 0)
    with pytest.raises(ConfigError, match="does not run"):
        queue.requeue("align")
    controllers = Controllers(api)
    with pytest.raises(ConfigError, match="does not run"):
        queue.requeue("align")
    controllers.admit()

    seen: list[bool] = []

    def kueue() -> None:
        while controllers.workload["spec"]["active"]:
            time.sleep(0.005)
        seen.append(controllers.workload["spec"]["active"])
        controllers.conditions(Admitted=(False, "NoReservation", ""), Evicted=(True, "Deactivated", ""))

    player = threading.Thread(target=kueue)
    player.start()
    queue.requeue("align")
    player.join()
    assert seen == [False]
    assert controllers.workload["spec"]["active"] is True

    # Its client died between the two: the job says so, and the same command goes on.
    controllers.workload["spec"]["active"] = False
    assert "deactivated" in str(told(queue)[1])
    queue.requeue("align")
    assert controllers.workload["spec"]["active"] is True


def test_logs_are_followed_over_all_starts(api: KubernetesApi, queue: KubernetesQueue, config: Path) -> None:
    queue.submit([task(config)], 0)
    assert list(queue.logs("align", follow=False)) == []
    lines = queue.logs("align", follow=True)

    def submitter(name: str, *log: tuple[float, str]) -> Object:
        api.logs[name] = list(log)
        labels = {"job-name": "align"}
        return api.add("v1/pods", name, metadata={"labels": labels}, spec={}, status={"phase": "Running"})

    submitter("align-aaa", (1.1, "step 1"), (1.2, "step 2 \N{GREEK SMALL LETTER ALPHA}"))
    assert [next(lines) for _ in range(2)] == ["step 1", "step 2 \N{GREEK SMALL LETTER ALPHA}"]
    # The server has ended the connection, as it does after some hours; what is known is not told again.
    api.logs["align-aaa"].append((1.3, "step 3"))
    assert next(lines) == "step 3"
    # Preempted: KubeRay deletes the pod, and makes another one for the next start.
    del api.objects["v1/pods"]["align-aaa"]
    second = submitter("align-bbb", (9, "step 4"), (9.5, ""), (9.7, "done"))
    second["status"]["phase"] = "Succeeded"
    api.objects[RAY_JOBS]["align"]["status"] = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    assert list(lines) == ["step 4", "", "done"]
    assert list(queue.logs("align", follow=False)) == ["step 4", "", "done"]

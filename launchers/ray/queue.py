"""Jobs at a Ray cluster that is there: each is started at once, and waits for the room of its workers."""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from astroclip_dist.errors import ConfigError, StorageError
from launchers.jobs.places import RayPlace
from launchers.jobs.status import JobState, JobStatus
from launchers.jobs.task import Task
from launchers.ray.job_client import FORGOTTEN, OVER, JobInfo, RayJobsClient
from launchers.ray.job_request import MAX_RESTARTS, STOP_WAIT_VARIABLE, request_of, submission_id
from launchers.ray.restarts import RESTARTS
from launchers.ray.room import check_room, check_version

_POLL_S = 0.5
# Beyond what a job has to save: for Ray to end its processes and to write that down.
_STOP_MARGIN_S = 30.0
# A job that waits for no room has started by then.
_START_S = 20.0
# Ray's own, where the job does not say.
_STOP_WAIT_S = 3.0
# For a job that only sends a signal, on a busy machine.
_ASK_S = 90.0


class RayQueue:
    """Ray's Jobs API.

    Ray never starts a job again: ``launchers.ray.job`` does, as long as the head lives. The head's death ends all jobs,
    and Ray forgets them; submitting again goes on with the runs.
    """

    depends = False

    def __init__(self, place: RayPlace) -> None:
        self._address = place.address
        self._opened: RayJobsClient | None = None

    @property
    def _client(self) -> RayJobsClient:
        # Opened late: to render a request takes no token.
        self._opened = self._opened or RayJobsClient(self._address)
        return self._opened

    def render(self, tasks: Sequence[Task], after: Sequence[str] = ()) -> str:
        """The requests of a first attempt."""
        _refuse_order(after)
        posts = [f"POST {self._address}/api/jobs/\n{_indented(request_of(task, 0))}" for task in tasks]
        return "\n".join(posts)

    def check(self, tasks: Sequence[Task]) -> None:
        """Whether the cluster answers, takes the token, has our version of Ray and the room for each task alone.

        Raises:
            ConfigError: it does not.
        """
        for task in tasks:
            request_of(task, 0)
        check_version(self._client)
        check_room(self._client, tasks)

    def submit(self, tasks: Sequence[Task], attempt: int, after: Sequence[str] = ()) -> tuple[str, ...]:
        """Post jobs; they start at once."""
        _refuse_order(after)
        requests = [request_of(task, attempt) for task in tasks]
        new: list[str] = []
        try:
            for request in requests:
                if self._post(request):
                    new.append(request["submission_id"])
        except ConfigError:
            for job_id in new:
                self.cancel(job_id)
            raise
        return tuple(request["submission_id"] for request in requests)

    def find(self, task_name: str, attempt: int) -> str | None:
        """Its id where the cluster knows it."""
        job_id = submission_id(task_name, attempt)
        return None if self._client.job(job_id) is None else job_id

    def release(self, ids: Sequence[str]) -> None:
        """Ray holds no job back."""

    def statuses(self, ids: Sequence[str]) -> Mapping[str, JobStatus]:
        """By one look at all jobs, and one at the workers where some of these run."""
        jobs = {job["submission_id"]: job for job in self._client.jobs()}
        here = {job_id: jobs[job_id] for job_id in ids if job_id in jobs}
        nodes = self._nodes_of([job for job in here.values() if job["status"] == "RUNNING"])
        unknown = JobStatus(JobState.UNKNOWN, f"the cluster {FORGOTTEN}")
        return {job_id: status_of(here[job_id], nodes.get(job_id)) if job_id in here else unknown for job_id in ids}

    def logs(self, job_id: str, follow: bool) -> Iterator[str]:
        """What the job and its workers print, over all of its starts at this cluster."""
        self._known(job_id)
        return self._client.follow_log(job_id) if follow else iter(self._client.log(job_id))

    def cancel(self, job_id: str) -> None:
        """Ask the job to save and leave, and wait until it has.

        A job that waits for room has none to leave: Ray ends it when it starts.

        Raises:
            StorageError: it is still there when its time to save is over.
        """
        job = self._client.job(job_id)
        if job is None or job["status"] in OVER:
            return
        self._client.stop(job_id)
        variables = (job.get("runtime_env") or {}).get("env_vars") or {}
        running = job["status"] == "RUNNING"
        patience = float(variables.get(STOP_WAIT_VARIABLE, _STOP_WAIT_S)) + _STOP_MARGIN_S if running else _START_S
        left = self._when_over(job_id, patience)
        if left["status"] == "RUNNING":
            raise StorageError("name", job_id, f"It was told to end, and still runs after {patience:g} s: see its log.")

    def requeue(self, job_id: str) -> None:
        """Ask a training to save and leave; its job starts it again, under the same id.

        Raises:
            ConfigError: it does not run, or may not be started again.
        """
        job = self._known(job_id)
        if job["status"] != "RUNNING":
            raise ConfigError("name", job_id, f"It does not run (Ray: {job['status']}): submit it again.")
        most = int(job["metadata"].get(MAX_RESTARTS, "0"))
        if int(job["metadata"].get(RESTARTS, "0")) >= most:
            raise ConfigError("max_restarts", most, "It was started again so often: cancel it, and submit it again.")
        asking = f"{job_id}-requeue-{secrets.token_hex(4)}"
        entrypoint = "exec " + shlex.join(["python", "-m", "launchers.ray.requeue", job_id])
        self._client.submit({"submission_id": asking, "entrypoint": entrypoint})
        asked = self._when_over(asking, _ASK_S)
        if asked["status"] not in OVER:
            self._client.stop(asking)
            raise StorageError("launcher.address", self._address, f"Ray did not start {asking} within {_ASK_S:g} s.")
        if asked["status"] != "SUCCEEDED":
            raise ConfigError("name", job_id, f"It was not asked to leave ({_last_line(asked)}): try again.")

    def _post(self, request: dict[str, Any]) -> bool:
        """Whether the job is new; the same that is there already is left alone."""
        job_id = request["submission_id"]
        try:
            self._client.submit(request)
        except StorageError:
            # The id exists, or the answer was lost on the way.
            job = self._client.job(job_id)
            if job is None:
                raise
            if (job["metadata"] or {}).get("digest") != request["metadata"]["digest"]:
                raise ConfigError(
                    "name", job_id, "Another job has that id at this cluster: choose another name for this one."
                ) from None
            return False
        return True

    def _when_over(self, job_id: str, patience_s: float) -> JobInfo:
        """The job when it is over, or as it is then."""
        deadline = time.monotonic() + patience_s
        while (job := self._known(job_id))["status"] not in OVER and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return job

    def _known(self, job_id: str) -> JobInfo:
        job = self._client.job(job_id)
        if job is None:
            raise ConfigError("name", job_id, f"The cluster at {self._address} {FORGOTTEN}: submit it again.")
        return job

    def _nodes_of(self, jobs: Sequence[JobInfo]) -> dict[str, tuple[str, ...]]:
        """Addresses of the nodes with workers, of each job whose training has connected to the cluster."""
        drivers = {job["driver_info"]["id"]: job["submission_id"] for job in jobs if job["driver_info"]}
        if not drivers:
            return {}
        addresses = {node["node_id"]: node["node_ip"] for node in self._client.nodes()}
        found: dict[str, set[str]] = {job_id: set() for job_id in drivers.values()}
        for worker in self._client.train_workers():
            if (job_id := drivers.get(worker["job_id"])) and worker["node_id"] in addresses:
                found[job_id].add(addresses[worker["node_id"]])
        return {job_id: tuple(sorted(nodes)) for job_id, nodes in found.items()}


def status_of(job: JobInfo, nodes: Sequence[str] | None = None) -> JobStatus:
    """What Ray tells of a job, in the words of all engines.

    Args:
        nodes: those with workers of a training that runs; None for any other job.
    """
    state, reason = _STATES[job["status"]], None
    if state is JobState.PENDING:
        reason = f"PENDING: {job['message']}"
    elif state is JobState.RUNNING and nodes is not None and not nodes:
        reason = "RUNNING without workers: they start, or wait for room"
    elif state is JobState.CANCELLED:
        reason = "STOPPED: it was told to end"
    elif state is JobState.FAILED:
        code = job.get("driver_exit_code")
        reason = f"{job.get('error_type') if code is None else f'exit code {code}'}: {_last_line(job)}"
    started = _utc(job["start_time"])
    return JobStatus(
        state,
        reason,
        restarts=int((job.get("metadata") or {}).get(RESTARTS, "0")),
        nodes=tuple(nodes or ()),
        submitted=started,
        # Ray notes one time: of the request, which it starts at once where there is room.
        started=None if state is JobState.PENDING else started,
        ended=_utc(job["end_time"]),
    )


_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "STOPPED": JobState.CANCELLED,
}


def _last_line(job: JobInfo) -> str:
    """Of Ray's message, which ends with the last lines of the log."""
    lines = [line.strip() for line in (job.get("message") or "").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no more is known"


def _utc(milliseconds: int | None) -> str | None:
    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _indented(request: Mapping[str, Any]) -> str:
    return json.dumps(request, indent=2, ensure_ascii=False)


def _refuse_order(after: Sequence[str]) -> None:
    if after:
        raise ConfigError("after", ", ".join(after), "Ray starts no job after another one: submit them in turn.")

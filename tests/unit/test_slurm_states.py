"""Slurm's words for states, as all engines have them; and lines of logs that grow."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from astroclip_dist.errors import StorageError
from launchers.jobs.status import JobState
from launchers.slurm.commands import QueueEntry, host_names
from launchers.slurm.following import lines_of
from launchers.slurm.states import status_of


def entry(
    state: str, reason: str = "None", restarts: int = 0, code: int | None = 0, number: int | None = None
) -> QueueEntry:
    return QueueEntry(
        job_id="7",
        state=state,
        reason=reason,
        restarts=restarts,
        nodes="n1,n2",
        submitted="2026-11-22T15:00:00Z",
        started="2026-11-22T15:01:00Z",
        ended="2026-11-22T15:02:00Z",
        exit_code=code,
        signal=number,
    )


@pytest.mark.parametrize(
    ("told", "state", "reason"),
    [
        (entry("PENDING", "Resources"), "pending", "no free nodes (Resources)"),
        (entry("PENDING", "Priority"), "pending", "others come first (Priority)"),
        (entry("PENDING", "QOSMaxCpuPerUserLimit"), "pending", "a limit of the QOS is reached: QOSMaxCpuPerUserLimit"),
        (entry("PENDING", "MaxCpuPerAccount"), "pending", "a limit of the QOS is reached: MaxCpuPerAccount"),
        (entry("PENDING", "AssocGrpGRES"), "pending", "a limit of the account is reached: AssocGrpGRES"),
        (entry("PENDING", "SomethingNew"), "pending", "SomethingNew"),
        (
            entry("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1"),
            "pending",
            "nodes that it asks for are not available (ReqNodeNotAvail, UnavailableNodes:n1)",
        ),
        (entry("PENDING", "BeginTime", 1), "requeued", "waits a while after it was queued again (BeginTime)"),
        (entry("REQUEUE_HOLD", "None", 1), "requeued", "Slurm has not looked at it yet (None)"),
        (entry("RUNNING"), "running", None),
        (entry("COMPLETING", restarts=1), "running", None),
        (entry("COMPLETED"), "succeeded", None),
        (entry("CANCELLED"), "cancelled", None),
        (
            entry("CANCELLED", "DependencyNeverSatisfied"),
            "cancelled",
            "a job before it did not succeed (DependencyNeverSatisfied)",
        ),
        (entry("TIMEOUT"), "failed", "its time limit came before it had left (TIMEOUT)"),
        (entry("NODE_FAIL"), "failed", "one of its nodes failed (NODE_FAIL)"),
        (entry("FAILED", "NonZeroExitCode", code=1), "failed", "exit code 1: the command failed, its log says why"),
        (entry("FAILED", "NonZeroExitCode", code=3), "failed", "exit code 3"),
        (entry("FAILED", "RaisedSignal:9", number=9), "failed", "killed by signal 9"),
        (entry("GONE_TO_MARS"), "unknown", "Slurm calls it GONE_TO_MARS"),
    ],
)
def test_states_and_their_reasons(told: QueueEntry, state: str, reason: str | None) -> None:
    status = status_of(told)
    assert (status.state, status.reason) == (state, reason)


def test_a_job_that_gave_way_never_counts_as_failed() -> None:
    status = status_of(entry("PREEMPTED"))
    assert status.state is JobState.CANCELLED
    assert "submit it again" in (status.reason or "")


def test_times_and_nodes_are_those_of_the_state() -> None:
    waits, runs, over = (status_of(entry(state)) for state in ("PENDING", "RUNNING", "COMPLETED"))
    assert (waits.started, waits.ended, waits.nodes) == (None, None, ())
    assert (runs.started, runs.ended, runs.nodes) == ("2026-11-22T15:01:00Z", None, ("n1", "n2"))
    assert (over.ended, over.nodes) == ("2026-11-22T15:02:00Z", ())


def test_a_plain_list_of_hosts_needs_no_slurm() -> None:
    assert host_names("a,b-1") == ("a", "b-1")
    assert host_names("") == ()


def test_a_log_that_is_not_there_yet_is_followed_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log"
    over = threading.Event()
    asked = []

    def write() -> None:
        for text in ("one\ntw", "o\nthr", "ee"):
            time.sleep(0.2)
            with path.open("a") as file:
                file.write(text)
        over.set()

    def is_over() -> bool:
        asked.append(1)
        if len(asked) == 2:
            raise StorageError("slurm", "away", "Wait.")
        return over.is_set()

    writer = threading.Thread(target=write)
    writer.start()
    lines = list(lines_of(lambda: path if path.exists() else None, is_over, 0.05))
    writer.join()
    assert lines == ["one", "two", "three"]
    assert len(asked) > 2
    assert list(lines_of(lambda: path, None, 1)) == lines
    assert list(lines_of(lambda: None, None, 1)) == []

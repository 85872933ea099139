"""Slurm's words for states and reasons, as those that all engines have in common."""

from __future__ import annotations

import re

from launchers.jobs.status import JobState, JobStatus
from launchers.slurm.commands import QueueEntry, host_names

_STATES = {
    **dict.fromkeys(("PENDING",), JobState.PENDING),
    **dict.fromkeys(("REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT"), JobState.REQUEUED),
    **dict.fromkeys(
        ("CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "RESIZING", "SIGNALING", "STAGE_OUT"),
        JobState.RUNNING,
    ),
    **dict.fromkeys(("COMPLETED",), JobState.SUCCEEDED),
    # A site that cancels what it preempts: the job did nothing wrong.
    **dict.fromkeys(("CANCELLED", "REVOKED", "PREEMPTED"), JobState.CANCELLED),
    **dict.fromkeys(
        ("FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE", "LAUNCH_FAILED", "RECONFIG_FAIL"),
        JobState.FAILED,
    ),
}
_ENDINGS = {
    "TIMEOUT": "its time limit came before it had left",
    "NODE_FAIL": "one of its nodes failed",
    "OUT_OF_MEMORY": "it took more memory than it had asked for: raise memory_per_node",
    "BOOT_FAIL": "one of its nodes did not boot",
    "DEADLINE": "its deadline has passed",
    "LAUNCH_FAILED": "its nodes could not start it",
    "PREEMPTED": "it gave way to a more important job, and this site queues such jobs not again: submit it again",
    "REVOKED": "another cluster runs it",
}
_EXIT_CODES = {
    1: "the command failed, its log says why",
    2: "wrong usage or configuration",
    70: "the command crashed, and has no restarts left",
    75: "its state is saved, and it has no restarts left",
    127: "a command was not found: see launcher.setup and launcher.python",
}
_WAITS = {
    "None": "Slurm has not looked at it yet",
    "Priority": "others come first",
    "Resources": "no free nodes",
    "Dependency": "waits for the jobs before it",
    "BeginTime": "waits a while after it was queued again",
    "JobHeldUser": "held",
    "JobHeldAdmin": "held by an administrator",
    "JobArrayTaskLimit": "as many of the sweep run as may run at once",
    "PartitionTimeLimit": "its time limit is above the partition's",
    "PartitionNodeLimit": "the partition does not give so many nodes",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "ReqNodeNotAvail": "nodes that it asks for are not available",
    "Reservation": "waits for a reservation",
    "Licenses": "waits for licences",
    "QOSNotAllowed": "its account may not use this QOS",
    "InvalidQOS": "there is no such QOS",
    "InvalidAccount": "there is no such account",
    "BadConstraints": "no node has what it asks for",
    "launch failed requeued held": "a node could not start it; held until it is released",
}
# QOSMaxCpuPerUserLimit, MaxCpuPerAccount (of a QOS, too), AssocGrpGRES, ...
_LIMIT = re.compile(r"(QOS)\w+|(Assoc)\w+|Max\w+PerAccount\w*")


def status_of(entry: QueueEntry) -> JobStatus:
    """One job in the common vocabulary."""
    state = _STATES.get(entry.state, JobState.UNKNOWN)
    if state is JobState.PENDING and entry.restarts:
        state = JobState.REQUEUED
    waits = state in (JobState.PENDING, JobState.REQUEUED)
    return JobStatus(
        state=state,
        reason=_why_it_waits(entry) if waits else _how_it_ended(entry, state),
        restarts=entry.restarts,
        nodes=host_names(entry.nodes) if state is JobState.RUNNING else (),
        submitted=entry.submitted,
        # Of one that waits, Slurm tells when it expects to start it.
        started=None if waits else entry.started,
        ended=entry.ended if state.is_over else None,
    )


def _why_it_waits(entry: QueueEntry) -> str:
    term = entry.reason.strip("()") or "None"
    name = term.partition(",")[0]
    if name in _WAITS:
        return f"{_WAITS[name]} ({term})"
    if limit := _LIMIT.fullmatch(name):
        owner = "the account" if limit[2] else "the QOS"
        return f"a limit of {owner} is reached: {term}"
    return term


def _how_it_ended(entry: QueueEntry, state: JobState) -> str | None:
    if state is JobState.UNKNOWN:
        return f"Slurm calls it {entry.state}"
    if entry.state in _ENDINGS:
        return f"{_ENDINGS[entry.state]} ({entry.state})"
    if entry.reason == "DependencyNeverSatisfied":
        return "a job before it did not succeed (DependencyNeverSatisfied)"
    if state is not JobState.FAILED:
        return None
    if entry.signal:
        return f"killed by signal {entry.signal}"
    if entry.exit_code:
        known = _EXIT_CODES.get(entry.exit_code)
        return f"exit code {entry.exit_code}" + (f": {known}" if known else "")
    return f"{entry.state}, {entry.reason}"

"""Slurm's own commands, and what they print, in the forms that 22.05 and 24.11 have in common."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from astroclip_dist.errors import ConfigError, StorageError

_DEADLINE_S = 120.0
_SEPARATOR = "|,"
_AWAY = re.compile(
    r"(?i)unable to contact slurm|connection refused|timed out|zero bytes were transmitted|"
    r"unable to connect|slurm backup controller in standby|connection reset|munge.*(socket|failure|error)"
)
_UNKNOWN_JOB = "Invalid job id specified"
_FIELDS = (
    *("JobArrayID", "State", "Reason", "RestartCnt", "NodeList", "SubmitTime", "StartTime", "EndTime"),
    *("exit_code", "Name", "Comment"),
)
_RECORD_FIELDS = ("JobID", "State", "Reason", "NodeList", "Submit", "Start", "End", "ExitCode")


class RefusedError(Exception):
    """Slurm says no; the message is its own."""


@dataclass(frozen=True)
class QueueEntry:
    """One job, or one element of an array, as Slurm tells it.

    Attributes:
        job_id: J, or J_N for an element.
        state: Slurm's word, JOB_STATE_CODES of squeue's manual.
        nodes: a host list, ``n[1-3]``.
        submitted, started, ended: ISO 8601, UTC; None where not known, or not yet.
        exit_code: None where not known.
        signal: that ended it, None where none did.
        name, comment: empty where not known.
    """

    job_id: str
    state: str
    reason: str
    restarts: int
    nodes: str
    submitted: str | None
    started: str | None
    ended: str | None
    exit_code: int | None
    signal: int | None
    name: str = ""
    comment: str = ""


def run(command: Sequence[str], script: str | None = None, environment: Mapping[str, str] | None = None) -> str:
    """What one of Slurm's commands prints; its times are UTC.

    Args:
        script: standard input.
        environment: all of it; this process's if None.

    Raises:
        RefusedError: it failed.
        ConfigError: there is no such command here.
        StorageError: Slurm does not answer.
    """
    try:
        done = subprocess.run(
            command,
            input=script or "",
            env={**(os.environ if environment is None else environment), "TZ": "UTC"},
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise ConfigError(
            "launcher.name", "slurm", f"There is no {command[0]} on this machine: submit where Slurm's commands are."
        ) from error
    except subprocess.TimeoutExpired as error:
        raise StorageError("slurm", f"{command[0]} did not answer in {_DEADLINE_S:.0f} s", "Try again.") from error
    if done.returncode != 0:
        said = "; ".join(line.strip() for line in done.stderr.splitlines() if line.strip()) or "no reason given"
        if _AWAY.search(said):
            raise StorageError("slurm", said, "Slurm does not answer: try again when sinfo does.")
        raise RefusedError(said)
    return done.stdout


def queue_entries(*arguments: str) -> list[QueueEntry]:
    """What squeue tells of waiting and running jobs, and of those that ended within the last minutes (MinJobAge).

    Args:
        arguments: which ones, as squeue takes them.
    """
    fields = ",".join(f"{field}:|" for field in _FIELDS)
    try:
        told = run(["squeue", "--noheader", "--array", "--states=all", f"--Format={fields}", *arguments])
    except RefusedError as error:
        # Of one id that Slurm has forgotten; of several it leaves that one out.
        if _UNKNOWN_JOB in str(error):
            return []
        raise StorageError("slurm", str(error), "squeue failed: see whether it works by itself.") from error
    return [_entry(line) for line in told.splitlines() if line.strip()]


def _entry(line: str) -> QueueEntry:
    # The comment comes last: it alone may hold the separator.
    job_id, state, reason, restarts, nodes, submitted, started, ended, code, name, comment = line.split(
        "|", len(_FIELDS) - 1
    )
    exit_code, number = _exit(code)
    return QueueEntry(
        job_id=job_id,
        state=state,
        reason=reason,
        restarts=int(restarts) if restarts.isdigit() else 0,
        nodes=nodes,
        submitted=_time(submitted),
        started=_time(started),
        ended=_time(ended),
        exit_code=exit_code,
        signal=number,
        name=name,
        comment=comment.removesuffix("|"),
    )


def record_entries(ids: Sequence[str]) -> list[QueueEntry]:
    """What the accounting tells of jobs that squeue has forgotten; nothing where there is no accounting."""
    command = ["sacct", "--noheader", "--allocations", "--parsable2", f"--format={','.join(_RECORD_FIELDS)}"]
    try:
        told = run([*command, f"--jobs={','.join(ids)}"])
    except (RefusedError, ConfigError):
        return []
    entries = []
    for line in told.splitlines():
        job_id, state, reason, nodes, submitted, started, ended, code = line.split("|")
        exit_code, number = _exit(code)
        entries.append(
            QueueEntry(
                job_id=job_id,
                # "CANCELLED by 1000"
                state=state.split()[0],
                reason=reason,
                restarts=0,
                nodes="" if nodes == "None assigned" else nodes,
                submitted=_time(submitted),
                started=_time(started),
                ended=_time(ended),
                exit_code=exit_code,
                signal=number,
            )
        )
    return entries


def host_names(host_list: str) -> tuple[str, ...]:
    """``n[1-3],x`` -> n1, n2, n3, x."""
    if "[" not in host_list:
        return tuple(name for name in host_list.split(",") if name)
    return tuple(run(["scontrol", "show", "hostnames", host_list]).split())


def job_details(job_id: str) -> dict[str, str]:
    """What scontrol tells of one job: JobState, Reason, ..."""
    told = run(["scontrol", "--oneliner", "show", "job", job_id])
    return dict(re.findall(r"(\w+)=(\S*)", told.splitlines()[0]))


def _exit(text: str) -> tuple[int | None, int | None]:
    """Exit code, and the signal that ended it: of ``1:0`` (sacct), or of what wait() gave (squeue)."""
    code, colon, number = text.partition(":")
    if not code.isdigit():
        return None, None
    if colon:
        return int(code), int(number) or None
    return int(code) >> 8, int(code) & 0x7F or None


def _time(text: str) -> str | None:
    return f"{text}Z" if re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", text) else None

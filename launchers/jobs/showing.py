"""Jobs as a table for people and as values for programs."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from astroclip_dist.runs.wording import ago, clock, many, table
from launchers.jobs.desk import Job, Submission
from launchers.jobs.progress import RunProgress
from launchers.jobs.status import JobState

_REASON = 100


def submission_as_json(submission: Submission) -> dict[str, Any]:
    """What became of one submitted task."""
    record = submission.record
    return {
        "name": record.name,
        "id": record.job_id,
        "launcher": record.place.name,
        "new": submission.is_new,
        "attempt": record.attempt,
        "state": record.last.state,
    }


def submission_in_words(submission: Submission) -> str:
    """One line, or two."""
    record = submission.record
    where = f"{record.place.name} job {record.job_id}"
    if submission.is_new:
        again = f", attempt {record.attempt + 1}" if record.attempt else ""
        on = "; the run goes on where it was" if record.attempt and record.run else ""
        return f"{record.name}: submitted as {where}{again}{on}"
    line = f"{record.name}: {where} is {record.last.state} already; nothing was submitted"
    if submission.finished:
        then = "may start now" if record.last.state is JobState.PENDING else f"is {record.last.state}"
        line = f"{record.name}: {where} was submitted by a process that was killed; it {then}"
    if submission.unlike:
        line += (
            f"\n  it keeps its {', '.join(submission.unlike)}: to change that, cancel it "
            f"(astroclip jobs cancel {record.name}) and submit again"
        )
    return line


def job_as_json(job: Job, progress: RunProgress | None) -> dict[str, Any]:
    """One job, its engine's words and its run's progress included."""
    record = job.record
    return {
        "name": record.name,
        "id": record.job_id,
        "launcher": record.place.name,
        "place": record.place.model_dump(mode="json"),
        "run": record.run,
        "sweep": record.sweep,
        "pipeline": record.pipeline,
        "attempt": record.attempt,
        "limits": record.limits,
        "again": list(record.again),
        "known": job.known,
        **dataclasses.asdict(job.status),
        "progress": None if progress is None else dataclasses.asdict(progress),
    }


def table_of(jobs: Sequence[Job], progress: Mapping[str, RunProgress], left_out: int = 0) -> str:
    """One line a job.

    Args:
        progress: by URL of the run folder.
        left_out: how many more ended long ago.
    """
    more = [f"{many(left_out, 'job')} ended longer ago: astroclip jobs list --all"] if left_out else []
    if not jobs:
        return more[0] if more else "no jobs: astroclip jobs submit JOB.yaml"
    rows = [["job", "launcher", "id", "state", "restarts", "step", "samples/s", "ETA", "reason"]]
    for job in jobs:
        record, status = job.record, job.status
        run = progress.get(record.run or "") or RunProgress()
        goes_on = status.state is JobState.RUNNING
        rows.append(
            [
                record.name,
                record.place.name,
                record.job_id or "",
                status.state,
                str(status.restarts + run.restarts),
                _step(run),
                f"{run.samples_per_second:.4g}" if goes_on and run.samples_per_second is not None else "",
                duration(run.eta_s) if goes_on and run.eta_s is not None else "",
                _short(_reason(job, run)),
            ]
        )
    return "\n".join([*table(rows), *more])


def job_in_words(job: Job, progress: RunProgress | None) -> str:
    """All that is known of a job, and what can be typed next."""
    record, status = job.record, job.status
    run = progress or RunProgress()
    facts = [
        ["job", record.name + (f", attempt {record.attempt + 1}" if record.attempt else "")],
        ["part of", ", ".join(name for name in (record.sweep, record.pipeline) if name)],
        ["launcher", record.place.name + (f", job {record.job_id}" if record.job_id else "")],
        ["asked for", ", ".join(f"{key} {value}" for key, value in record.limits.items() if value not in (None, 0))],
        ["state", f"{status.state}: {status.reason}" if status.reason else str(status.state)],
        ["nodes", ", ".join(status.nodes)],
        ["times", _times(job)],
        ["restarts", f"{status.restarts} by {record.place.name}, {run.restarts} within the run"],
        ["run", record.run or ""],
        ["progress", _progress_in_words(run)],
        ["last event", _last_event(run)],
        ["held by", run.held_by or ""],
        ["run folder", f"could not be read: {run.trouble}" if run.trouble else ""],
    ]
    lines = table([fact for fact in facts if fact[1]])
    next_ones = [["  " + shlex.join(["astroclip", *arguments]), f"# {why}"] for arguments, why in _next(job)]
    return "\n".join([*lines, "", "next", *table(next_ones)])


def duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 05 min``, ``2 d 4 h``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _next(job: Job) -> list[tuple[list[str], str]]:
    name, state = job.record.name, job.status.state
    submit = (
        ["jobs", "submit", *job.record.again],
        "submit it again" + ("; the run goes on" if job.record.run else ""),
    )
    logs = (["jobs", "logs", name], "what it has printed")
    cancel = (["jobs", "cancel", name], "end it for good")
    if state is JobState.RUNNING:
        return [
            (["jobs", "logs", "-f", name], "follow what it prints"),
            (["jobs", "requeue", name], "let it save, and queue it again"),
            cancel,
        ]
    if state in (JobState.PENDING, JobState.REQUEUED):
        held = [] if job.record.released or not job.record.again else [submit]
        return [*held, *([logs] if state is JobState.REQUEUED else []), cancel]
    again = [submit] if job.record.again else []
    if state is JobState.SUCCEEDED:
        return [logs, *([(["runs", "show", job.record.run], "what happened")] if job.record.run else [])]
    return [*([logs] if job.record.job_id else []), *again, *([cancel] if state is JobState.UNKNOWN else [])]


def _reason(job: Job, run: RunProgress) -> str:
    if job.status.reason:
        return job.status.reason
    return f"run folder: {run.trouble}" if run.trouble else ""


def _step(run: RunProgress) -> str:
    if run.step is None:
        return ""
    return f"{run.step:,}/{run.steps:,}" if run.steps else f"{run.step:,}"


def _progress_in_words(run: RunProgress) -> str:
    if run.step is None:
        return ""
    parts = [f"step {run.step:,}" + (f" of {run.steps:,} ({run.step / run.steps:.0%})" if run.steps else "")]
    if run.time is not None:
        parts += [f"{run.samples_per_second:.4g} samples/s"] if run.samples_per_second is not None else []
        parts += [f"loss {run.loss:.4g}"] if run.loss is not None else []
        parts += [f"{duration(run.eta_s)} to go"] if run.eta_s is not None and not run.finished else []
        parts.append(f"as of {ago(run.time)}")
    return ", ".join(parts)


def _last_event(run: RunProgress) -> str:
    if run.last_event is None:
        return ""
    return run.last_event + (f" ({ago(run.last_event_time)})" if run.last_event_time else "")


def _times(job: Job) -> str:
    status = job.status
    told = [("submitted", status.submitted or job.record.submitted), ("started", status.started)]
    told.append(("ended", status.ended))
    return ", ".join(f"{what} {clock(when)}" for what, when in told if when)


def _short(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= _REASON else f"{line[: _REASON - 3]}..."

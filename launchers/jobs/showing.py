"""Jobs as a table for people and as values for programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from astroclip_dist.runs.wording import table
from launchers.jobs.desk import Job


def as_json_of(job: Job) -> dict[str, Any]:
    """One job, its engine's words included."""
    record, status = job.record, job.status
    return {
        "name": record.name,
        "id": record.job_id,
        "launcher": record.place.name,
        "run": record.run,
        "pipeline": record.pipeline,
        "attempt": record.attempt,
        **dataclasses.asdict(status),
    }


def table_of(jobs: Sequence[Job]) -> str:
    """One line a job."""
    rows = [["job", "launcher", "id", "state", "restarts", "nodes", "reason"]]
    for job in jobs:
        record, status = job.record, job.status
        rows.append(
            [
                record.name,
                record.place.name,
                record.job_id or "",
                status.state,
                str(status.restarts),
                ",".join(status.nodes),
                status.reason or "",
            ]
        )
    return "\n".join(table(rows))

"""How often a job was started again, written where Ray's Jobs API tells it: into the job's metadata.

Ray does not promise to keep what this is built on; it is written for Ray 2.60.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os

from launchers.ray.requeue import job_of

RESTARTS = "restarts"


def note_restarts(count: int) -> None:
    """From within the job. Ray itself writes the job's entry when it starts, and after this process has ended."""
    asyncio.run(_note(count))


async def _note(count: int) -> None:
    # Ray is imported by a job that was started again, alone.
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.dashboard.modules.job.common import JobInfoStorageClient

    job_id = job_of(os.environ)
    jobs = JobInfoStorageClient(GcsClient(address=os.environ["RAY_ADDRESS"]))
    entry = await jobs.get_info(job_id) if job_id else None
    if job_id is None or entry is None:
        raise LookupError(f"it has no job {job_id}")
    await jobs.put_info(job_id, dataclasses.replace(entry, metadata={**(entry.metadata or {}), RESTARTS: str(count)}))

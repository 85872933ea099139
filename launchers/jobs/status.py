"""What a queue says of a job, in one vocabulary for all engines."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """
    PENDING: waits for its first start; the reason says for what.
    RUNNING: its processes run, or start.
    REQUEUED: was started before and waits for the next start: preempted, out of time, or its node died.
    SUCCEEDED, FAILED, CANCELLED: over.
    UNKNOWN: the engine does not know it, or not any more.
    """

    PENDING = "pending"
    RUNNING = "running"
    REQUEUED = "requeued"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def is_over(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class JobStatus:
    """One job as its engine sees it.

    Attributes:
        reason: why it waits, or how it ended, in words that name the engine's own term; None where there is nothing to
            say.
        restarts: how often the engine has started it again.
        nodes: those that it has now.
        submitted, started, ended: ISO 8601, UTC; ``started`` is the last start.
    """

    state: JobState
    reason: str | None = None
    restarts: int = 0
    nodes: tuple[str, ...] = ()
    submitted: str | None = None
    started: str | None = None
    ended: str | None = None

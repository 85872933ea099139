"""The checkpoints of a run read from end to end, and thinned out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from astroclip_dist.errors import ConfigError
from astroclip_dist.progress import with_progress
from astroclip_dist.runs.summary import has_saved
from astroclip_dist.runs.wording import table
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint import Retention, complete_checkpoints, describe, prune, surplus, verify
from astroclip_dist.train.holding import hold, stop_at_once
from astroclip_dist.train.run_folder import read_run_config


@dataclass(frozen=True)
class CheckedCheckpoint:
    """One checkpoint.

    Attributes:
        complete: whether its save came to its end; else it is ignored, and removed by a later one.
        faults: in words; none for one that is whole.
    """

    name: str
    step: int
    complete: bool
    faults: list[str]


@dataclass(frozen=True)
class RunReport:
    """What ``runs verify`` found.

    Attributes:
        lost: the run has saved, and no complete checkpoint is there.
    """

    url: str
    checkpoints: list[CheckedCheckpoint]
    lost: bool

    @property
    def sound(self) -> bool:
        """Nothing that was complete is damaged or lost."""
        return not self.lost and not any(checkpoint.faults for checkpoint in self.checkpoints)

    @property
    def resumes_from(self) -> CheckedCheckpoint | None:
        """What the run would go on from now."""
        whole = [checkpoint for checkpoint in self.checkpoints if checkpoint.complete and not checkpoint.faults]
        return whole[-1] if whole else None

    def as_json(self) -> dict[str, Any]:
        usable = self.resumes_from
        return {
            "url": self.url,
            "sound": self.sound,
            "resumes_from": usable.name if usable else None,
            "checkpoints": [dataclasses.asdict(checkpoint) for checkpoint in self.checkpoints],
        }

    def in_words(self) -> str:
        rows = []
        for checkpoint in self.checkpoints:
            verdict = "DAMAGED" if checkpoint.faults else "whole" if checkpoint.complete else "incomplete, ignored"
            rows.append([checkpoint.name, verdict, checkpoint.faults[0] if checkpoint.faults else ""])
            rows += [["", "", fault] for fault in checkpoint.faults[1:]]
        lines = table(rows) if rows else []
        if usable := self.resumes_from:
            lines.append(f"the run would go on from step {usable.step:,}")
        elif self.lost or any(checkpoint.faults for checkpoint in self.checkpoints):
            lines.append("no checkpoint is whole: the run cannot go on; restore one or start a new run")
        else:
            lines.append("no checkpoints: the run would begin anew")
        return "\n".join(lines)


def verify_run(url: str) -> RunReport:
    """Read every byte of every checkpoint of a run.

    Raises:
        ConfigError: no run there.
        StorageError: the storage does not answer; that says nothing about the checkpoints.
    """
    run = Store(url)
    read_run_config(run)
    found = describe(run)
    complete = set(complete_checkpoints(run))
    checked = []
    for checkpoint in with_progress(found, len(found), "checkpoints"):
        faults = _faults(run, checkpoint.name) if checkpoint.name in complete else []
        if faults is not None:
            checked.append(CheckedCheckpoint(checkpoint.name, checkpoint.step, checkpoint.name in complete, faults))
    return RunReport(run.url, checked, lost=not complete and has_saved(run))


def _faults(run: Store, name: str) -> list[str] | None:
    """None when the checkpoint was removed while it was read, as those of a run that goes on may be."""
    try:
        faults = verify(run.join(name))
    except MissingObjectError:
        faults = ["removed"]
    return faults if not faults or name in complete_checkpoints(run) else None


def prune_run(url: str, keep_last: int | None, *, dry_run: bool) -> list[str]:
    """Remove the checkpoints of a run that nothing keeps: too many, damaged, left by interrupted saves.

    Args:
        keep_last: instead of the run's own; those kept for ever and the best stay by the run's configuration.

    Returns:
        Their names.

    Raises:
        ConfigError: no run there, or nothing would be kept.
        HeldError: the run goes on.
        StorageError
    """
    if keep_last is not None and keep_last < 1:
        raise ConfigError("--keep-last", keep_last, "Keep one at least: without any the run would begin anew.")
    run = Store(url)
    retention = Retention.of_run(run, read_run_config(run))
    if keep_last is not None:
        retention = dataclasses.replace(retention, last=keep_last)
    if dry_run:
        return surplus(run, retention)
    with hold(run, "runs prune", stop_at_once):
        return prune(run, retention)

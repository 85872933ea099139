"""One run folder described: what was asked for, how far it is, its checkpoints, and what happened."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import yaml

from astroclip_dist.config import RunConfig
from astroclip_dist.runs.diary import Event, diary
from astroclip_dist.runs.summary import RunSummary, events_of, summarize
from astroclip_dist.runs.wording import ago, amount, clock, many, table
from astroclip_dist.store import MissingObjectError, Store
from astroclip_dist.train.checkpoint import StoredCheckpoint, describe
from astroclip_dist.train.run_folder import RUN_FILE, TRACKING_FILE, read_run_config


@dataclasses.dataclass(frozen=True)
class RunDescription:
    """All that ``runs show`` prints.

    Attributes:
        made_with: versions of the libraries, and the commit.
        mlflow: what ``tracking.json`` says; None before MLflow was first reached.
    """

    summary: RunSummary
    config: RunConfig
    made_with: dict[str, str]
    mlflow: dict[str, Any] | None
    checkpoints: list[StoredCheckpoint]
    events: list[Event]

    def as_json(self) -> dict[str, Any]:
        return {
            **self.summary.as_json(),
            "config": self.config.model_dump(mode="json"),
            "made_with": self.made_with,
            "mlflow": self.mlflow,
            "checkpoints": [dataclasses.asdict(checkpoint) for checkpoint in self.checkpoints],
            "events": self.events,
        }

    def in_words(self) -> str:
        blocks = [self._heading(), self._standing(), self._saves(), self._happened()]
        return "\n\n".join("\n".join(block) for block in blocks)

    def _heading(self) -> list[str]:
        config = self.config
        made_with = ", ".join(f"{name} {version[:12]}" for name, version in self.made_with.items())
        return [
            self.summary.url,
            f"  {config.objective.name}, {config.length}, {config.batch.global_size} samples a step, lr "
            f"{config.optimizer.lr:g}, seed {config.seed}",
            f"  {many(config.workers, 'worker')} ({config.launcher} launcher), {config.engine.name}, "
            f"{config.engine.precision}",
            f"  data {', '.join(config.data_urls)}",
            f"  made with {made_with}",
        ]

    def _standing(self) -> list[str]:
        summary = self.summary
        reached = f"step {summary.step:,}" if summary.step is not None else "no step"
        if summary.step is not None and summary.steps:
            reached += f" of {summary.steps:,} ({summary.step / summary.steps:.0%})"
        tracked = "not reached yet"
        if self.mlflow is not None:
            tracked = f"run {self.mlflow['run_id']} of experiment {self.mlflow['experiment']}"
        unsent = f"; {many(summary.unsent, 'batch')} of records unsent" if summary.unsent else ""
        return table(
            [
                ["state", summary.state + (f": {summary.why}" if summary.why else "")],
                ["reached", reached],
                ["held by", summary.holder or "nobody"],
                ["MLflow", tracked + unsent],
            ]
        )

    def _saves(self) -> list[str]:
        if not self.checkpoints:
            return ["no checkpoints"]
        return ["checkpoints", *(f"  {line}" for line in table([_checkpoint_row(one) for one in self.checkpoints]))]

    def _happened(self) -> list[str]:
        if not self.events:
            return ["nothing happened yet"]
        return ["what happened (UTC)", *(f"  {when}  {what}" for when, what in diary(self.events))]


def describe_run(url: str) -> RunDescription:
    """Read what a run folder says.

    Raises:
        ConfigError: no run there, or its configuration cannot be read.
        StorageError
    """
    run = Store(url)
    config = read_run_config(run)
    return RunDescription(
        summary=summarize(run),
        config=config,
        made_with=yaml.safe_load(run.read(RUN_FILE)).get("made_with", {}),
        mlflow=_mlflow(run),
        checkpoints=describe(run),
        events=events_of(run),
    )


def _checkpoint_row(checkpoint: StoredCheckpoint) -> list[str]:
    score = f"loss {checkpoint.score:.4g}" if checkpoint.score is not None else ""
    age = ""
    if checkpoint.saved_at:
        age = f"{clock(checkpoint.saved_at)} ({ago(checkpoint.saved_at)})"
    state = checkpoint.fault or "complete"
    return [checkpoint.name.rpartition("/")[2], amount(checkpoint.bytes), score, age, state]


def _mlflow(run: Store) -> dict[str, Any] | None:
    try:
        return json.loads(run.read(TRACKING_FILE))
    except MissingObjectError:
        return None

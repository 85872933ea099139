"""How far a run is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from astroclip_dist.data.ordering.order import Cursor
from astroclip_dist.train.health.spikes import LossHistory


@dataclass(frozen=True)
class Progress:
    """How far a run is: what a checkpoint's manifest says beside the tensors."""

    step: int = 0
    cursor: Cursor = field(default_factory=Cursor)
    skipped_steps: int = 0
    losses: LossHistory = field(default_factory=LossHistory)

    def about(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "cursor": {"epoch": self.cursor.epoch, "step": self.cursor.step},
            "skipped_steps": self.skipped_steps,
            "losses": self.losses.about(),
        }

    @classmethod
    def read(cls, manifest: dict[str, Any]) -> Progress:
        cursor, losses = Cursor(**manifest["cursor"]), LossHistory(**manifest["losses"])
        return cls(manifest["step"], cursor, manifest["skipped_steps"], losses)

"""How a dataset is divided when nobody says otherwise; apart from what writes one, so that the command starts fast."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from astroclip_dist.data.stored.manifest import Split

# Some 680 MB with images of 152 px: large enough for object storage, small enough to hold two windows in memory.
SAMPLES_PER_SHARD = 2000
SPLIT_FRACTIONS: dict[Split, float] = {"train": 0.8, "val": 0.1, "test": 0.1}

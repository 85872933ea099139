"""One micro-batch of self-distillation: crops, masks, and the crops that stochastic depth keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.config.objective import ImageDino
from astroclip_dist.data.augment import MultiCrop, multi_crop, plan_of
from astroclip_dist.data.augment.draws import to_device
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.masking.blocks import block_masks
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.objectives.dinov2.stochastic_depth import kept_crops


@dataclass(frozen=True)
class Crops:
    """Inputs of ``SelfDistillation`` for n samples, on the device; crops lie view after view.

    Attributes:
        samples: n.
        global_crops: (global views * n, bands, size, size), and local ones likewise.
        masks: (global views * n, patches) bool.
        masked: (m,) int64, the masked patches, counted through all global crops.
        weights: (m,) float32, each 1 / masked patches of its crop.
        global_kept, local_kept: see ``stochastic_depth``; None: all.
    """

    samples: int
    global_crops: Tensor
    local_crops: Tensor
    masks: Tensor
    masked: Tensor
    weights: Tensor
    global_kept: Tensor | None
    local_kept: Tensor | None

    def finite(self) -> Tensor:
        """(n,) bool: whether all pixels of all crops of a sample are finite."""
        groups = (self.global_crops, self.local_crops)
        crops = torch.cat([torch.isfinite(group).flatten(1).all(dim=1) for group in groups])
        return crops.view(-1, self.samples).all(dim=0)


class CropMaker:
    """Makes micro-batches from images. All chance is keyed by the run's seed and the samples' identities."""

    def __init__(self, config: ImageDino, seed: int, cohort: int) -> None:
        """``cohort``: of stochastic depth; a divisor of every micro-batch."""
        self._config, self._seed, self._cohort = config, seed, cohort
        self._plan, self._side = plan_of(config), config.image.crop // config.image.patch
        self._stretch = partial(stretch, how=config.image.stretch, zscore=config.image.zscore)
        self._memory = BatchMemory()

    def __call__(self, images: Tensor, ids: np.ndarray, micro_batch: int) -> list[Crops]:
        """
        Args:
            images: (n, bands, H, W), nanomaggies, on the device.
            ids: (n,) uint64, ``Batch.draw_ids``.
            micro_batch: samples in each, a divisor of n.

        Raises:
            DataError: images smaller than a crop, or of bands for which blur and noise are not known.
        """
        views = multi_crop(images, ids, stream_key("crops", self._seed), self._plan, self._stretch, self._memory)
        masking = self._config.masking
        masks = np.stack(
            [
                block_masks(
                    ids, stream_key("patches", self._seed, view), self._side, masking.probability, masking.ratio
                )
                for view in range(len(views.global_views))
            ]
        )
        rows = [slice(first, first + micro_batch) for first in range(0, len(ids), micro_batch)]
        return [self._part(views, masks, ids, part) for part in rows]

    def _part(self, views: MultiCrop, masks: np.ndarray, ids: np.ndarray, rows: slice) -> Crops:
        hidden, device = masks[:, rows].reshape(-1, masks.shape[2]), views.global_views[0].device
        counts = hidden.sum(axis=1)
        global_kept, local_kept = self._kept(ids[rows], device)
        return Crops(
            samples=len(ids[rows]),
            global_crops=torch.cat([view[rows] for view in views.global_views]),
            local_crops=torch.cat([view[rows] for view in views.local_views]),
            masks=to_device(hidden, device),
            masked=to_device(np.flatnonzero(hidden), device),
            weights=to_device(np.repeat(1 / np.maximum(counts, 1), counts).astype(np.float32), device),
            global_kept=global_kept,
            local_kept=local_kept,
        )

    def _kept(self, ids: np.ndarray, device: torch.device) -> Iterator[Tensor | None]:
        """For the global and for the local crops."""
        config = self._config
        for group, views in (("global", config.global_views), ("local", config.local_views)):
            key = stream_key(f"stochastic depth of {group} crops", self._seed)
            arguments = (ids, key, views.count, config.image.depth, self._cohort, config.drop_path)
            yield to_device(kept_crops(*arguments), device) if config.drop_path else None

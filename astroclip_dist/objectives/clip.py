"""CLIP alignment of images and spectra over the global batch (AstroCLIP section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.data.augment import augment
from astroclip_dist.data.augment.draws import to_device
from astroclip_dist.data.draws import stream_key
from astroclip_dist.data.preprocessing.images import stretch
from astroclip_dist.data.streaming.batch_memory import BatchMemory
from astroclip_dist.data.streaming.stream import Batch
from astroclip_dist.models.two_tower import TwoTower
from astroclip_dist.objectives.base import Objective, Setting
from astroclip_dist.objectives.inputs import spectrum_tokens
from astroclip_dist.parallel.contrastive import contrastive_loss
from astroclip_dist.parallel.engines import Engine


@dataclass(frozen=True)
class Pairs:
    """Inputs of the two-tower model: (n, bands, crop, crop) views, (n, tokens, slice_size + 2) spectra, (n,) keys."""

    images: Tensor
    spectra: Tensor
    keys: Tensor

    def split(self, size: int) -> list[Pairs]:
        parts = zip(self.images.split(size), self.spectra.split(size), self.keys.split(size), strict=True)
        return [Pairs(*part) for part in parts]


class ClipObjective(Objective):
    """Trains the two-tower model."""

    def __init__(self, setting: Setting, config: ClipAlignment) -> None:
        self.config, self._setting = config, setting
        self._image = setting.image_layout(config.image.crop)
        self._spectrum = setting.spectrum_layout(config.spectrum)
        self.members: Sequence[str] = ("image", "spectrum", *(["ivar"] if config.spectrum.ivar_aware else []))
        self._view = ViewRecipe(size=config.image.crop, **config.augmentation.model_dump())
        self._micro_batch, self._seed = setting.config.micro_batch, setting.config.seed
        self._memory = BatchMemory()

    def build(self) -> TwoTower:
        with torch.device("meta"):
            return TwoTower(self.config, self._image, self._spectrum)

    def prepare(self, batch: Batch) -> Pairs:
        device = self._setting.device
        members = {name: tensor.to(device, non_blocking=True) for name, tensor in batch.members.items()}
        views = augment(
            members["image"],
            batch.draw_ids,
            stream_key("image view", self._seed),
            self._view,
            partial(stretch, how=self.config.image.stretch, zscore=self.config.image.zscore),
            self._memory,
        )
        keys = batch.draw_ids.view(np.int64) ^ (stream_key("dropout", self._seed) >> 1)
        spectra = spectrum_tokens(members["spectrum"], self.config.spectrum, members.get("ivar"))
        return Pairs(views, spectra, to_device(keys, device))

    def finite(self, inputs: Pairs) -> Tensor:
        parts = (inputs.images, inputs.spectra)
        return torch.stack([torch.isfinite(part).flatten(1).all(dim=1) for part in parts]).all(dim=0)

    def accumulate(self, engine: Engine, inputs: Pairs, step: int) -> dict[str, Tensor | float]:
        chunks = inputs.split(self._micro_batch)
        if len(chunks) == 1:
            image, spectrum, scale = engine.forward(inputs.images, inputs.spectra, inputs.keys)
            loss = contrastive_loss(image, spectrum, scale)
            engine.backward(loss, last=True)
        else:
            loss, scale = self._accumulate_in_two_passes(engine, chunks)
        return {"loss": loss.detach(), "logit_scale": scale.detach().squeeze()}

    def _accumulate_in_two_passes(self, engine: Engine, chunks: list[Pairs]) -> tuple[Tensor, Tensor]:
        """The negatives are the whole global batch, though only one micro-batch's activations fit: embed all without
        gradients, take the loss's gradient with respect to the embeddings, then embed again, chunk by chunk, and
        backpropagate that gradient (Gao et al. 2021, "Scaling deep contrastive learning batch size"). Dropout is keyed
        by sample, so both passes see the same."""
        with torch.no_grad():
            embedded = [engine.forward(chunk.images, chunk.spectra, chunk.keys) for chunk in chunks]
        image = torch.cat([chunk[0] for chunk in embedded]).requires_grad_()
        spectrum = torch.cat([chunk[1] for chunk in embedded]).requires_grad_()
        scale = embedded[0][2].detach().clone().requires_grad_()
        loss = contrastive_loss(image, spectrum, scale)
        image_grad, spectrum_grad, scale_grad = torch.autograd.grad(loss, (image, spectrum, scale))
        parts = zip(image_grad.split(self._micro_batch), spectrum_grad.split(self._micro_batch), strict=True)
        for number, (chunk, (image_part, spectrum_part)) in enumerate(zip(chunks, parts, strict=True)):
            image, spectrum, scale = engine.forward(chunk.images, chunk.spectra, chunk.keys)
            surrogate = (image * image_part).sum() + (spectrum * spectrum_part).sum()
            surrogate = surrogate + (scale * scale_grad / len(chunks)).sum()
            engine.backward(surrogate, last=number == len(chunks) - 1)
        return loss, scale

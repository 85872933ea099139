"""The aligned model: an encoder and a head for images, an encoder and a head for spectra, and the logit scale."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config.objective import ClipAlignment
from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.models.attention_pool import AttentionPool
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.initial import Rule, constant
from astroclip_dist.models.spectrum_encoder import SpectrumTransformer


class TwoTower(nn.Module):
    """Embeds images and spectra of galaxies into one space."""

    def __init__(self, config: ClipAlignment, image: ImageLayout | None, spectrum: SpectrumLayout | None) -> None:
        """A modality without a layout gets no tower, so that images alone can be embedded without a spectrum's grid."""
        super().__init__()
        if image is not None:
            self.image_encoder = ImageTransformer(config.image, len(image.bands))
            self.image_head = AttentionPool(config.head, config.image.width)
        if spectrum is not None:
            self.spectrum_encoder = SpectrumTransformer(config.spectrum, spectrum.size)
            self.spectrum_head = AttentionPool(config.head, config.spectrum.width)
        # One element rather than none: FSDP shards parameters along their first dimension.
        self.log_logit_scale = nn.Parameter(torch.empty(1), requires_grad=config.learn_logit_scale)
        self._initial_scale = config.logit_scale
        self.freeze_backbones = config.freeze_backbones
        if config.freeze_backbones:
            for part in self.children():
                part.requires_grad_(isinstance(part, AttentionPool))

    def initial_values(self) -> dict[str, Rule]:
        return {"log_logit_scale": constant(math.log(self._initial_scale))}

    def forward(
        self, images: Tensor | None, spectra: Tensor | None, keys: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Embeddings of a batch; a modality that is not given is not computed.

        Args:
            images: (n, bands, crop, crop), stretched.
            spectra: (n, tokens, slice_size + 2).
            keys: (n,) int64, of the galaxies in their epoch, for dropout.

        Returns:
            (n, embedding) float32 unit vectors of images and of spectra, and the logit scale, (1,).
        """
        image = None if images is None else self._embed(self.image_encoder, self.image_head, images, keys)
        # Another key, so that the two heads do not drop the same units.
        other = None if keys is None else ~keys
        spectrum = None if spectra is None else self._embed(self.spectrum_encoder, self.spectrum_head, spectra, other)
        return image, spectrum, self.log_logit_scale.exp()

    def _embed(self, encoder: nn.Module, head: nn.Module, inputs: Tensor, keys: Tensor | None) -> Tensor:
        with torch.no_grad() if self.freeze_backbones else nullcontext():
            tokens = encoder(inputs)
        return F.normalize(head(tokens, keys).float(), dim=-1)

"""What a run minimises. One class an objective, told apart by ``name``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from astroclip_dist.config.augmentation import ImageAugmentation
from astroclip_dist.config.model import CrossAttentionHead, ImageEncoder, SpectrumEncoder
from astroclip_dist.config.strict import Section


class ClipAlignment(Section):
    """Symmetric contrastive alignment of images and spectra over the global batch (AstroCLIP section 3.3)."""

    name: Literal["clip"] = "clip"
    image: ImageEncoder = ImageEncoder()
    spectrum: SpectrumEncoder = SpectrumEncoder()
    head: CrossAttentionHead = CrossAttentionHead()
    logit_scale: float = Field(default=15.5, gt=0)
    learn_logit_scale: bool = False
    freeze_backbones: bool = False
    augmentation: ImageAugmentation = ImageAugmentation()


Objective = ClipAlignment

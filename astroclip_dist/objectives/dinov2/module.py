"""Student and teacher of self-distillation: an image encoder and prototype heads each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from astroclip_dist.config.objective import ImageDino
from astroclip_dist.models.image_encoder import ImageTransformer
from astroclip_dist.models.prototype_head import PrototypeHead
from astroclip_dist.models.transformer import Kept


class Answers(NamedTuple):
    """Logits over the prototypes, or targets for them.

    Attributes:
        classes: (views * n, K) of the class tokens of n samples' crops, view after view.
        patches: (m, K) of the masked patches of global crops.
    """

    classes: Tensor
    patches: Tensor


class StudentAnswers(NamedTuple):
    """The student's logits, as in ``Answers`` with global views first, and ``features``, the (views * n, width) class
    tokens before the head."""

    classes: Tensor
    patches: Tensor
    features: Tensor


class CropTransformer(ImageTransformer):
    """An image encoder that is called with all groups of crops at once: engines gather parameters when a module is
    called, not when one of its methods is."""

    def forward(  # type: ignore[override]
        self, groups: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, kept: Sequence[Kept] | None = None
    ) -> list[Tensor]:
        """As ``encode``."""
        return self.encode(groups, masks, kept)


class Distiller(nn.Module):
    """An encoder, a head for class tokens, and one for patches, which may be the same."""

    def __init__(self, config: ImageDino, bands: int) -> None:
        super().__init__()
        self.encoder = CropTransformer(config.image, bands, maskable=True)
        self.class_head = PrototypeHead(config.head, config.image.width)
        self.patch_head = PrototypeHead(config.head, config.image.width) if config.separate_heads else None

    def forward(
        self,
        groups: Sequence[Tensor],
        masked: Tensor,
        masks: Sequence[Tensor | None] | None = None,
        kept: Sequence[Kept] | None = None,
    ) -> StudentAnswers:
        """Answers for groups of crops, global ones first.

        Each head runs once, also if no patch is masked: its parameters get gradients on every rank, or on none.
        """
        tokens = self.encoder(groups, masks, kept)
        length = tokens[0].shape[1]
        patches = length - self.encoder.first_patch
        rows = masked // patches * length + self.encoder.first_patch + masked % patches
        classes = torch.cat([group[:, 0] for group in tokens])
        hidden = tokens[0].flatten(0, 1).index_select(0, rows)
        if self.patch_head is None:
            both = self.class_head(torch.cat([classes, hidden])).split([len(classes), len(hidden)])
            # Not views: in-place operations on those would escape the hooks of FSDP, which warns of them.
            of_classes, of_patches = (logits.clone() for logits in both)
        else:
            of_classes, of_patches = self.class_head(classes), self.patch_head(hidden)
        return StudentAnswers(of_classes, of_patches, classes)


class SelfDistillation(nn.Module):
    """The trained student, and the teacher, which is moved by ``Engine.average`` alone."""

    starts_as: ClassVar[dict[str, str]] = {"teacher": "student"}

    def __init__(self, config: ImageDino, bands: int) -> None:
        super().__init__()
        self.student = Distiller(config, bands)
        self.teacher = Distiller(config, bands).requires_grad_(False)

    def forward(
        self,
        global_crops: Tensor,
        masked: Tensor,
        local_crops: Tensor | None = None,
        masks: Tensor | None = None,
        global_kept: Tensor | None = None,
        local_kept: Tensor | None = None,
    ) -> Answers | StudentAnswers:
        """Both have one forward, because it is the whole module's that engines know: the teacher's answers to global
        crops that hide nothing, or, with local crops, the student's.

        Args:
            global_crops: (global views * n, bands, crop, crop), stretched, view after view.
            masked: (m,) int64, the patches to answer for, counted through all global crops.
            local_crops: (local views * n, bands, size, size).
            masks: (global views * n, patches) bool, True for those patches.
            global_kept, local_kept: (depth, 2, k) int64, the crops of a group for which the attention and the MLP of
                each block are computed (``stochastic_depth``); None: all.
        """
        if local_crops is None:
            classes, patches, _ = self.teacher([global_crops], masked)
            return Answers(classes, patches)
        kept = None
        if global_kept is not None and local_kept is not None:
            kept = [list(zip(*block, strict=True)) for block in zip(global_kept, local_kept, strict=True)]
        return self.student([global_crops, local_crops], masked, [masks, None], kept)

"""Self-distillation put together from well-known parts, crop by crop: the peer of the ``dinov2_step`` measure.

timm's vision transformer (with its own stochastic depth and layer scale), lightly's projection heads, DINO, iBOT and
KoLeo losses, torch's AdamW. One forward for each crop, as a first implementation would do, and the same arithmetic as
ours: the same crops and masks, the same prototypes, the same share of dropped branches, heads on masked patches alone.
"""

from __future__ import annotations

import warnings

import torch
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models.modules.heads import DINOv2ProjectionHead
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from astroclip_dist.config.objective import ImageDino
from astroclip_dist.config.run import Optimizer

_BANDS = 3


class MaskedVit(VisionTransformer):
    """timm's transformer with a token in the place of masked patches, which it lacks."""

    def __init__(self, config: ImageDino) -> None:
        size = config.image
        super().__init__(
            img_size=size.crop,
            patch_size=size.patch,
            in_chans=_BANDS,
            num_classes=0,
            embed_dim=size.width,
            depth=size.depth,
            num_heads=size.heads,
            mlp_ratio=size.mlp_ratio,
            init_values=size.layer_scale,
            drop_path_rate=config.drop_path,
            dynamic_img_size=True,
        )
        for block in self.blocks:  # timm lets the rate grow with depth; the recipe's is the same everywhere
            for path in (block.drop_path1, block.drop_path2):
                if hasattr(path, "drop_prob"):
                    path.drop_prob = config.drop_path
        self.mask_token = nn.Parameter(torch.zeros(size.width))

    def tokens(self, crop: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, 1 + patches, width), the class token first; ``mask``: (n, patches) bool."""
        patches = self.patch_embed(crop)  # (n, side, side, width)
        if mask is not None:
            patches = torch.where(mask.view(*patches.shape[:3], 1), self.mask_token, patches)
        return self.norm(self.blocks(self.norm_pre(self._pos_embed(patches))))


class Network(nn.Module):
    """Encoder and heads of student or teacher."""

    def __init__(self, config: ImageDino) -> None:
        super().__init__()
        self.encoder = MaskedVit(config)
        self.class_head, self.patch_head = self._head(config), self._head(config)

    @staticmethod
    def _head(config: ImageDino) -> nn.Module:
        sizes = config.head
        if sizes.layers != 3:
            raise ValueError("lightly's head has three layers")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # lightly's head uses torch's old weight norm
            head = DINOv2ProjectionHead(config.image.width, sizes.hidden, sizes.bottleneck, sizes.prototypes)
        head.last_layer.weight_g.requires_grad_(False)
        return head


class PerCropDino:
    """A training step on crops that are ready: forward, backward, clip, AdamW, teacher."""

    def __init__(self, config: ImageDino, optimizer: Optimizer) -> None:
        self._config, self._clip_norm = config, optimizer.clip_norm or torch.inf
        self._student = Network(config).train()
        self._teacher = Network(config).eval().requires_grad_(False)
        self._teacher.load_state_dict(self._student.state_dict())
        trained = [parameter for parameter in self._student.parameters() if parameter.requires_grad]
        self._trained = trained
        self._optimizer = torch.optim.AdamW(
            trained, lr=optimizer.lr, betas=optimizer.betas, weight_decay=optimizer.weight_decay
        )
        self._dino = DINOLoss(config.head.prototypes, student_temp=config.student_temperature)
        self._ibot = IBOTPatchLoss(config.head.prototypes, student_temp=config.student_temperature)
        self._koleo = KoLeoLoss()

    def step(self, global_crops: list[Tensor], local_crops: list[Tensor], masks: list[Tensor]) -> float:
        """One step.

        Args:
            global_crops, local_crops: (n, bands, size, size) each.
            masks: (n, patches) bool for each global crop.

        Returns:
            The loss.
        """
        config, temperature = self._config, self._config.teacher.temperature
        side = config.image.crop // config.image.patch
        mask = torch.cat(masks)
        with torch.no_grad():
            teacher = [self._teacher.encoder.tokens(crop) for crop in global_crops]
            teacher_classes = [self._teacher.class_head(tokens[:, 0]) for tokens in teacher]
            teacher_patches = self._teacher.patch_head(torch.cat([tokens[:, 1:] for tokens in teacher])[mask])
        student = [self._student.encoder.tokens(crop, hidden) for crop, hidden in zip(global_crops, masks, strict=True)]
        classes = [tokens[:, 0] for tokens in student]
        local = [self._student.encoder.tokens(crop)[:, 0] for crop in local_crops]
        student_classes = [self._student.class_head(tokens) for tokens in (*classes, *local)]
        student_patches = self._student.patch_head(torch.cat([tokens[:, 1:] for tokens in student])[mask])
        loss = config.dino_weight * self._dino(teacher_classes, student_classes, teacher_temp=temperature)
        loss = loss + config.ibot_weight * self._ibot(
            teacher_patches, student_patches, mask.view(-1, side, side), teacher_temp=temperature
        )
        loss = loss + config.koleo_weight * sum(self._koleo(tokens) for tokens in classes)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, self._clip_norm)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            pairs = zip(self._teacher.parameters(), self._student.parameters(), strict=True)
            for ours, theirs in pairs:
                ours.lerp_(theirs, 1 - config.teacher.momentum)
        return loss.item()

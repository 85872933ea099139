"""The image encoder: a vision transformer (Dosovitskiy et al. 2021) over crops of a galaxy image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config.model import ImageEncoder
from astroclip_dist.models.initial import Rule, constant, truncated_normal
from astroclip_dist.models.sequences import pack
from astroclip_dist.models.transformer import Block, Kept


class ImageTransformer(nn.Module):
    """Stretched crops to tokens: the class token first, then registers, then patches row by row.

    Position embedding and class token belong to every use of the encoder, alignment included. Crops may be smaller than
    ``config.crop``: positions are resampled.
    """

    linear_std = 0.02

    def __init__(self, config: ImageEncoder, bands: int, *, maskable: bool = False) -> None:
        """``maskable``: with a token that stands in for masked patches, which only pre-training needs."""
        super().__init__()
        width, side = config.width, config.crop // config.patch
        self.patch, self.side, self.registers = config.patch, side, config.registers
        self.embed = nn.Linear(bands * config.patch**2, width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.register_tokens = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        self.position = nn.Parameter(torch.empty(1, 1 + side**2, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width)) if maskable else None
        self.blocks = nn.ModuleList(Block(config, config.layer_scale) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def initial_values(self) -> dict[str, Rule]:
        drawn = truncated_normal(0.02)
        return {"class_token": drawn, "register_tokens": drawn, "position": drawn, "mask_token": constant(0.0)}

    @property
    def first_patch(self) -> int:
        """Where the patches begin among an image's tokens."""
        return 1 + self.registers

    def forward(self, crops: Tensor) -> Tensor:
        """(n, bands, crop, crop) to (n, first_patch + patches, width)."""
        return self.encode([crops])[0]

    def encode(
        self, groups: Sequence[Tensor], masks: Sequence[Tensor | None] | None = None, kept: Sequence[Kept] | None = None
    ) -> list[Tensor]:
        """Several groups of crops at once, each of its own size; every linear layer runs once for all of them.

        Args:
            groups: (n, bands, size, size) each; size is a multiple of the patch.
            masks: (n, patches) bool for each group, patches whose content is replaced by the mask token; None: none.
            kept: for each block, the sequences that its branches are computed for (see ``Block``).

        Returns:
            (n, first_patch + patches, width) for each group.
        """
        masks = masks or [None] * len(groups)
        tokens, packing = pack([self._embed(crops, mask) for crops, mask in zip(groups, masks, strict=True)])
        for number, block in enumerate(self.blocks):
            tokens = block(tokens, packing, None if kept is None else kept[number])
        return packing.split(self.norm(tokens))

    def _embed(self, crops: Tensor, mask: Tensor | None) -> Tensor:
        bands, patch = crops.shape[1], self.patch
        patches = crops.unfold(2, patch, patch).unfold(3, patch, patch)
        tokens = self.embed(patches.permute(0, 2, 3, 1, 4, 5).reshape(len(crops), -1, bands * patch**2))
        if mask is not None:
            assert self.mask_token is not None
            tokens = torch.where(mask[..., None], self.mask_token.to(tokens.dtype), tokens)
        first, positions = self._positions(crops.shape[-1] // patch)
        first = (self.class_token + first).to(tokens.dtype).expand(len(tokens), -1, -1)
        tokens = tokens + positions.to(tokens.dtype)
        if self.register_tokens is None:
            return torch.cat([first, tokens], dim=1)
        registers = self.register_tokens.to(tokens.dtype).expand(len(tokens), -1, -1)
        return torch.cat([first, registers, tokens], dim=1)

    def _positions(self, side: int) -> tuple[Tensor, Tensor]:
        """Position embeddings of the class token, and of side x side patches."""
        first, patches = self.position[:, :1], self.position[:, 1:]
        if side == self.side:
            return first, patches
        grid = patches.unflatten(1, (self.side, self.side)).permute(0, 3, 1, 2).float()
        grid = F.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
        return first, grid.permute(0, 2, 3, 1).flatten(1, 2)

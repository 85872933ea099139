"""The image encoder: a vision transformer (Dosovitskiy et al. 2021) over a crop of a galaxy image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from astroclip_dist.config.model import ImageEncoder
from astroclip_dist.models.transformer import Block, init_linear


class ImageTransformer(nn.Module):
    """(n, bands, crop, crop) stretched images to (n, 1 + patches, width) tokens, the class token first.

    Position embedding and class token belong to every use of the encoder, alignment included.
    """

    def __init__(self, config: ImageEncoder, bands: int) -> None:
        super().__init__()
        width, side = config.width, config.crop // config.patch
        self.patch = config.patch
        self.embed = nn.Linear(bands * config.patch**2, width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width))
        self.position = nn.Parameter(torch.empty(1, 1 + side**2, width))
        self.blocks = nn.ModuleList(Block(config, config.layer_scale) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        init_linear(self, std=0.02)
        nn.init.trunc_normal_(self.class_token, std=0.02)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        bands, patch = images.shape[1], self.patch
        patches = images.unfold(2, patch, patch).unfold(3, patch, patch)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(len(images), -1, bands * patch**2)
        tokens = self.embed(patches)
        tokens = torch.cat([self.class_token.expand(len(tokens), -1, -1).to(tokens.dtype), tokens], dim=1)
        tokens = tokens + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

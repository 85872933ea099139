"""The spectrum encoder: a transformer over overlapping slices of the spectrum (SpecFormer, AstroCLIP section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from astroclip_dist.config.model import SpectrumEncoder
from astroclip_dist.data.spectra import num_tokens
from astroclip_dist.models.transformer import Block, init_linear


class SpectrumTransformer(nn.Module):
    """(n, tokens, slice_size + 2) from ``data.spectra.slice_spectra`` to (n, tokens, width)."""

    def __init__(self, config: SpectrumEncoder, size: int) -> None:
        super().__init__()
        width = config.width
        self.embed = nn.Linear(config.slice_size + 2, width)
        self.position = nn.Parameter(torch.empty(1, num_tokens(size, config.slice_size, config.slice_stride), width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        # Depth-scaled, as published: residual branches of deeper encoders start smaller.
        init_linear(self, std=(2 * width * config.depth) ** -0.5)
        nn.init.trunc_normal_(self.position, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.embed(tokens) + self.position
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

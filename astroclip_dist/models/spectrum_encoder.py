"""The spectrum encoder: a transformer over overlapping slices of the spectrum (SpecFormer, AstroCLIP section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from astroclip_dist.config.model import SpectrumEncoder
from astroclip_dist.data.preprocessing.spectra import num_tokens
from astroclip_dist.models.initial import Rule, truncated_normal
from astroclip_dist.models.sequences import pack
from astroclip_dist.models.transformer import Block


class SpectrumTransformer(nn.Module):
    """(n, tokens, slice_size + 2) from ``data.preprocessing.spectra.slice_spectra`` to (n, tokens, width); with
    ``class_token`` one token more, in front."""

    def __init__(self, config: SpectrumEncoder, size: int) -> None:
        super().__init__()
        width, tokens = config.width, num_tokens(size, config.slice_size, config.slice_stride)
        # Depth-scaled, as published: residual branches of deeper encoders start smaller.
        self.linear_std = (2 * width * config.depth) ** -0.5
        self.embed = nn.Linear(config.slice_size + 2, width)
        self.class_token = nn.Parameter(torch.empty(1, 1, width)) if config.class_token else None
        self.position = nn.Parameter(torch.empty(1, tokens + config.class_token, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def initial_values(self) -> dict[str, Rule]:
        return {"class_token": truncated_normal(0.02), "position": truncated_normal(0.02)}

    @property
    def first_slice(self) -> int:
        """Where the tokens of ``slice_spectra`` begin among a spectrum's tokens."""
        return int(self.class_token is not None)

    def forward(self, slices: Tensor) -> Tensor:
        tokens = self.embed(slices)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
        packed, packing = pack([tokens + self.position.to(tokens.dtype)])
        for block in self.blocks:
            packed = block(packed, packing)
        return packing.split(self.norm(packed))[0]

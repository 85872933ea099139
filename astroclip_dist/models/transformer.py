"""Pre-norm transformer blocks that both encoders share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config.model import TransformerSize


class SelfAttention(nn.Module):
    """Multi-head self-attention, (n, tokens, width) to the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query, key, value = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between; optional dropout after the GELU."""

    def __init__(self, width: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width))


class LayerScale(nn.Module):
    """A learned factor a channel (Touvron et al. 2021), small at first so that deep networks start near identity."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.factor = nn.Parameter(torch.full((width,), initial))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens * self.factor


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after."""

    def __init__(self, size: TransformerSize, layer_scale: float | None = None) -> None:
        super().__init__()
        width = size.width

        def scale() -> nn.Module:
            return nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, size.heads)
        self.attention_scale = scale()
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * size.mlp_ratio))
        self.mlp_scale = scale()

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attention_scale(self.attention(self.attention_norm(tokens)))
        return tokens + self.mlp_scale(self.mlp(self.mlp_norm(tokens)))


def init_linear(module: nn.Module, std: float) -> None:
    """Truncated-normal weights (cut at two sigma) and zero biases for every linear layer below ``module``."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

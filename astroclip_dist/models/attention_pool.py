"""Cross-attention head: the tokens of one encoder to one embedding in the shared space (AstroCLIP section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from astroclip_dist.config.model import CrossAttentionHead
from astroclip_dist.models.transformer import Mlp, init_linear


class AttentionPool(nn.Module):
    """A learned query attends to (n, tokens, width); MLP with residual; (n, embedding) out, not normalised."""

    def __init__(self, config: CrossAttentionHead, width: int) -> None:
        super().__init__()
        embedding = config.embedding
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Parameter(torch.empty(1, 1, embedding))
        self.project_query = nn.Linear(embedding, embedding)
        self.project_tokens = nn.Linear(width, 2 * embedding)
        self.out = nn.Linear(embedding, embedding)
        self.norm = nn.LayerNorm(embedding)
        self.mlp = Mlp(embedding, round(embedding * config.mlp_ratio), config.dropout)
        init_linear(self, std=0.02)
        nn.init.trunc_normal_(self.query, std=1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.project_query(self.query).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.project_tokens(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        pooled = F.scaled_dot_product_attention(
            query.expand(len(tokens), -1, -1, -1).to(key.dtype), key, value, dropout_p=dropout
        )
        pooled = self.norm(self.out(pooled.transpose(1, 2).flatten(-2).squeeze(1)))
        return pooled + self.mlp(pooled)

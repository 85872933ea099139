"""Cross-attention head: the tokens of one encoder to one embedding in the shared space (AstroCLIP section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from astroclip_dist.config.model import CrossAttentionHead
from astroclip_dist.models.initial import Rule, truncated_normal
from astroclip_dist.models.keyed_dropout import keyed_dropout

# Which of a head's dropout masks is for what.
_OF_WEIGHTS, _OF_MLP = 1, 2


class AttentionPool(nn.Module):
    """A learned query attends to (n, tokens, width); MLP with residual; (n, embedding) out, not normalised."""

    linear_std = 0.02

    def __init__(self, config: CrossAttentionHead, width: int) -> None:
        super().__init__()
        embedding, hidden = config.embedding, round(config.embedding * config.mlp_ratio)
        self.heads, self.dropout = config.heads, config.dropout
        self.query = nn.Parameter(torch.empty(1, 1, embedding))
        self.project_query = nn.Linear(embedding, embedding)
        self.project_tokens = nn.Linear(width, 2 * embedding)
        self.out = nn.Linear(embedding, embedding)
        self.norm = nn.LayerNorm(embedding)
        self.expand = nn.Linear(embedding, hidden)
        self.contract = nn.Linear(hidden, embedding)

    def initial_values(self) -> dict[str, Rule]:
        return {"query": truncated_normal(1.0)}

    def forward(self, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
        """``keys``: (n,) int64, of the samples in their epoch, for dropout; None: no dropout."""
        return self.attend(tokens, keys)[0]

    def attend(self, tokens: Tensor, keys: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The embedding, and the (n, heads, tokens) weights that made it, each head's summing to 1."""
        query = self.project_query(self.query).view(self.heads, 1, -1)
        key, value = self.project_tokens(tokens).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (key @ query.to(key.dtype).transpose(1, 2)).squeeze(-1) * query.shape[-1] ** -0.5
        weights = weights.float().softmax(dim=-1).to(value.dtype)
        kept = self._drop(weights, keys, _OF_WEIGHTS)
        pooled = (kept.unsqueeze(2) @ value).flatten(1)
        pooled = self.norm(self.out(pooled))
        hidden = self._drop(nn.functional.gelu(self.expand(pooled)), keys, _OF_MLP)
        return pooled + self.contract(hidden), weights

    def _drop(self, values: Tensor, keys: Tensor | None, purpose: int) -> Tensor:
        if keys is None or not self.dropout or not self.training:
            return values
        return keyed_dropout(values, self.dropout, keys, purpose)

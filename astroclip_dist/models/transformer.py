"""Pre-norm transformer blocks that both encoders share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts, noop_context_fn

from astroclip_dist.config.model import TransformerSize
from astroclip_dist.models.initial import Rule, constant
from astroclip_dist.models.sequences import Packing

Recompute = Literal["none", "selective", "full"]
# Which sequences a residual branch is computed for: for each branch (attention, MLP), for each group of the packing,
# (k,) int64. None: all.
Kept = Sequence[Sequence[Tensor]]


class ScaledLinear(nn.Linear):
    """A linear layer whose outputs are multiplied by a learned factor a channel, small at first, so that deep networks
    start near identity (layer scale, Touvron et al. 2021).

    The factors multiply the weights, of which there are far fewer than outputs: the same numbers, without two more
    passes over the tokens and without another activation to keep.
    """

    def __init__(self, inputs: int, outputs: int, initial: float) -> None:
        super().__init__(inputs, outputs)
        self._initial = initial
        self.scale = nn.Parameter(torch.empty(outputs))

    def initial_values(self) -> dict[str, Rule]:
        return {"scale": constant(self._initial)}

    def forward(self, rows: Tensor) -> Tensor:
        return F.linear(rows, self.weight * self.scale[:, None], self.bias * self.scale)


def _last_linear(inputs: int, outputs: int, layer_scale: float | None) -> nn.Linear:
    return nn.Linear(inputs, outputs) if layer_scale is None else ScaledLinear(inputs, outputs, layer_scale)


class SelfAttention(nn.Module):
    """Multi-head self-attention within each sequence of packed tokens, (rows, width) to the same."""

    def __init__(self, width: int, heads: int, layer_scale: float | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = _last_linear(width, width, layer_scale)

    def forward(self, tokens: Tensor, packing: Packing) -> Tensor:
        mixed = []
        for group in packing.split(self.qkv(tokens)):
            query, key, value = group.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            attended = F.scaled_dot_product_attention(query, key, value)
            mixed.append(attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return self.out(mixed[0] if len(mixed) == 1 else torch.cat(mixed))

    @torch.no_grad()
    def weights(self, tokens: Tensor) -> Tensor:
        """How much each token of (n, tokens, width) attends to each other: (n, heads, tokens, tokens)."""
        query, key, _ = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)


class Mlp(nn.Sequential):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int, layer_scale: float | None = None) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU(), _last_linear(hidden, width, layer_scale))


class Block(nn.Module):
    """Attention and MLP, each normalised before and added after.

    Attributes:
        recompute: which activations are computed again in backward instead of kept: ``full`` keeps the block's input
            alone, ``selective`` also the results of matrix products and attention.
    """

    def __init__(self, size: TransformerSize, layer_scale: float | None = None) -> None:
        super().__init__()
        width = size.width
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.attention = SelfAttention(width, size.heads, layer_scale)
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, round(width * size.mlp_ratio), layer_scale)
        self.recompute: Recompute = "none"

    def forward(self, tokens: Tensor, packing: Packing, kept: Kept | None = None) -> Tensor:
        """(rows, width) to the same; with ``kept``, branches are added only to those sequences, scaled up so that the
        expectation stays (stochastic depth that saves the work, Oquab et al. 2023, section 5)."""
        if self.recompute == "none" or not torch.is_grad_enabled():
            return self._compute(tokens, packing, kept)
        return checkpoint(
            self._compute,
            tokens,
            packing,
            kept,
            use_reentrant=False,
            # Nothing in a block draws random numbers, so there is no generator state to keep.
            preserve_rng_state=False,
            context_fn=_keep_products if self.recompute == "selective" else noop_context_fn,
        )

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Let torch.compile make the block's kernels: of what it computes, inside of the hooks that engines put around
        it (FSDP's break a graph that holds them, and then nothing is compiled) and of recomputation.

        Names of parameters stay. One graph serves all blocks whose inputs are shaped alike.
        """
        # Whole or an error: what cannot be compiled must not run uncompiled in silence.
        self._compute = torch.compile(self._compute, fullgraph=True, dynamic=False)  # type: ignore[method-assign]

    def _compute(self, tokens: Tensor, packing: Packing, kept: Kept | None) -> Tensor:
        def attend(rows: Tensor, packing: Packing) -> Tensor:
            return self.attention(self.attention_norm(rows), packing)

        def mix(rows: Tensor, packing: Packing) -> Tensor:
            return self.mlp(self.mlp_norm(rows))

        attention_kept, mlp_kept = kept or (None, None)
        tokens = _add_branch(tokens, packing, attend, attention_kept)
        return _add_branch(tokens, packing, mix, mlp_kept)


def _add_branch(
    tokens: Tensor, packing: Packing, branch: Callable[[Tensor, Packing], Tensor], kept: Sequence[Tensor] | None
) -> Tensor:
    if kept is None:
        return tokens + branch(tokens, packing)
    subset, rows = packing.subset(kept)
    added = branch(tokens.index_select(0, rows), subset).to(tokens.dtype)
    parts = zip(rows.split(subset.rows), added.split(subset.rows), packing.groups, subset.groups, strict=True)
    tokens = tokens.clone()
    for where, part, (count, _), (chosen, _) in parts:
        tokens.index_add_(0, where, part, alpha=count / chosen)
    return tokens


def _keep_products() -> Any:
    kept = {
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten._scaled_dot_product_flash_attention.default,
        torch.ops.aten._scaled_dot_product_efficient_attention.default,
        torch.ops.aten._scaled_dot_product_cudnn_attention.default,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    }

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if operation in kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)

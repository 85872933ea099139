"""Symmetric InfoNCE over the global batch, exact across ranks, without ever holding the B x B logits.

With X, Y the (B, D) unit embeddings of all ranks, s the logit scale and S = s X Yᵀ, the loss is

    L = 1 / 2B  Σ_i [lse_j S_ij - S_ii]  +  1 / 2B  Σ_j [lse_i S_ij - S_jj].

Each rank holds n rows of X and of Y. Forward: gather X and Y once; sweep tiles of S to get the log-sum-exp of
its n rows and n columns. Backward: with all 2B log-sum-exps known everywhere (gathered: 2B numbers),

    dL/dS_ij = (exp(S_ij - rows_i) + exp(S_ij - columns_j) - 2 δ_ij) / 2B

can be recomputed tile by tile for its own rows and its own columns, so each rank gets the complete gradient of its own
embeddings, and no gradient travels at all. Memory: two tiles of logits, instead of B x B. See
docs/contrastive-loss.md; the loss is that of CLIP (Radford et al. 2021, section 2.3) and AstroCLIP equation 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Rows and columns, 2 MB of float32: small beside any batch of embeddings, large enough for fast matrix products.
TILE = (512, 1024)


def contrastive_loss(
    images: Tensor,
    spectra: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    tile: tuple[int, int] = TILE,
) -> Tensor:
    """The loss of the global batch.

    Args:
        images, spectra: (n, D) unit vectors of this rank's pairs, float32 or float64; n is the same on all ranks.
        logit_scale: s, one element.
        group: the ranks that share the batch (default: all, or this process alone where there is no group).
        tile: rows and columns of logits held at once.

    Returns:
        This rank's part of the loss, such that the mean over ranks is L, and that gradients averaged over ranks (as
        DDP, FSDP and ZeRO do) are the gradients of L.
    """
    return _GlobalContrastive.apply(images, spectra, logit_scale, group, tile)


class _GlobalContrastive(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: Tensor,
        spectra: Tensor,
        logit_scale: Tensor,
        group: dist.ProcessGroup | None,
        tile: tuple[int, int],
    ) -> Tensor:
        images, spectra, scale = images.detach(), spectra.detach(), logit_scale.detach().to(images.dtype)
        all_images, all_spectra = _gather(images, group), _gather(spectra, group)
        rows = _log_sum_exp(images, all_spectra, scale, tile)
        columns = _log_sum_exp(spectra, all_images, scale, tile)
        matched = scale * (images * spectra).sum(dim=1)
        ctx.save_for_backward(images, spectra, scale, all_images, all_spectra, rows, columns)
        ctx.group, ctx.tile, ctx.scale_dtype = group, tile, logit_scale.dtype
        return (rows + columns - 2 * matched).sum() / (2 * len(images))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        images, spectra, scale, all_images, all_spectra, rows, columns = ctx.saved_tensors
        all_rows, all_columns = _gather(torch.stack([rows, columns], dim=1), ctx.group).unbind(dim=1)
        first = _rank(ctx.group) * len(images)
        # The mean over ranks divides by W: rank-local sums are scaled by W / 2B = 1 / 2n.
        factor = grad_outputs[0] / (2 * len(images))
        image_grad = _gradient(images, all_spectra, scale, rows, all_columns, first, ctx.tile)
        spectrum_grad = _gradient(spectra, all_images, scale, columns, all_rows, first, ctx.tile)
        # Σ_ij G_ij x_i · y_j over this rank's rows.
        scale_grad = torch.dot(image_grad.flatten(), images.flatten())
        return (
            image_grad.mul_(factor * scale),
            spectrum_grad.mul_(factor * scale),
            (scale_grad * factor).to(ctx.scale_dtype).reshape(scale.shape),
            None,
            None,
        )


def _log_sum_exp(mine: Tensor, others: Tensor, scale: Tensor, tile: tuple[int, int]) -> Tensor:
    """(n,) log Σ_j exp(s mine_i · others_j)."""
    totals = []
    for rows in mine.split(tile[0]):
        total = rows.new_full((len(rows),), -torch.inf)
        for columns in others.split(tile[1]):
            total = torch.logaddexp(total, torch.logsumexp((rows @ columns.T).mul_(scale), dim=1))
        totals.append(total)
    return torch.cat(totals)


def _gradient(
    mine: Tensor,
    others: Tensor,
    scale: Tensor,
    my_lse: Tensor,
    other_lse: Tensor,
    first: int,
    tile: tuple[int, int],
) -> Tensor:
    """(n, D) Σ_j G_ij others_j, with G = 2B dL/dS.

    Args:
        first: which of the others is the match of mine's first row.
    """
    height, width = tile
    gradient = torch.zeros_like(mine)
    bands = zip(mine.split(height), my_lse.split(height), gradient.split(height), strict=True)
    for number, (rows, rows_lse, rows_gradient) in enumerate(bands):
        diagonal = first + number * height
        for columns, columns_lse in zip(others.split(width), other_lse.split(width), strict=True):
            # In one expression, so that a tile's memory is free before the next one's is taken.
            rows_gradient.addmm_(_weights(rows, columns, scale, rows_lse, columns_lse, diagonal), columns)
            diagonal -= width
    return gradient


def _weights(
    rows: Tensor, columns: Tensor, scale: Tensor, rows_lse: Tensor, columns_lse: Tensor, diagonal: int
) -> Tensor:
    """One tile of G, with its logits recomputed; row i matches column i + diagonal, if the tile has that."""
    logits = (rows @ columns.T).mul_(scale)
    by_column = (logits - columns_lse).exp_()
    weights = logits.sub_(rows_lse[:, None]).exp_().add_(by_column)
    weights.diagonal(diagonal).sub_(2)
    return weights


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _gather(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in the order of ranks."""
    world_size = dist.get_world_size(group) if dist.is_initialized() else 1
    if world_size == 1:
        return mine
    everyone = mine.new_empty(world_size * len(mine), *mine.shape[1:])
    dist.all_gather_single(everyone, mine.contiguous(), group=group)
    return everyone

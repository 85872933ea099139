"""Symmetric InfoNCE over the global batch, exact across ranks, without ever holding the B x B logits.

With X, Y the (B, D) unit embeddings of all ranks, s the logit scale and S = s X Yᵀ, the loss is

    L = 1 / 2B  Σ_i [lse_j S_ij - S_ii]  +  1 / 2B  Σ_j [lse_i S_ij - S_jj].

Each rank holds n rows of X and of Y, and owns n rows of S, so that every logit belongs to one rank. Forward: gather Y;
sweep tiles of the rank's rows of S, from each of which come its share of the rows' and of the columns' log-sum-exps;
combine the columns' over ranks. Backward: with the log-sum-exps,

    dL/dS_ij = (exp(S_ij - rows_i) + exp(S_ij - columns_j) - 2 δ_ij) / 2B

is recomputed tile by tile, and each tile serves both gradients: the rank's own of X, complete, and its share of all of
Y's, which a reduce-scatter sums up. Four matrix products of n x B x D, where both orientations apart, as a
cross-entropy each way has them, need six; and one modality travels instead of two. See docs/contrastive-loss.md; the
loss is that of CLIP (Radford et al. 2021, section 2.3) and AstroCLIP equation 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Rows and columns of logits held at once. On a CPU 1 MB of float32, which stays in a core's cache between products
# and exponentials; elsewhere 64 MB, so that a product takes far longer than its launch.
CPU_TILE, DEVICE_TILE = (512, 512), (2048, 8192)


def contrastive_loss(
    images: Tensor,
    spectra: Tensor,
    logit_scale: Tensor,
    group: dist.ProcessGroup | None = None,
    tile: tuple[int, int] | None = None,
) -> Tensor:
    """The loss of the global batch.

    Args:
        images, spectra: (n, D) unit vectors of this rank's pairs, float32 or float64; n is the same on all ranks.
        logit_scale: s, one element.
        group: the ranks that share the batch (default: all, or this process alone where there is no group).
        tile: rows and columns of logits held at once (default: what suits the device).

    Returns:
        This rank's part of the loss, such that the mean over ranks is L, and that gradients averaged over ranks (as
        DDP, FSDP and ZeRO do) are the gradients of L.

    Raises:
        ValueError: embeddings that are no pairs, of a precision too low for the logits, or a scale of several elements.
    """
    if images.ndim != 2 or images.shape != spectra.shape or len(images) == 0:
        raise ValueError(
            f"images {tuple(images.shape)} and spectra {tuple(spectra.shape)}: the loss needs (n, D) embeddings of the "
            "same n > 0 pairs"
        )
    if images.dtype not in (torch.float32, torch.float64) or images.dtype != spectra.dtype:
        raise ValueError(
            f"images are {images.dtype}, spectra {spectra.dtype}: the loss is exact for float32 or float64 alone, "
            "the same for both; convert the embeddings before"
        )
    if logit_scale.numel() != 1:
        raise ValueError(f"the logit scale has shape {tuple(logit_scale.shape)}: it must be one number")
    if tile is None:
        tile = CPU_TILE if images.device.type == "cpu" else DEVICE_TILE
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
        all_spectra = _gather(spectra, group)
        rows, columns = _log_sum_exps(images * scale, all_spectra, tile)
        columns = _log_sum_exp_over_ranks(columns, group)
        mine = _my_part(columns, len(images), group)
        matched = scale * (images * spectra).sum(dim=1)
        ctx.save_for_backward(images, scale, all_spectra, rows, columns)
        ctx.group, ctx.tile, ctx.scale_dtype = group, tile, logit_scale.dtype
        return (rows + mine - 2 * matched).sum() / (2 * len(images))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        images, scale, all_spectra, rows, columns = ctx.saved_tensors
        first = _rank(ctx.group) * len(images)
        image_grad, all_spectrum_grads = _gradients(images * scale, all_spectra, rows, columns, first, ctx.tile)
        spectrum_grad = _reduce_scatter(all_spectrum_grads, ctx.group)
        # Σ_ij G_ij x_i · y_j over this rank's rows.
        scale_grad = torch.dot(image_grad.flatten(), images.flatten())
        # The mean over ranks divides by W: rank-local sums are scaled by W / 2B = 1 / 2n.
        factor = grad_outputs[0] / (2 * len(images))
        return (
            image_grad.mul_(factor * scale),
            spectrum_grad.mul_(factor),
            (scale_grad * factor).to(ctx.scale_dtype).reshape(scale.shape),
            None,
            None,
        )


def _log_sum_exps(scaled: Tensor, others: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(n,) and (B,) log-sum-exps along the rows and along the columns of the (n, B) logits scaled @ othersᵀ."""
    height, width = tile
    rows, columns = scaled.new_full((len(scaled),), -torch.inf), others.new_full((len(others),), -torch.inf)
    for row_embeddings, row_totals in zip(scaled.split(height), rows.split(height), strict=True):
        for column_embeddings, column_totals in zip(others.split(width), columns.split(width), strict=True):
            logits = row_embeddings @ column_embeddings.T
            torch.logaddexp(row_totals, torch.logsumexp(logits, dim=1), out=row_totals)
            torch.logaddexp(column_totals, torch.logsumexp(logits, dim=0), out=column_totals)
            del logits  # its memory is free before the next tile's is taken
    return rows, columns


def _gradients(
    scaled: Tensor, others: Tensor, row_lse: Tensor, column_lse: Tensor, first: int, tile: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(n, D) G @ others and (B, D) Gᵀ @ scaled, with G = 2B dL/dS of the (n, B) logits S = scaled @ othersᵀ.

    Args:
        first: the column that matches the first row.
    """
    height, width = tile
    row_grads, column_grads = torch.zeros_like(scaled), torch.zeros_like(others)
    bands = zip(scaled.split(height), row_lse.split(height), row_grads.split(height), strict=True)
    for number, (row_embeddings, row_totals, row_grad) in enumerate(bands):
        diagonal = first + number * height
        stacks = zip(others.split(width), column_lse.split(width), column_grads.split(width), strict=True)
        for column_embeddings, column_totals, column_grad in stacks:
            weights = _weights(row_embeddings, column_embeddings, row_totals, column_totals, diagonal)
            row_grad.addmm_(weights, column_embeddings)
            column_grad.addmm_(weights.T, row_embeddings)
            del weights  # as above
            diagonal -= width
    return row_grads, column_grads


def _weights(scaled: Tensor, others: Tensor, row_lse: Tensor, column_lse: Tensor, diagonal: int) -> Tensor:
    """One tile of G, with its logits recomputed; row i matches column i + diagonal, if the tile has that."""
    logits = scaled @ others.T
    by_column = (logits - column_lse).exp_()
    weights = logits.sub_(row_lse[:, None]).exp_().add_(by_column)
    weights.diagonal(diagonal).sub_(2)
    return weights


def _world_size(group: dist.ProcessGroup | None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def _rank(group: dist.ProcessGroup | None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def _my_part(everyone: Tensor, n: int, group: dist.ProcessGroup | None) -> Tensor:
    return everyone.narrow(0, _rank(group) * n, n)


def _gather(mine: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of all ranks, in the order of ranks."""
    world_size = _world_size(group)
    if world_size == 1:
        return mine
    everyone = mine.new_empty(world_size * len(mine), *mine.shape[1:])
    dist.all_gather_single(everyone, mine.contiguous(), group=group)
    return everyone


def _reduce_scatter(everyone: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """This rank's rows of the sum over ranks."""
    world_size = _world_size(group)
    if world_size == 1:
        return everyone
    mine = everyone.new_empty(len(everyone) // world_size, *everyone.shape[1:])
    dist.reduce_scatter_single(mine, everyone, group=group)
    return mine


def _log_sum_exp_over_ranks(totals: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The log of the sum over ranks of exp(totals)."""
    if _world_size(group) == 1:
        return totals
    largest = totals.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
    shares = (totals - largest).exp_()
    dist.all_reduce(shares, group=group)
    return shares.log_().add_(largest)

"""The contrastive loss across ranks against one process that holds all pairs and the whole matrix of logits."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.parallel.contrastive import CPU_TILE, contrastive_loss
from tests.rank_pool import RankPool

PAIRS, WIDTH = 24, 7


def parameters(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of all pairs, and the shared linear maps and logit scale whose gradients are compared."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = normal(2, WIDTH, WIDTH).requires_grad_()
    return normal(PAIRS, WIDTH), normal(PAIRS, WIDTH), weights, torch.tensor([7.5], dtype=dtype, requires_grad=True)


def oracle(dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
    """CLIP's loss as its paper writes it, in one process."""
    images, spectra, weights, scale = parameters(dtype)
    logits = scale * F.normalize(images @ weights[0], dim=1) @ F.normalize(spectra @ weights[1], dim=1).T
    target = torch.arange(PAIRS)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()
    return loss.item(), weights.grad, scale.grad


def on_rank(dtype: torch.dtype, tile: tuple[int, int], cut_gradient: bool = False) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients averaged over ranks, as a data-parallel engine averages them."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    images, spectra, weights, scale = parameters(dtype)
    mine = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    image = F.normalize(images[mine] @ weights[0], dim=1)
    spectrum = F.normalize(spectra[mine] @ weights[1], dim=1)
    if cut_gradient:
        loss = without_gradient_through_the_gather(image, spectrum, scale)
    else:
        loss = contrastive_loss(image, spectrum, scale, tile=tile)
    loss.backward()
    value = loss.detach().clone()
    for tensor in (value, weights.grad, scale.grad):
        dist.all_reduce(tensor)
        tensor /= world_size
    return value.item(), weights.grad, scale.grad


def without_gradient_through_the_gather(image: Tensor, spectrum: Tensor, scale: Tensor) -> Tensor:
    """What AstroCLIP-like code often does wrong: other ranks' embeddings as constants."""
    world_size, rank, n = dist.get_world_size(), dist.get_rank(), len(image)
    others = [[torch.empty_like(part) for _ in range(world_size)] for part in (image, spectrum)]
    for gathered, part in zip(others, (image, spectrum), strict=True):
        dist.all_gather(gathered, part.detach().contiguous())
        gathered[rank] = part
    target = torch.arange(rank * n, (rank + 1) * n)
    by_image = F.cross_entropy(scale * image @ torch.cat(others[1]).T, target)
    by_spectrum = F.cross_entropy(scale * spectrum @ torch.cat(others[0]).T, target)
    return (by_image + by_spectrum) / 2


@pytest.mark.parametrize("tile", [(1, 1), (5, 3), (4, 24), CPU_TILE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_one_process(dtype: torch.dtype, tolerance: float, tile: tuple[int, int]) -> None:
    images, spectra, weights, scale = parameters(dtype)
    image, spectrum = F.normalize(images @ weights[0], dim=1), F.normalize(spectra @ weights[1], dim=1)
    loss = contrastive_loss(image, spectrum, scale, tile=tile)
    loss.backward()
    compare((loss.item(), weights.grad, scale.grad), oracle(dtype), tolerance)


@pytest.mark.parametrize("tile", [(5, 3), CPU_TILE])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("pool", ["two_ranks", "four_ranks"])
def test_across_ranks(
    pool: str, dtype: torch.dtype, tolerance: float, tile: tuple[int, int], request: pytest.FixtureRequest
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    for result in ranks.run(on_rank, dtype, tile):
        compare(result, oracle(dtype), tolerance)


def test_the_comparison_notices_a_gather_without_gradient(two_ranks: RankPool) -> None:
    value, weights_grad, _ = two_ranks.run(on_rank, torch.float64, CPU_TILE, True)[0]
    expected = oracle(torch.float64)
    assert value == pytest.approx(expected[0], abs=1e-12)
    assert (weights_grad - expected[1]).abs().max() > 1e-3


def compare(found: tuple[float, Tensor, Tensor], expected: tuple[float, Tensor, Tensor], tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=tolerance)
    torch.testing.assert_close(found[2], expected[2], rtol=0, atol=tolerance)

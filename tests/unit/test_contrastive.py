"""The contrastive loss across ranks against one process that holds all pairs and the whole matrix of logits."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from astroclip_dist.parallel.contrastive import contrastive_loss
from tests.rank_pool import RankPool

WIDTH = 7


@dataclass(frozen=True)
class Case:
    """A global batch.

    Attributes:
        alike: how many of its pairs are one and the same, as when a galaxy is drawn twice.
    """

    pairs: int = 24
    scale: float = 7.5
    alike: int = 0


ORDINARY = Case()
CASES = {
    "ordinary": ORDINARY,
    "one pair a rank": Case(pairs=4),
    "largest scale of CLIP": Case(scale=100.0),
    "exponentials beyond float32": Case(scale=200.0),
    "vanishing scale": Case(scale=1e-3),
    "some pairs alike": Case(alike=5),
    "all pairs alike": Case(alike=24),
}


def parameters(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Inputs of all pairs, and the shared linear maps and logit scale whose gradients are compared."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = normal(2, WIDTH, WIDTH).requires_grad_()
    images, spectra = normal(2, case.pairs, WIDTH)
    for members in (images, spectra):
        members[: case.alike] = members[0]
    return images, spectra, weights, torch.tensor([case.scale], dtype=dtype, requires_grad=True)


def oracle(case: Case, dtype: torch.dtype) -> tuple[float, Tensor, Tensor]:
    """CLIP's loss as its paper writes it, in one process."""
    images, spectra, weights, scale = parameters(case, dtype)
    logits = scale * F.normalize(images @ weights[0], dim=1) @ F.normalize(spectra @ weights[1], dim=1).T
    target = torch.arange(case.pairs)
    loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    loss.backward()
    return loss.item(), weights.grad, scale.grad


def on_rank(
    case: Case, dtype: torch.dtype, tile: tuple[int, int] | None, cut_gradient: bool = False
) -> tuple[float, Tensor, Tensor]:
    """Loss and gradients averaged over ranks, as a data-parallel engine averages them."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    images, spectra, weights, scale = parameters(case, dtype)
    mine = slice(rank * case.pairs // world_size, (rank + 1) * case.pairs // world_size)
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


PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])


@pytest.mark.parametrize("tile", [(1, 1), (5, 3), (4, 24), None])
@PRECISIONS
def test_one_process(dtype: torch.dtype, tolerance: float, tile: tuple[int, int] | None) -> None:
    images, spectra, weights, scale = parameters(ORDINARY, dtype)
    image, spectrum = F.normalize(images @ weights[0], dim=1), F.normalize(spectra @ weights[1], dim=1)
    loss = contrastive_loss(image, spectrum, scale, tile=tile)
    loss.backward()
    compare((loss.item(), weights.grad, scale.grad), oracle(ORDINARY, dtype), tolerance)


@pytest.mark.parametrize("tile", [(5, 3), None])
@PRECISIONS
@pytest.mark.parametrize("pool", ["two_ranks", "four_ranks"])
def test_across_ranks(
    pool: str, dtype: torch.dtype, tolerance: float, tile: tuple[int, int] | None, request: pytest.FixtureRequest
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    for result in ranks.run(on_rank, ORDINARY, dtype, tile):
        compare(result, oracle(ORDINARY, dtype), tolerance)


@PRECISIONS
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_unusual_batches(four_ranks: RankPool, case: Case, dtype: torch.dtype, tolerance: float) -> None:
    """Expected in float64; float32 rounds the logits of a large scale s by s x 6e-8, in one process too."""
    coarser = max(1.0, case.scale / 100)
    for result in four_ranks.run(on_rank, case, dtype, (5, 3)):
        compare(result, oracle(case, torch.float64), tolerance * coarser)


def test_the_comparison_notices_a_gather_without_gradient(two_ranks: RankPool) -> None:
    value, weights_grad, _ = two_ranks.run(on_rank, ORDINARY, torch.float64, None, True)[0]
    expected = oracle(ORDINARY, torch.float64)
    assert value == pytest.approx(expected[0], abs=1e-12)
    assert (weights_grad - expected[1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("images", "spectra", "scale", "reason"),
    [
        (torch.ones(4, 3), torch.ones(5, 3), torch.ones(1), "same n > 0 pairs"),
        (torch.ones(4, 3), torch.ones(4, 2), torch.ones(1), "same n > 0 pairs"),
        (torch.ones(0, 3), torch.ones(0, 3), torch.ones(1), "same n > 0 pairs"),
        (torch.ones(4), torch.ones(4), torch.ones(1), "same n > 0 pairs"),
        (torch.ones(4, 3).bfloat16(), torch.ones(4, 3).bfloat16(), torch.ones(1), "convert the embeddings"),
        (torch.ones(4, 3).double(), torch.ones(4, 3), torch.ones(1), "the same for both"),
        (torch.ones(4, 3), torch.ones(4, 3), torch.ones(2), "must be one number"),
    ],
)
def test_what_is_no_batch_of_pairs_is_refused(images: Tensor, spectra: Tensor, scale: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        contrastive_loss(images, spectra, scale)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_an_embedding_that_is_not_finite_shows_on_every_rank(two_ranks: RankPool, bad: float) -> None:
    """The loop's check of the loss then refuses the step on all ranks."""
    assert not any(two_ranks.run(is_finite_with, bad))


def is_finite_with(bad: float) -> bool:
    images, spectra, _, scale = parameters(ORDINARY, torch.float32)
    if dist.get_rank() == 1:
        images[3, 2] = bad
    return bool(contrastive_loss(images, spectra, scale).isfinite())


def compare(found: tuple[float, Tensor, Tensor], expected: tuple[float, Tensor, Tensor], tolerance: float) -> None:
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    for left, right in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=tolerance, check_dtype=False)

"""The teacher's targets on real ranks, that hold different numbers of rows, against one process with all rows."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.objectives.dinov2.centring import Centring
from astroclip_dist.objectives.dinov2.sinkhorn import sinkhorn_knopp
from tests.rank_pool import RankPool

PROTOTYPES, MOMENTUM, TEMPERATURE = 11, 0.9, 0.05
# Rows of each rank, for as many ranks: equal, unequal, none on one of them.
SPREADS = {"two_ranks": [(6, 6), (9, 3), (12, 0)], "four_ranks": [(3, 3, 3, 3), (1, 2, 0, 9), (0, 0, 12, 0)]}
POOLS_AND_SPREADS = [(pool, spread) for pool, spreads in SPREADS.items() for spread in spreads]


def all_logits(step: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """(12, K) in [-1, 1], as of unit prototypes, with a mean that differs by prototype."""
    generator = torch.Generator().manual_seed(step)
    noise = torch.randn(12, PROTOTYPES, generator=generator, dtype=torch.float64)
    return (noise + torch.linspace(-2, 2, PROTOTYPES)).tanh().to(dtype)


def mine(logits: Tensor, spread: tuple[int, ...]) -> Tensor:
    rank = dist.get_rank()
    return logits[sum(spread[:rank]) : sum(spread[: rank + 1])]


def new_centring(dtype: torch.dtype) -> Centring:
    centring = Centring(PROTOTYPES, MOMENTUM)
    initialise(centring, InitialValues(centring, seed=0))
    return centring.to(dtype)


def centre_on_rank(spread: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Three steps, of which the second is skipped, each in two micro-batches."""
    centring = new_centring(dtype)
    for step in range(3):
        logits = mine(all_logits(step, dtype), spread)
        # Micro-batches of unequal size; without a row on this rank, one of them at least is empty.
        targets = torch.cat([centring.targets(part, TEMPERATURE) for part in (logits[:1], logits[1:])])
        if step == 1:
            centring.discard()
        else:
            centring.update()
    return centring.centre, targets


def expected_centre(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The formulas of DINO, on all rows."""
    centre = torch.zeros(1, PROTOTYPES, dtype=dtype)
    for step in range(3):
        logits = all_logits(step, dtype)
        targets = ((logits - centre) / TEMPERATURE).softmax(dim=1)
        if step != 1:
            centre = MOMENTUM * centre + (1 - MOMENTUM) * logits.mean(dim=0, keepdim=True)
    return centre, targets


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 1e-6)])
@pytest.mark.parametrize(("pool", "spread"), POOLS_AND_SPREADS)
def test_centre_across_ranks(
    pool: str, spread: tuple[int, ...], dtype: torch.dtype, tolerance: float, request: pytest.FixtureRequest
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    found = ranks.run(centre_on_rank, spread, dtype)
    centre, targets = expected_centre(dtype)
    for on_rank, _ in found:
        assert on_rank.dtype == dtype
        torch.testing.assert_close(on_rank, centre, rtol=0, atol=tolerance)
        assert torch.equal(on_rank, found[0][0]), "ranks must agree to the bit"
    torch.testing.assert_close(torch.cat([part for _, part in found]), targets, rtol=0, atol=100 * tolerance)


def mean_of_means_on_rank(spread: tuple[int, ...]) -> Tensor:
    total = mine(all_logits(0), spread).mean(dim=0, keepdim=True)
    dist.all_reduce(total)
    return (1 - MOMENTUM) * total / dist.get_world_size()


def test_the_comparison_notices_a_mean_of_the_means_of_ranks(two_ranks: RankPool) -> None:
    expected = (1 - MOMENTUM) * all_logits(0).mean(dim=0, keepdim=True)
    torch.testing.assert_close(two_ranks.run(mean_of_means_on_rank, (6, 6))[0], expected)
    assert (two_ranks.run(mean_of_means_on_rank, (9, 3))[0] - expected).abs().max() > 1e-3


def nothing_seen_on_rank() -> Tensor:
    centring = new_centring(torch.float32)
    centring.targets(all_logits(0), TEMPERATURE)
    centring.update()
    before = centring.centre.clone()
    centring.update()
    centring.targets(torch.empty(0, PROTOTYPES), TEMPERATURE)
    centring.update()
    return centring.centre - before


def test_the_centre_stays_where_no_rank_has_a_row(two_ranks: RankPool) -> None:
    for change in two_ranks.run(nothing_seen_on_rank):
        assert torch.equal(change, torch.zeros(1, PROTOTYPES))


def test_logits_of_a_skipped_step_leave_no_trace() -> None:
    centring = new_centring(torch.float32)
    centring.targets(torch.full((2, PROTOTYPES), torch.nan), TEMPERATURE)
    centring.discard()
    centring.targets(torch.ones(2, PROTOTYPES, dtype=torch.bfloat16), TEMPERATURE)
    centring.update()
    torch.testing.assert_close(centring.centre, torch.full((1, PROTOTYPES), 0.1))
    assert list(centring.state_dict()) == ["centre"]


def sinkhorn_oracle(logits: Tensor, iterations: int) -> Tensor:
    """The algorithm as it is usually written: the whole matrix, normalised by columns and rows in turn."""
    plan = torch.exp(logits / TEMPERATURE)
    n, prototypes = plan.shape
    plan = plan / plan.sum()
    for _ in range(iterations):
        plan = plan / plan.sum(dim=0, keepdim=True) / prototypes
        plan = plan / plan.sum(dim=1, keepdim=True) / n
    return plan * n


def sinkhorn_on_rank(spread: tuple[int, ...], dtype: torch.dtype, iterations: int) -> Tensor:
    return sinkhorn_knopp(mine(all_logits(0, dtype), spread), TEMPERATURE, iterations)


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
@pytest.mark.parametrize(("pool", "spread"), POOLS_AND_SPREADS)
def test_sinkhorn_across_ranks(
    pool: str,
    spread: tuple[int, ...],
    dtype: torch.dtype,
    tolerance: float,
    iterations: int,
    request: pytest.FixtureRequest,
) -> None:
    ranks: RankPool = request.getfixturevalue(pool)
    found = ranks.run(sinkhorn_on_rank, spread, dtype, iterations)
    assert [len(targets) for targets in found] == list(spread)
    torch.testing.assert_close(
        torch.cat(found).double(), sinkhorn_oracle(all_logits(0), iterations), rtol=0, atol=tolerance
    )


def sinkhorn_alone_on_rank(spread: tuple[int, ...]) -> Tensor:
    return sinkhorn_oracle(mine(all_logits(0), spread), 3)


def test_the_comparison_notices_targets_of_each_rank_alone(two_ranks: RankPool) -> None:
    found = torch.cat(two_ranks.run(sinkhorn_alone_on_rank, (6, 6)))
    assert (found - sinkhorn_oracle(all_logits(0), 3)).abs().max() > 0.01


def test_sinkhorn_spreads_the_rows_evenly_over_prototypes() -> None:
    logits = torch.rand(4000, PROTOTYPES, generator=torch.Generator().manual_seed(0)) * 0.2
    logits[:, 0] += 0.5
    targets = sinkhorn_knopp(logits, TEMPERATURE, iterations=50)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4000))
    torch.testing.assert_close(targets.mean(dim=0), torch.full((PROTOTYPES,), 1 / PROTOTYPES), rtol=1e-3, atol=0)


@pytest.mark.parametrize("shift", [0.0, 10.0])
def test_sinkhorn_over_the_whole_range_of_cosines_at_the_lowest_temperature(shift: float) -> None:
    """Between weights of exp(50) and exp(-50); with the shift, exp(220) would overflow float32."""
    logits = torch.tensor([[1.0, -1.0, -1.0], [-1.0, -1.0, 1.0], [-1.0, -1.0, -1.0], [0.5, 1.0, 0.9]])
    expected = sinkhorn_oracle(logits.double() * TEMPERATURE / 0.04, 3)
    torch.testing.assert_close(sinkhorn_knopp(logits + shift, 0.04).double(), expected, rtol=0, atol=2e-5)


def test_sinkhorn_does_not_hide_logits_that_are_not_finite() -> None:
    for wrong in (torch.nan, torch.inf):
        logits = all_logits(0)
        logits[3, 4] = wrong
        assert not sinkhorn_knopp(logits, TEMPERATURE).isfinite().any()


def test_targets_carry_no_gradient() -> None:
    logits = all_logits(0).requires_grad_()
    assert not sinkhorn_knopp(logits, TEMPERATURE).requires_grad
    assert not new_centring(torch.float32).targets(logits, TEMPERATURE).requires_grad


def test_targets_of_half_precision_logits_are_float32_also_in_autocast() -> None:
    logits = all_logits(0, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = [sinkhorn_knopp(logits, TEMPERATURE), new_centring(torch.float32).targets(logits, TEMPERATURE)]
    expected = [sinkhorn_oracle(logits.double(), 3), (logits.double() / TEMPERATURE).softmax(dim=1)]
    for targets, exact in zip(found, expected, strict=True):
        assert targets.dtype == torch.float32
        torch.testing.assert_close(targets.double(), exact, rtol=0, atol=1e-5)

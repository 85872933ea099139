"""Packed sequences of several lengths: the same results as each group alone, with skipped branches, too."""

from __future__ import annotations

import torch

from astroclip_dist.config.model import TransformerSize
from astroclip_dist.models.initial import InitialValues, initialise
from astroclip_dist.models.sequences import Packing, pack
from astroclip_dist.models.transformer import Block

SIZE = TransformerSize(width=16, depth=1, heads=4)


def block() -> Block:
    made = Block(SIZE, layer_scale=0.7)
    initialise(made, InitialValues(made, seed=0))
    return made.double()


def groups() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 7, 16, generator=generator).double(), torch.randn(5, 2, 16, generator=generator).double()]


def test_packing_lays_groups_one_after_the_other_and_takes_them_apart() -> None:
    packed, packing = pack(groups())
    assert packing == Packing(((3, 7), (5, 2)))
    assert packed.shape == (31, 16)
    for part, group in zip(packing.split(packed), groups(), strict=True):
        assert torch.equal(part, group)


def test_a_block_treats_packed_groups_as_each_alone() -> None:
    made, (long, short) = block(), groups()
    packed, packing = pack([long, short])
    packed.requires_grad_()
    together = packing.split(made(packed, packing))
    together[0].square().sum().backward()
    assert packed.grad is not None
    # Nothing of one group, nor of one sequence, reaches another.
    assert packed.grad[21:].abs().max() == 0
    for part, group in zip(together, (long, short), strict=True):
        alone, packing_alone = pack([group])
        assert torch.allclose(part, packing_alone.split(made(alone, packing_alone))[0], atol=1e-12)
    one, packing_of_one = pack([long[1:2]])
    assert torch.allclose(together[0][1], made(one, packing_of_one), atol=1e-12)


def test_a_subset_says_where_its_rows_are() -> None:
    packed, packing = pack(groups())
    subset, rows = packing.subset([torch.tensor([2, 0]), torch.tensor([4])])
    assert subset == Packing(((2, 7), (1, 2)))
    long, short = subset.split(packed[rows])
    assert torch.equal(long, groups()[0][[2, 0]])
    assert torch.equal(short, groups()[1][[4]])


def test_skipped_branches_leave_a_sequence_alone_and_scale_the_others() -> None:
    """Oquab et al. 2023, section 5: a branch is computed for a subset, whose residuals are scaled by n / kept."""
    made, (long, short) = block(), groups()
    packed, packing = pack([long, short])
    kept = ([torch.tensor([0, 2]), torch.tensor([1])], [torch.tensor([0]), torch.tensor([1, 3])])
    found = packing.split(made(packed, packing, kept))

    def attended(group: torch.Tensor, scale: float) -> torch.Tensor:
        rows, alone = pack([group])
        return group + scale * alone.split(made.attention(made.attention_norm(rows), alone))[0]

    def mixed(group: torch.Tensor, scale: float) -> torch.Tensor:
        return group + scale * made.mlp(made.mlp_norm(group))

    expected_long = torch.stack(
        [
            mixed(attended(long[:1], 3 / 2), 3 / 1)[0],
            long[1],
            attended(long[2:], 3 / 2)[0],
        ]
    )
    expected_short = torch.stack(
        [short[0], mixed(attended(short[1:2], 5 / 1), 5 / 2)[0], short[2], mixed(short[3:4], 5 / 2)[0], short[4]]
    )
    assert torch.allclose(found[0], expected_long, atol=1e-12)
    assert torch.allclose(found[1], expected_short, atol=1e-12)

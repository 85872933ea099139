"""Dropout by sample: its masks follow keys alone, at the asked rate, without patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astroclip_dist.models.keyed_dropout import keyed_dropout

KEYS = torch.randint(-(2**63), 2**63 - 1, (200,), generator=torch.Generator().manual_seed(0))


def masks(probability: float = 0.3, keys: torch.Tensor = KEYS, purpose: int = 1) -> torch.Tensor:
    return keyed_dropout(torch.ones(len(keys), 10, 50), probability, keys, purpose) == 0


def test_a_sample_keeps_its_mask_wherever_it_lies_in_a_batch() -> None:
    whole, order = masks(), torch.randperm(len(KEYS))
    assert torch.equal(masks(keys=KEYS[order]), whole[order])
    assert torch.equal(torch.cat([masks(keys=KEYS[:7]), masks(keys=KEYS[7:])]), whole)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_rate_is_the_asked_one_and_the_expectation_stays(probability: float) -> None:
    dropped = masks(probability).double()
    # 100 000 coins: 4 sigma.
    assert abs(dropped.mean() - probability) < 4 * (probability * (1 - probability) / dropped.numel()) ** 0.5
    # Of a sample's 500 units, and of one unit over the 200 samples: 5 sigma of each.
    for axes in ((1, 2), (0,)):
        means = dropped.mean(dim=axes)
        each = dropped.numel() / means.numel()
        assert (means - probability).abs().max() < 5 * (probability * (1 - probability) / each) ** 0.5
    kept = keyed_dropout(torch.ones(len(KEYS), 500), probability, KEYS, 1)
    assert kept[kept > 0].unique().tolist() == pytest.approx([1 / (1 - probability)])


def test_other_samples_and_other_purposes_have_independent_masks() -> None:
    first, second, other = masks()[:100].double(), masks()[100:].double(), masks(purpose=2)[:100].double()
    for one in (second, other):
        correlation = np.corrcoef(first.flatten().numpy(), one.flatten().numpy())[0, 1]
        assert abs(correlation) < 4 / first.numel() ** 0.5


def test_gradients_pass_where_values_do() -> None:
    values = torch.ones(len(KEYS), 20, requires_grad=True)
    keyed_dropout(values, 0.5, KEYS, 3).sum().backward()
    assert torch.equal(values.grad, keyed_dropout(torch.ones(len(KEYS), 20), 0.5, KEYS, 3))

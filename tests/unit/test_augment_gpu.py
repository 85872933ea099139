"""Augmentation on a CUDA device gives what it gives on the CPU."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from astroclip_dist.config.augmentation import ViewRecipe
from astroclip_dist.config.objective import ImageDino, View
from astroclip_dist.data.augment import augment, multi_crop, plan_of
from astroclip_dist.data.preprocessing.images import stretch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
IDS = np.arange(7, dtype=np.uint64)
RGB = partial(stretch, how="rgb")


def images() -> torch.Tensor:
    return torch.randn(7, 3, 152, 152, generator=torch.Generator().manual_seed(0)) * 0.02 + 0.01


def test_crops_and_noise_are_the_same_bit_for_bit() -> None:
    crops = ViewRecipe(size=144)
    assert torch.equal(augment(images().cuda(), IDS, 1, crops).cpu(), augment(images(), IDS, 1, crops))
    noisy = ViewRecipe(size=144, noise=1)
    black = torch.zeros_like(images())
    assert torch.equal(augment(black.cuda(), IDS, 1, noisy).cpu(), augment(black, IDS, 1, noisy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_all_views_agree_up_to_rounding(dtype: torch.dtype) -> None:
    views = {"global_views": View(count=2, size=144, area=0.947), "local_views": View(count=8, size=60, area=0.394)}
    plan = plan_of(ImageDino(**views, rotation=True))
    on_cpu = multi_crop(images().to(dtype), IDS, 1, plan, RGB)
    on_gpu = multi_crop(images().to(dtype).cuda(), IDS, 1, plan, RGB)
    pairs = zip(on_cpu.global_views + on_cpu.local_views, on_gpu.global_views + on_gpu.local_views, strict=True)
    for expected, found in pairs:
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-4)

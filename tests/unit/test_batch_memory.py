"""Memory of batches: used again when it is free, never while anything still refers to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from astroclip_dist.data.streaming.batch_memory import BatchMemory

SHAPE = (3, 5)

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="with CUDA, torch's own allocator reuses pinned memory"
)


def test_free_memory_is_used_again() -> None:
    memory = BatchMemory()
    tensor = memory.tensor(SHAPE, torch.float32)
    assert tensor.shape == SHAPE
    assert tensor.dtype == torch.float32
    place = tensor.data_ptr()
    del tensor
    assert memory.tensor(SHAPE, torch.float32).data_ptr() == place


def test_sizes_do_not_mix() -> None:
    memory = BatchMemory()
    memory.tensor((1000,), torch.float32)
    small = memory.tensor(SHAPE, torch.float16)
    assert small.untyped_storage().nbytes() == 30


@pytest.mark.parametrize(
    "keep",
    [
        lambda tensor: tensor,
        lambda tensor: tensor[1:, 2],
        lambda tensor: tensor.view(torch.int32),
        lambda tensor: tensor.numpy(),
        lambda tensor: tensor.numpy()[1][None],
        lambda tensor: memoryview(tensor.numpy()),
        lambda tensor: tensor.detach(),
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: torch.ones(SHAPE, requires_grad=True) * tensor,  # kept by the autograd graph
    ],
    ids=["itself", "slice", "other dtype", "array", "view of array", "buffer", "detached", "storage", "autograd"],
)
def test_memory_that_is_referred_to_is_not_given_again(keep: Callable[[Tensor], object]) -> None:
    memory = BatchMemory()
    tensor = memory.tensor(SHAPE, torch.float32)
    place = tensor.data_ptr()
    kept = keep(tensor)
    del tensor
    others = [memory.tensor(SHAPE, torch.float32) for _ in range(3)]
    assert place not in [other.data_ptr() for other in others]
    del kept
    assert memory.tensor(SHAPE, torch.float32).data_ptr() == place


def test_tensors_outlive_the_memory_they_came_from() -> None:
    tensor = BatchMemory().tensor(SHAPE, torch.float32).fill_(7)
    assert tensor.sum() == 7 * 15

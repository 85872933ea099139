"""Memory for batches that is used again, as soon as nothing refers to it any more."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from torch import Tensor


class BatchMemory:
    """Gives tensors to fill.

    Memory that is new to a process costs a page fault each 4 KiB: reading into it is several times slower than reading
    into memory that was used before. A block returns here when the last tensor, view, array or autograd graph that
    shares it is gone; until then nobody else gets it. So the blocks are as many as batches were ever held at once.

    Pinned memory is reused by torch's own allocator, which also waits for copies to the device that are under way.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[np.ndarray]] = {}

    def tensor(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor on the CPU, with arbitrary content; pinned when CUDA is there."""
        if torch.cuda.is_available():
            return torch.empty(shape, dtype=dtype, pin_memory=True)
        size = math.prod(shape) * dtype.itemsize
        free = self._free.setdefault(size, [])
        block = free.pop() if free else np.empty(size, np.uint8)
        # All that shares the tensor's memory holds its storage, and the storage holds this view, which nobody else has.
        lent = block.view()
        weakref.finalize(lent, free.append, block).atexit = False
        return torch.from_numpy(lent).view(dtype).view(shape)

"""The arrays of a batch while its samples are read into them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from astroclip_dist.data.reading.reader import LoadedPiece, Slot
from astroclip_dist.data.stored.dataset import Dataset
from astroclip_dist.data.streaming.batch_memory import BatchMemory


class _Member(NamedTuple):
    name: str
    content: memoryview
    sample_bytes: int
    dtype: np.dtype
    shape: tuple[int, ...]


class BatchArrays:
    """A tensor a member, (count, *shape) each, whose samples are filled one by one, by any thread.

    Args:
        dataset: says shapes and dtypes.
        members: of ``image``, ``spectrum``, ``ivar``.
        memory: where the tensors come from.
    """

    def __init__(self, dataset: Dataset, members: Sequence[str], count: int, memory: BatchMemory) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._members = []
        for name in members:
            layout = dataset.layout(name)
            tensor = memory.tensor((count, *layout.shape), getattr(torch, layout.dtype))
            content = memoryview(tensor.numpy().reshape(-1).view(np.uint8))  # type: ignore[arg-type]
            self.tensors[name] = tensor
            self._members.append(
                _Member(name, content, len(content) // max(count, 1), np.dtype(layout.dtype), tuple(layout.shape))
            )

    def slots(self, at: int) -> list[Slot]:
        """Where the members of the sample at a place of the batch go."""
        return [
            Slot(name, content[at * size : (at + 1) * size], dtype, shape)
            for name, content, size, dtype, shape in self._members
        ]


def read_samples(
    piece: LoadedPiece, rows: Sequence[int], dataset: Dataset, members: Sequence[str], pool: ThreadPoolExecutor
) -> dict[str, Tensor]:
    """Members of some samples of one piece, (len(rows), *shape) each.

    Raises:
        DamagedError, DataError, StorageError: of the first sample that cannot be read.
    """
    arrays = BatchArrays(dataset, members, len(rows), BatchMemory())
    list(pool.map(lambda place: piece.read_arrays(rows[place], arrays.slots(place)), range(len(rows))))
    return arrays.tensors

"""Sequences of several lengths in one tensor, so that what treats tokens alike runs once for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packing:
    """How groups of equally long sequences lie in a (rows, width) tensor, group after group.

    Attributes:
        groups: (sequences, tokens of each) of every group.
    """

    groups: tuple[tuple[int, int], ...]

    @property
    def rows(self) -> list[int]:
        """Rows of each group."""
        return [count * length for count, length in self.groups]

    def split(self, packed: Tensor) -> list[Tensor]:
        """(rows, *) as one (sequences, tokens, *) view a group."""
        parts = packed.split(self.rows)
        return [part.unflatten(0, group) for part, group in zip(parts, self.groups, strict=True)]

    def subset(self, kept: Sequence[Tensor]) -> tuple[Packing, Tensor]:
        """Some sequences of each group.

        Args:
            kept: (k,) int64 for each group, which of its sequences.

        Returns:
            The packing of those alone, and (rows,) int64, where their rows are in this one.
        """
        rows, groups, first = [], [], 0
        for (count, length), chosen in zip(self.groups, kept, strict=True):
            tokens = torch.arange(length, device=chosen.device)
            rows.append((first + chosen[:, None] * length + tokens).flatten())
            groups.append((len(chosen), length))
            first += count * length
        return Packing(tuple(groups)), torch.cat(rows)


def pack(sequences: Sequence[Tensor]) -> tuple[Tensor, Packing]:
    """(n, tokens, width) of each group as one (rows, width) tensor."""
    packing = Packing(tuple((len(group), group.shape[1]) for group in sequences))
    if len(sequences) == 1:
        return sequences[0].flatten(0, 1), packing
    return torch.cat([group.flatten(0, 1) for group in sequences]), packing

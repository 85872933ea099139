"""Which galaxies are known (the neighbours) and which are asked about (the queries)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astroclip_dist.data.manifest import key_hash


@dataclass(frozen=True)
class HeldOut:
    """(rows,) bool each, disjoint; ``note`` says in words when they are not the train and test splits."""

    neighbours: np.ndarray
    queries: np.ndarray
    note: str | None = None


def hold_out(splits: np.ndarray, keys: np.ndarray) -> HeldOut:
    """Train split known, test split asked; else val; else a fifth of the one split there is, by hash of the key.

    Args:
        splits, keys: (rows,) of str.
    """
    train, val, test = (splits == name for name in ("train", "val", "test"))
    if train.any() and test.any():
        return HeldOut(train, test)
    if train.any() and val.any():
        return HeldOut(train, val, "There is no test split: the held-out galaxies are those of the validation split.")
    fifth = np.array([key_hash(key) % 5 == 0 for key in keys], bool)
    note = (
        f"All galaxies are of one split ({splits[0]}): the held-out ones are a fifth of them by hash of their key. "
        "If this is the split that the model was trained on, it has seen them, and the numbers flatter it."
    )
    return HeldOut(~fifth, fifth, note)

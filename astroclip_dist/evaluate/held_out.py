"""Which galaxies are known (the neighbours) and which are asked about (the queries)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astroclip_dist.data.stored.manifest import key_hash


@dataclass(frozen=True)
class HeldOut:
    """(rows,) bool each; ``neighbours`` and ``queries`` are disjoint.

    Attributes:
        partners: the galaxies among which each one's own image or spectrum is looked for.
        note: says in words when they are not the train and test splits.
    """

    neighbours: np.ndarray
    queries: np.ndarray
    partners: np.ndarray
    note: str | None = None


def hold_out(splits: np.ndarray, keys: np.ndarray) -> HeldOut:
    """Train split known, test split asked; else val. Of one split alone, a fifth by hash of the key is asked about, and
    partners are looked for among all: nothing is held out there anyway.

    Args:
        splits, keys: (rows,) of str.
    """
    train, val, test = (splits == name for name in ("train", "val", "test"))
    if train.any() and test.any():
        return HeldOut(train, test, test)
    if train.any() and val.any():
        return HeldOut(
            train, val, val, "There is no test split: the held-out galaxies are those of the validation split."
        )
    fifth = np.array([key_hash(key) % 5 == 0 for key in keys], bool)
    note = (
        f"All galaxies are of one split ({splits[0]}): redshifts are asked of a fifth of them, by hash of the key, and "
        "partners are looked for among all. If the model was trained on them it has seen them, and the numbers flatter "
        "it."
    )
    return HeldOut(~fifth, fifth, np.ones(len(keys), bool), note)

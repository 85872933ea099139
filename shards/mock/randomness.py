"""Random numbers that depend on (seed, index, subject) alone, so that any galaxy can be made anywhere, in any order."""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Subject(IntEnum):
    """What a stream of random numbers decides. Streams are independent: no subject's draws shift another's."""

    POPULATION = 0
    STRUCTURE = 1
    FIELD = 2
    IMAGE_NOISE = 3
    SPECTRUM_NOISE = 4
    CATALOGUE = 5


def stream(seed: int, index: int, subject: Subject) -> np.random.Generator:
    """The counter-based generator (Philox; Salmon et al. 2011) of one subject of one galaxy."""
    return np.random.Generator(np.random.Philox(key=[seed, index], counter=[0, 0, 0, int(subject)]))

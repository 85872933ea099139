"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rank_pool import RankPool

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real galaxies (images, spectra, catalogues) that is not part of this repository."""
    folder = Path(os.environ.get("ASTROCLIP_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real galaxies at {folder}: set ASTROCLIP_TEST_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    """Two processes in one gloo group."""
    pool = RankPool(2)
    yield pool
    pool.close()


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[RankPool]:
    """Four processes in one gloo group."""
    pool = RankPool(4)
    yield pool
    pool.close()

"""Single samples by their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from astroclip_dist.data.reading.lookup import SampleLookup
from astroclip_dist.errors import DataError
from shards.sample import Sample
from shards.writing.writer import ShardWriter
from tests.unit.embedded_galaxies import IMAGE, SPECTRUM

GALAXIES = 30


@pytest.fixture
def url(tmp_path: Path) -> str:
    rng = np.random.default_rng(0)
    with ShardWriter(str(tmp_path / "data"), IMAGE, SPECTRUM, False, {}, samples_per_shard=12,
                     split_fractions={"train": 1.0}) as writer:  # fmt: skip
        for number in range(GALAXIES):
            image = rng.normal(size=IMAGE.shape).astype(np.float32)
            image[0, 0, 0] = number
            spectrum = rng.normal(size=SPECTRUM.shape).astype(np.float32) if number % 2 else None
            writer.add(Sample(f"G{number}", image, spectrum))
        writer.finish()
    return str(tmp_path / "data")


def test_every_sample_is_found_at_its_place(url: str) -> None:
    lookup = SampleLookup([url])
    for number in range(GALAXIES):
        place = (0, f"train-{number // 12:06d}", number % 12)
        image = lookup.read(*place, "image", f"G{number}")
        assert image.shape == IMAGE.shape
        assert image.dtype == np.float32
        assert image[0, 0, 0] == number
        if number % 2:
            assert lookup.read(*place, "spectrum", f"G{number}").shape == SPECTRUM.shape
    with pytest.raises(DataError, match="absent"):
        lookup.read(0, "train-000000", 2, "spectrum", "G2")


@pytest.mark.parametrize(
    ("place", "key", "named"),
    [
        ((0, "train-000000", 3), "G4", "Expected is G4"),
        ((0, "train-000000", 12), "G12", "only 12 samples"),
        ((0, "train-000000", -1), "G11", "Expected is G11"),
        ((0, "train-000009", 0), "G0", "train-000009"),
        ((1, "train-000000", 0), "G0", "dataset 1"),
    ],
)
def test_a_place_of_another_dataset_is_named(url: str, place: tuple[int, str, int], key: str, named: str) -> None:
    with pytest.raises(DataError, match=named):
        SampleLookup([url]).read(*place, "image", key)


def test_a_flipped_bit_is_named(url: str) -> None:
    tar = Path(url) / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    data[len(data) // 2] ^= 1
    tar.write_bytes(data)
    lookup = SampleLookup([url])
    damaged = []
    for row in range(12):
        for member in ("image", "spectrum"):
            try:
                lookup.read(0, "train-000001", row, member, f"G{12 + row}")
            except DataError as error:
                damaged += ["crc32" in str(error)] if "absent" not in str(error) else []
    assert damaged == [True]

"""Pairs of JPEG and SDSS spectrum: eleven real galaxies, and tables that are wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import speclite.filters
import torch
from astropy import units
from PIL import Image

from astroclip_dist.data.preprocessing.rgb import to_rgb
from astroclip_dist.data.stored.manifest import ImageLayout
from astroclip_dist.errors import DataError
from shards.grids.spectra_grid import wavelengths
from shards.sample import Sample, check_sample
from shards.source import all_samples
from shards.sources.pairs import Pairs


@pytest.fixture(scope="module")
def source(real_data: Path) -> Pairs:
    return Pairs(real_data / "pairs" / "pairs.csv")


@pytest.fixture(scope="module")
def galaxies(source: Pairs) -> dict[str, Sample]:
    return {sample.key: sample for sample in all_samples(source)}


def test_all_eleven_read_and_fit_the_layout(source: Pairs, galaxies: dict[str, Sample]) -> None:
    assert len(source.keys(0)) == len(galaxies) == 11
    for sample in galaxies.values():
        check_sample(sample, source.image, source.spectrum)
        assert sample.ivar is not None
        assert 0.75 < (sample.ivar > 0).mean() < 0.9  # 3,800 to 9,200 of 3,600 to 9,824 A
        assert abs(sample.metadata["redshift"] - sample.metadata["sdss_redshift"]) < 1e-4


@pytest.mark.parametrize("key", ["1237650795146051733", "1237650795683184714", "1237651799623008574"])
def test_h_alpha_of_star_forming_galaxies_is_where_the_redshift_says(galaxies: dict[str, Sample], key: str) -> None:
    sample = galaxies[key]
    assert sample.spectrum is not None
    grid = wavelengths(Pairs.spectrum)
    expected = 6564.6 * (1 + sample.metadata["redshift"])
    near = np.abs(grid - expected) < 60
    peak = grid[near][np.argmax(sample.spectrum[near])]
    assert peak == pytest.approx(expected, abs=4.0)
    assert sample.spectrum[near].max() > 1.5 * np.median(sample.spectrum[near])


def test_flux_of_image_and_spectrum_agree(galaxies: dict[str, Sample]) -> None:
    """SDSS spectra are calibrated through the fibre of 3 arcsec; clipped JPEG pixels make the image a lower limit."""
    curve = speclite.filters.load_filter("decam2014-r")
    grid = wavelengths(Pairs.spectrum) * units.AA
    rows, columns = np.mgrid[:96, :96] - 47.5
    fibre = np.hypot(rows, columns) * 0.262 < 1.5
    compared = 0
    for sample in galaxies.values():
        if sample.metadata["image_stretch"] != "legacy-viewer":
            continue
        assert sample.image is not None
        assert sample.spectrum is not None
        flux = sample.spectrum * 1e-17 * units.erg / units.s / units.cm**2 / units.AA
        synthetic = float(curve.get_ab_maggies(*curve.pad_spectrum(flux, grid, method="edge"))) * 1e9
        ratio = sample.image[1][fibre].sum() / synthetic
        assert ratio < 1.3
        if sample.metadata["image_clipped_fraction"] < 0.002:
            assert ratio > 0.65
            compared += 1
    assert compared >= 4


def test_colours_survive_the_inversion(real_data: Path, galaxies: dict[str, Sample]) -> None:
    """The sheet of the inverted flux looks like the JPEG: the same mean colours on 4 x 4 fields."""
    key = "1237651799623008574"
    jpeg = Image.open(real_data / "pairs" / "legacysurvey_sdss" / "images" / f"{key}.jpeg")
    margin = (256 - 96 * 2.62) / 2
    small = np.array(jpeg.resize((4, 4), Image.Resampling.BOX, (margin, margin, 256 - margin, 256 - margin))) / 255
    rgb = to_rgb(torch.from_numpy(galaxies[key].image)).numpy()
    ours = rgb.reshape(3, 4, 24, 4, 24).mean(axis=(2, 4))[:, ::-1].transpose(1, 2, 0)
    np.testing.assert_allclose(ours, small, atol=0.03)


def test_sdss_jpegs_say_that_their_flux_is_not_calibrated(galaxies: dict[str, Sample]) -> None:
    assert {key: sample.metadata["image_stretch"] for key, sample in galaxies.items()} == {
        key: "sdss-jpeg" if key == "ngc6154" else "legacy-viewer" for key in galaxies
    }


def test_a_smaller_size_can_be_chosen_and_a_larger_is_refused(real_data: Path) -> None:
    table = real_data / "pairs" / "pairs.csv"
    small = next(all_samples(Pairs(table, size=60)))
    assert small.image is not None
    assert small.image.shape == ImageLayout(size=60).shape
    with pytest.raises(DataError, match=r"jpeg: field: 25\.60 arcsec"):
        next(all_samples(Pairs(table, size=152)))


@pytest.fixture
def table(real_data: Path, tmp_path: Path) -> Path:
    """A table with one galaxy, whose files may be damaged."""
    lines = (real_data / "pairs" / "pairs.csv").read_text().splitlines()
    image, spectrum = lines[1].split(",")[6:8]
    for name in (image, spectrum):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(real_data / "pairs" / name, tmp_path / name)
    path = tmp_path / "pairs.csv"
    path.write_text("\n".join(lines[:2]) + "\n")
    return path


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_note", "remark", "no column image_note"),
        ("150.328825052264", "abc", "line 2: ra: 'abc'"),
        ("Legacy Survey DR9 grz jpeg 256x256 at 0.1 arcsec/px", "a picture", "image_note: 'a picture'"),
        ("at 0.1 arcsec/px", "", "image_note"),
        ("images/1237648721217716541.jpeg", "images/none.jpeg", "none.jpeg: no such file"),
        ("spec-0268-51633-0074.fits", "none.fits", "none.fits: no such file"),
    ],
)
def test_wrong_tables_are_named(table: Path, old: str, new: str, message: str) -> None:
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DataError, match=message):
        list(all_samples(Pairs(table)))


def test_a_missing_or_empty_table_is_named(table: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        Pairs(tmp_path / "none.csv")
    table.write_text(table.read_text().splitlines()[0])
    with pytest.raises(DataError, match="no rows"):
        Pairs(table)


def test_a_truncated_spectrum_and_a_damaged_image_are_named(table: Path, tmp_path: Path) -> None:
    spectrum = next(tmp_path.rglob("*.fits"))
    whole = spectrum.read_bytes()
    spectrum.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"spec-0268-51633-0074.fits: not a readable FITS file .*truncated"):
        list(all_samples(Pairs(table)))
    spectrum.write_bytes(whole)
    image = next(tmp_path.rglob("*.jpeg"))
    image.write_bytes(image.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"jpeg: not a readable image"):
        list(all_samples(Pairs(table)))

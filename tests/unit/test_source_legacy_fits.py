"""Legacy Survey FITS cut-outs: four real ones, one of them with missing data, and wrong headers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astroclip_dist.errors import DataError
from shards.sample import check_sample
from shards.source import all_samples
from shards.sources.legacy_fits import LegacyFits


@pytest.fixture
def folder(real_data: Path) -> Path:
    return real_data / "images" / "decals_float_grz"


def cutout(path: Path, *, scale: float = 0.262, size: int = 160, **cards: object) -> Path:
    """A small cut-out with the cards of the survey's service."""
    header = fits.Header(
        {
            "BANDS": "grz",
            **{"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0},
            **{"CRPIX1": size / 2 + 0.5, "CRPIX2": size / 2 + 0.5},
            **{"CD1_1": -scale / 3600, "CD1_2": 0.0, "CD2_1": 0.0, "CD2_2": scale / 3600},
        }
    )
    header.update(cards)
    data = np.random.default_rng(0).normal(0, 0.01, (3, size, size)).astype(np.float32)
    fits.writeto(path, data, header)
    return path


def test_real_cutouts_of_four_scales(folder: Path) -> None:
    files = [folder / f"example_{letter}.fits" for letter in "abc"]
    source = LegacyFits(files)
    samples = list(all_samples(source))
    assert source.partitions == len(samples) == 3
    for sample in samples:
        check_sample(sample, source.image, None)
        assert sample.spectrum is None
        assert sample.image is not None
        # A bright galaxy in the middle, sky of a few thousandths in the corners.
        assert sample.image[1, 70:82, 70:82].mean() > 0.1
        assert abs(np.median(sample.image[1, :12, :12])) < 0.1
    assert samples[0].key == "example_a"
    assert samples[0].metadata["ra"] == pytest.approx(146.714208787, abs=1e-6)
    assert samples[0].metadata["dec"] == pytest.approx(-1.04128156958, abs=1e-6)
    assert samples[2].metadata["image_pixel_scale_arcsec"] == pytest.approx(0.14323, abs=1e-4)


def test_surface_brightness_does_not_depend_on_the_scale_of_the_cutout(folder: Path) -> None:
    """Sky noise in flux per native pixel is that of the survey (some 0.004 in r), at whatever scale it was cut."""
    for letter in "bc":
        image = next(all_samples(LegacyFits([folder / f"example_{letter}.fits"]))).image
        assert image is not None
        corner = image[1, :25, -25:]
        spread = 1.4826 * np.median(np.abs(corner - np.median(corner)))
        assert 0.001 < spread < 0.01


def test_missing_data_are_refused_or_zeroed_as_asked(folder: Path) -> None:
    path = folder / "example_bad_pix.fits"
    with pytest.raises(DataError, match=r"example_bad_pix.fits: pixels: NaN or no data in g 8\d"):
        list(all_samples(LegacyFits([path])))
    sample = next(all_samples(LegacyFits([path], bad_pixels="zero")))
    assert sample.image is not None
    assert 0.5 < sample.metadata["image_bad_fraction"] < 0.6
    assert (sample.image[0] == 0).mean() > 0.8
    assert (sample.image[2] != 0).all()


def test_nan_is_refused(tmp_path: Path) -> None:
    path = cutout(tmp_path / "a.fits")
    with fits.open(path, memmap=False) as hdus:
        hdus[0].data[1, 80, 80] = np.nan
        hdus.writeto(path, overwrite=True)
    with pytest.raises(DataError, match="NaN or no data in"):
        list(all_samples(LegacyFits([path])))


def test_the_native_scale_is_cropped_and_the_key_has_no_dots(tmp_path: Path) -> None:
    path = cutout(tmp_path / "J095521.32+014500.1 (new).fits")
    sample = next(all_samples(LegacyFits([path])))
    assert sample.key == "J095521_32+014500_1_new_"
    with fits.open(path, memmap=False) as hdus:
        np.testing.assert_array_equal(sample.image, hdus[0].data[:, 4:156, 4:156])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"BANDS": "gri"}, "BANDS: 'gri'"),
        ({"BANDS": "zrg"}, "BANDS: 'zrg'"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "no sky coordinates"),
        ({"CD2_2": 0.2 / 3600}, "square pixels"),
        ({"size": 100}, r"field: 26.20 arcsec"),
        ({"scale": 0.1}, r"field: 16.00 arcsec"),
    ],
)
def test_wrong_cutouts_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    path = cutout(tmp_path / "a.fits", **changes)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=message) as caught:
        list(all_samples(LegacyFits([path])))
    assert str(path) in str(caught.value)


def test_a_truncated_file_and_another_format_are_named(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    path.write_bytes((folder / "example_a.fits").read_bytes()[:500_000])
    with pytest.raises(DataError, match="not a readable FITS file"):
        list(all_samples(LegacyFits([path])))
    with pytest.raises(DataError, match="not a readable FITS file"):
        list(all_samples(LegacyFits([folder / "example_a.jpeg"])))

"""Resampling keeps what it must: flux, information, line positions and masks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from astroclip_dist.data.stored.manifest import ImageLayout, SpectrumLayout
from astroclip_dist.errors import DataError
from shards.grids.image_grid import resample_image
from shards.grids.overlap import overlap_lengths
from shards.grids.spectra_grid import Arm, coadd, wavelengths

GRID = SpectrumLayout()


def one_arm(wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    spectrum, weight = coadd([Arm("arm", wavelength, flux[None], ivar[None])], GRID, "file")
    return spectrum[0], weight[0]


def brute_overlaps(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    return np.array(
        [[max(0.0, min(b1, a1) - max(b0, a0)) for a0, a1 in pairwise(source)] for b0, b1 in pairwise(target)]
    )


def test_overlaps_equal_those_of_the_definition() -> None:
    random = np.random.default_rng(1)
    for _ in range(20):
        source, target = (np.sort(random.uniform(0, 10, random.integers(2, 12))) for _ in range(2))
        np.testing.assert_allclose(overlap_lengths(source, target).toarray(), brute_overlaps(source, target), atol=1e-5)


def test_the_same_grid_is_a_copy() -> None:
    random = np.random.default_rng(2)
    flux, ivar = random.normal(size=GRID.size), random.uniform(0.1, 3, GRID.size)
    wavelength = wavelengths(GRID) + random.uniform(-5e-10, 5e-10, GRID.size)
    spectrum, weight = one_arm(wavelength, flux, ivar)
    np.testing.assert_allclose(spectrum, flux, rtol=1e-5)
    np.testing.assert_allclose(weight, ivar, rtol=1e-5)


def test_a_masked_pixel_stays_masked_and_its_value_does_not_matter() -> None:
    flux, ivar = np.ones(GRID.size), np.ones(GRID.size)
    flux[100], ivar[100] = np.nan, 0.0
    spectrum, weight = one_arm(wavelengths(GRID) + 5e-10, flux, ivar)
    assert spectrum[100] == weight[100] == 0
    np.testing.assert_allclose(np.delete(spectrum, 100), 1.0, rtol=1e-6)


def test_information_and_flux_of_a_wider_grid_are_kept() -> None:
    wavelength = 10 ** np.arange(3.6, 3.9, 1e-4)
    line = np.exp(-0.5 * ((wavelength - 6000) / 6) ** 2)
    spectrum, weight = one_arm(wavelength, line, np.full(len(wavelength), 4.0))
    assert weight.sum() == pytest.approx(4.0 * len(wavelength), rel=1e-5)
    assert spectrum.sum() * GRID.step_angstrom == pytest.approx((line * np.gradient(wavelength)).sum(), rel=1e-4)
    centre = (spectrum * wavelengths(GRID)).sum() / spectrum.sum()
    assert centre == pytest.approx((line * wavelength).sum() / line.sum(), abs=0.01)
    assert spectrum[0] == weight[0] == 0


def test_arms_are_averaged_by_inverse_variance_where_they_overlap() -> None:
    blue, red = wavelengths(GRID)[:5000], wavelengths(GRID)[4000:]
    flux, ivar = coadd(
        [
            Arm("B", blue, np.full((1, 5000), 2.0), np.full((1, 5000), 1.0)),
            Arm("R", red, np.full((1, len(red)), 6.0), np.full((1, len(red)), 3.0)),
        ],
        GRID,
        "file",
    )
    np.testing.assert_allclose(flux[0, [100, 4500, 7000]], [2.0, 5.0, 6.0])
    np.testing.assert_allclose(ivar[0, [100, 4500, 7000]], [1.0, 4.0, 3.0])


def test_noise_has_the_inverse_variance_that_it_is_given() -> None:
    random = np.random.default_rng(3)
    wavelength = np.arange(3500.0, 9900.0, 0.53)
    sigma = 0.5 + 0.3 * np.sin(wavelength / 900)
    flux = random.normal(0, sigma, (200, len(wavelength)))
    spectra, ivars = coadd([Arm("a", wavelength, flux, np.tile(sigma**-2, (200, 1)))], GRID, "file")
    pull = spectra * np.sqrt(ivars)
    # A bin that shares its outer pixels with neighbours is a little quieter than its information says.
    assert 0.75 < pull.std() < 1.0


@pytest.mark.parametrize(
    ("wavelength", "flux", "ivar", "message"),
    [
        (np.linspace(1000, 2000, 50), np.ones(50), np.ones(50), "file, arm.*1000.0 to 2000.0 A"),
        (np.linspace(3.5, 4.0, 50), np.ones(50), np.ones(50), "not log"),
        (np.linspace(5000, 4000, 50), np.ones(50), np.ones(50), "not increasing"),
        (np.linspace(4000, 5000, 50), np.full(50, np.nan), np.ones(50), "50 values not finite"),
        (np.linspace(4000, 5000, 50), np.ones(50), np.full(50, -1.0), "50 negative"),
    ],
)
def test_bad_spectra_are_named(wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        one_arm(wavelength, flux, ivar)


def gaussian(pixels: int, scale: float, sigma_arcsec: float) -> np.ndarray:
    axis = (np.arange(pixels) - (pixels - 1) / 2) * scale
    return np.exp(-0.5 * (axis[:, None] ** 2 + axis[None, :] ** 2) / sigma_arcsec**2)[None].repeat(3, axis=0)


@pytest.mark.parametrize("scale", [0.1, 0.143, 0.262, 0.396])
def test_a_source_keeps_flux_and_place(scale: float) -> None:
    layout = ImageLayout(size=96)
    pixels = 2 * int(40 / scale / 2)
    image = resample_image(gaussian(pixels, scale, 1.5), scale, layout, "file")
    assert image.shape == layout.shape
    assert image.dtype == np.float32
    expected = 2 * np.pi * (1.5 / 0.262) ** 2
    assert image[1].sum() == pytest.approx(expected, rel=1e-3)
    rows, columns = np.mgrid[:96, :96]
    assert (image[0] * rows).sum() / image[0].sum() == pytest.approx(47.5, abs=1e-3)
    assert (image[0] * columns).sum() / image[0].sum() == pytest.approx(47.5, abs=1e-3)


def test_the_native_scale_is_cropped_without_change() -> None:
    random = np.random.default_rng(4)
    cutout = random.normal(size=(3, 160, 160)).astype(np.float32)
    np.testing.assert_array_equal(resample_image(cutout, 0.262, ImageLayout(), "file"), cutout[:, 4:156, 4:156])


def test_a_field_that_is_too_small_is_refused() -> None:
    with pytest.raises(DataError, match=r"39.82 arcsec \(152 px"):
        resample_image(np.zeros((3, 256, 256)), 0.1, ImageLayout(), "file")

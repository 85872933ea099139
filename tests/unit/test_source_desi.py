"""DESI spectra: real coadds with and without redshifts, real commissioning spectra, and damaged files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from astroclip_dist.errors import DataError
from shards.building.build import build
from shards.grids.spectra_grid import wavelengths
from shards.sample import Sample, check_sample
from shards.source import all_samples
from shards.sources.desi_coadd import DesiCoadd
from shards.sources.desi_high import DesiHigh

GRID = wavelengths(DesiCoadd.spectrum)


@pytest.fixture(scope="module")
def with_redshifts(real_data: Path) -> DesiCoadd:
    folder = real_data / "desi" / "fastspecfit"
    return DesiCoadd(sorted(folder.glob("coadd-*.fits")), sorted(folder.glob("redrock-*.fits")))


@pytest.fixture
def coadd(real_data: Path, tmp_path: Path) -> Path:
    """A copy of a real coadd with two good targets of five, to be damaged."""
    path = tmp_path / "coadd.fits"
    path.write_bytes((real_data / "desi" / "specutils" / "coadd-sv3-dark-26065.fits").read_bytes())
    return path


def peak_near(sample: Sample, rest_wavelength: float) -> float:
    assert sample.spectrum is not None
    near = np.abs(GRID - rest_wavelength * (1 + sample.metadata["redshift"])) < 40
    return float(GRID[near][np.argmax(sample.spectrum[near])] / (1 + sample.metadata["redshift"]))


def test_coadds_with_redshifts(with_redshifts: DesiCoadd) -> None:
    samples = list(all_samples(with_redshifts))
    assert len(samples) == 2
    for sample in samples:
        check_sample(sample, None, with_redshifts.spectrum)
        assert sample.spectrum is not None
        assert sample.ivar is not None
        assert len(sample.spectrum) == 7781
        assert (sample.ivar > 0).mean() > 0.99
    first = samples[0]
    assert first.key == "39633345008634465"
    assert first.metadata["targetid"] == 39633345008634465
    assert first.metadata["redshift"] == pytest.approx(0.36874, abs=1e-4)
    assert first.metadata["zwarn"] == 0
    assert first.metadata["spectype"] == "GALAXY"
    assert {"ra", "dec", "ebv", "flux_r", "release", "brickid", "brick_objid"} <= first.metadata.keys()
    for line in (6564.6, 5008.2, 4862.7):
        assert peak_near(first, line) == pytest.approx(line, abs=1.5)


def test_arms_are_copied_alone_and_averaged_in_overlaps(with_redshifts: DesiCoadd, real_data: Path) -> None:
    sample = next(all_samples(with_redshifts))
    assert sample.spectrum is not None
    assert sample.ivar is not None
    with fits.open(real_data / "desi/fastspecfit/coadd-4-80613-thru20210324.fits", memmap=False) as hdus:
        data = {name: hdus[name].data.astype(float) for name in ("B_FLUX", "B_IVAR", "R_FLUX", "R_IVAR")}
    blue = slice(0, 2700)  # 3600 to 5760 A
    np.testing.assert_allclose(sample.spectrum[blue], data["B_FLUX"][0, blue], rtol=1e-5)
    np.testing.assert_allclose(sample.ivar[blue], data["B_IVAR"][0, blue], rtol=1e-5)
    b, r = slice(2700, 2751), slice(0, 51)
    weight = data["B_IVAR"][0, b] + data["R_IVAR"][0, r]
    mean = (data["B_IVAR"][0, b] * data["B_FLUX"][0, b] + data["R_IVAR"][0, r] * data["R_FLUX"][0, r]) / weight
    np.testing.assert_allclose(sample.ivar[2700:2751], weight, rtol=1e-5)
    np.testing.assert_allclose(sample.spectrum[2700:2751], mean, rtol=1e-4, atol=1e-6)


def test_only_good_targets_are_taken_and_masked_pixels_stay_masked(real_data: Path) -> None:
    source = DesiCoadd(sorted((real_data / "desi" / "specutils").glob("coadd-*.fits")), [])
    samples = {sample.key: sample for sample in all_samples(source)}
    assert sorted(samples) == ["39627866878511337", "39627866878514741", "39633300968442591"]
    assert all("redshift" not in sample.metadata for sample in samples.values())
    masked = samples["39627866878511337"]
    assert masked.spectrum is not None
    assert masked.ivar is not None
    with fits.open(real_data / "desi/specutils/coadd-sv3-dark-26065.fits", memmap=False) as hdus:
        in_z_alone = np.flatnonzero(hdus["Z_MASK"].data[2])
        places = np.rint((hdus["Z_WAVELENGTH"].data[in_z_alone] - 3600) / 0.8).astype(int)
    places = places[GRID[places] > 7620]
    assert len(places) > 5
    assert (masked.ivar[places] == 0).all()
    assert (masked.spectrum[places] == 0).all()
    assert (masked.ivar == 0).sum() < 50


def test_the_same_target_twice_is_refused(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "desi/fastspecfit/coadd-4-80613-thru20210324.fits"
    with pytest.raises(DataError, match="39633345008634465: key: came twice"):
        build(DesiCoadd([path, path], []), str(tmp_path / "set"))
    assert not (tmp_path / "set").exists()


def test_redshifts_must_be_complete_and_unambiguous(real_data: Path) -> None:
    folder = real_data / "desi" / "fastspecfit"
    coadds, tables = sorted(folder.glob("coadd-*.fits")), sorted(folder.glob("redrock-*.fits"))
    with pytest.raises(DataError, match="not in the redrock tables"):
        list(all_samples(DesiCoadd(coadds, tables[:1])))
    with pytest.raises(DataError, match="has a redshift already"):
        DesiCoadd(coadds, [tables[0], tables[0]])
    with pytest.raises(DataError, match="HDU REDSHIFTS: missing"):
        DesiCoadd(coadds, coadds[:1])


@pytest.mark.parametrize("part", [0.0, 0.02, 0.3, 0.9, 0.999])
def test_a_truncated_file_is_named(coadd: Path, part: float) -> None:
    whole = coadd.read_bytes()
    coadd.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(DataError, match=r"coadd.fits: not a readable FITS file"):
        list(all_samples(DesiCoadd([coadd], [])))


def test_single_exposures_are_refused(real_data: Path) -> None:
    with pytest.raises(DataError, match=r"single exposures.*coadd-\*.fits"):
        DesiCoadd([real_data / "desi/specutils/spectra-sv3-dark-26065.fits"], []).keys(0)


def change(path: Path, name: str, data: np.ndarray | None) -> None:
    with fits.open(path, memmap=False) as hdus:
        if data is None:
            del hdus[name]
        else:
            hdus[name].data = data
        hdus.writeto(path, overwrite=True)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("R_IVAR", None, "HDU R_IVAR: missing"),
        ("R_FLUX", np.zeros((5, 7), np.float32), r"HDU R_FLUX: shape \(5, 7\)"),
        ("B_FLUX", np.full((5, 2751), np.nan, np.float32), "arm B: flux: .* values not finite"),
        ("B_IVAR", np.full((5, 2751), -1, np.float32), "arm B: inverse variance"),
        ("Z_WAVELENGTH", np.linspace(3.55, 3.99, 2881), "arm Z: wavelengths"),
    ],
)
def test_damaged_contents_are_named(coadd: Path, name: str, data: np.ndarray | None, message: str) -> None:
    change(coadd, name, data)
    with pytest.raises(DataError, match=message):
        list(all_samples(DesiCoadd([coadd], [])))


def test_a_bad_spectrum_comes_as_an_error_in_its_place(coadd: Path, tmp_path: Path) -> None:
    source = DesiCoadd([coadd], [])
    whole = list(source.read(0, [0, 1]))
    with fits.open(coadd, memmap=False) as hdus:
        flux, status = hdus["B_FLUX"].data, hdus["FIBERMAP"].data["COADD_FIBERSTATUS"]
        flux[np.flatnonzero(status == 0)[0], 100] = np.nan
    change(coadd, "B_FLUX", flux)
    bad, good = source.read(0, [0, 1])
    assert isinstance(bad, DataError)
    assert f"target {source.keys(0)[0]}: " in str(bad)
    assert "1 values not finite" in str(bad)
    assert isinstance(good, Sample)
    assert isinstance(whole[1], Sample)
    np.testing.assert_array_equal(good.spectrum, whole[1].spectrum)


def test_rows_are_read_alone_as_they_are_read_together(with_redshifts: DesiCoadd, real_data: Path) -> None:
    source = DesiCoadd(sorted((real_data / "desi" / "specutils").glob("coadd-*.fits")), [])
    partition = next(p for p in range(source.partitions) if len(source.keys(p)) > 1)
    keys = source.keys(partition)
    together = list(source.read(partition, range(len(keys))))
    for row, key in enumerate(keys):
        (alone,) = source.read(partition, [row])
        assert isinstance(alone, Sample)
        assert alone.key == key
        np.testing.assert_array_equal(alone.spectrum, together[row].spectrum)  # type: ignore[union-attr]


def test_commissioning_spectra(real_data: Path) -> None:
    folder = real_data / "desi" / "desihigh"
    source = DesiHigh(sorted(folder.glob("coadd-*.fits")), sorted(folder.glob("zbest-*.fits")))
    samples = {sample.key: sample for sample in all_samples(source)}
    assert len(samples) == 20
    for sample in samples.values():
        check_sample(sample, None, source.spectrum)
        assert sample.ivar is None
        assert sample.spectrum is not None
        assert (sample.spectrum != 0).all()
        assert sample.metadata["redshift"] > 0.05
    assert peak_near(samples["35191325330507548"], 6564.6) == pytest.approx(6564.6, abs=1.5)
    assert peak_near(samples["35185735917113845"], 3728.5) == pytest.approx(3728.5, abs=2.5)
    with pytest.raises(DataError, match="not in the zbest tables"):
        list(all_samples(DesiHigh(sorted(folder.glob("coadd-*.fits")), sorted(folder.glob("zbest-b*.fits")))))

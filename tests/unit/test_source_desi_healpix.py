"""DESI's tree of healpix coadds: real files under their published names, selection, targets seen twice, damage."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from astroclip_dist.errors import DataError
from shards.sample import Sample, check_sample
from shards.source import all_samples, source_class
from shards.sources.desi_coadd import DesiCoadd
from shards.sources.desi_healpix import DesiHealpix

GOOD = [39627866878511337, 39627866878514741]


def publish(root: Path, survey: str, program: str, healpix: int, coadd: Path, redrock: Path | Table) -> Path:
    """A coadd and its redrock table at their place in a release; the folder they lie in."""
    folder = root / "healpix" / survey / program / str(healpix // 100) / str(healpix)
    folder.mkdir(parents=True)
    name = f"{survey}-{program}-{healpix}.fits"
    shutil.copyfile(coadd, folder / f"coadd-{name}")
    if isinstance(redrock, Path):
        shutil.copyfile(redrock, folder / f"redrock-{name}")
    else:
        primary = fits.PrimaryHDU()
        fits.HDUList([primary, fits.BinTableHDU(redrock, name="REDSHIFTS")]).writeto(folder / f"redrock-{name}")
    return folder


def redshifts(targets: list[int], first: float) -> Table:
    """A redrock table with redshifts ``first``, ``first`` + 0.1, ..."""
    return Table(
        {
            "TARGETID": targets,
            "Z": first + 0.1 * np.arange(len(targets)),
            "ZERR": np.full(len(targets), 1e-4),
            "ZWARN": np.zeros(len(targets), np.int64),
            "SPECTYPE": ["GALAXY"] * len(targets),
            "DELTACHI2": np.full(len(targets), 100.0),
        }
    )


@pytest.fixture
def release(real_data: Path, tmp_path: Path) -> Path:
    """Pixel 26065 in sv3 dark, and the same targets again in main dark and bright; another pixel in special dark."""
    two = real_data / "desi/specutils/coadd-sv3-dark-26065.fits"
    one = real_data / "desi/fastspecfit"
    for survey, program, first in (("sv3", "dark", 0.1), ("main", "dark", 0.3), ("main", "bright", 0.5)):
        publish(tmp_path, survey, program, 26065, two, redshifts([-2713437, *GOOD], first))
    publish(
        tmp_path,
        "special",
        "dark",
        27247,
        one / "coadd-special-dark-27247.fits",
        one / "redrock-special-dark-27247.fits",
    )
    return tmp_path


def test_a_real_coadd_with_its_redrock_table(release: Path, real_data: Path) -> None:
    source = DesiHealpix([release], surveys=["special"])
    (sample,) = all_samples(source)
    check_sample(sample, None, source.spectrum)
    folder = real_data / "desi/fastspecfit"
    (same,) = all_samples(
        DesiCoadd([folder / "coadd-special-dark-27247.fits"], [folder / "redrock-special-dark-27247.fits"])
    )
    assert sample.key == same.key == "39089837499744649"
    np.testing.assert_array_equal(sample.spectrum, same.spectrum)
    np.testing.assert_array_equal(sample.ivar, same.ivar)
    assert sample.metadata == same.metadata | {"survey": "special", "program": "dark", "healpix": 27247}
    assert sample.metadata["redshift"] == pytest.approx(0.0073, abs=1e-4)


def test_a_target_comes_once_from_the_survey_named_first(release: Path) -> None:
    def where(**selection: list[str]) -> list[tuple[str, str, str, float]]:
        return [
            (sample.key, sample.metadata["survey"], sample.metadata["program"], round(sample.metadata["redshift"], 3))
            for sample in all_samples(DesiHealpix([release], **selection))
        ]

    keys = list(map(str, GOOD))
    assert where(surveys=["sv3"]) == [(keys[0], "sv3", "dark", 0.2), (keys[1], "sv3", "dark", 0.3)]
    assert where(surveys=["main", "sv3"], programs=["dark", "bright"]) == [
        (keys[0], "main", "dark", 0.4),
        (keys[1], "main", "dark", 0.5),
    ]
    assert where(surveys=["main"], programs=["bright", "dark"]) == [
        (keys[0], "main", "bright", 0.6),
        (keys[1], "main", "bright", 0.7),
    ]
    assert len(where()) == 3


def test_a_target_that_is_bad_where_it_is_preferred_comes_from_the_next(release: Path) -> None:
    preferred = release / "healpix/main/bright/260/26065/coadd-main-bright-26065.fits"
    with fits.open(preferred, memmap=False) as hdus:
        fibermap = hdus["FIBERMAP"].data
        fibermap["COADD_FIBERSTATUS"][fibermap["TARGETID"] == GOOD[0]] = 8
        hdus.writeto(preferred, overwrite=True)
    source = DesiHealpix([release], surveys=["main"])
    assert [source.keys(partition) for partition in range(2)] == [[str(GOOD[1])], [str(GOOD[0])]]
    assert [sample.metadata["program"] for sample in all_samples(source)] == ["bright", "dark"]


def test_any_rows_after_pickling(release: Path) -> None:
    source = pickle.loads(pickle.dumps(DesiHealpix([release], ["sv3"])))  # noqa: S301
    assert source.partitions == 1
    whole = list(source.read(0, [0, 1]))
    (second,) = source.read(0, [1])
    assert second.key == whole[1].key == source.keys(0)[1]
    np.testing.assert_array_equal(second.spectrum, whole[1].spectrum)
    assert second.metadata == whole[1].metadata
    assert list(source.read(0, [])) == []


def test_the_description_names_the_selection(release: Path) -> None:
    described = DesiHealpix([release], surveys=["main"]).describe()
    assert described["files"] == 2
    assert (described["surveys"], described["programs"]) == ("main", "bright dark")
    assert described["first_file"] == "coadd-main-bright-26065.fits"
    assert source_class("desi-healpix") is DesiHealpix


def test_a_target_without_redshift_comes_in_its_place(real_data: Path, tmp_path: Path) -> None:
    coadd = real_data / "desi/specutils/coadd-sv3-dark-26065.fits"
    publish(tmp_path, "sv3", "dark", 26065, coadd, redshifts(GOOD[1:], 0.1))
    first, second = DesiHealpix([tmp_path]).read(0, [0, 1])
    assert isinstance(first, DataError)
    assert f"target {GOOD[0]}: not in redrock-sv3-dark-26065.fits" in str(first)
    assert isinstance(second, Sample)


def test_trees_that_cannot_be_used(release: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"no coadds of sv1, any program. There are main bright, main dark, special dark"
    ):
        DesiHealpix([release], ["sv1"])
    with pytest.raises(DataError, match="no such folder"):
        DesiHealpix([tmp_path / "absent"])
    with pytest.raises(DataError, match="also at"):
        DesiHealpix([release, release / "healpix"])
    folder = release / "healpix/sv3/dark/260/26065"
    (folder / "coadd-4-80613-thru20210324.fits").touch()
    with pytest.raises(DataError, match="Use the source desi-coadd"):
        DesiHealpix([release])
    (folder / "coadd-4-80613-thru20210324.fits").unlink()
    (folder / "redrock-sv3-dark-26065.fits").unlink()
    with pytest.raises(DataError, match=r"no redrock-sv3-dark-26065.fits beside it"):
        DesiHealpix([release])


@pytest.mark.parametrize("name", ["coadd", "redrock"])
def test_a_truncated_file_is_named(release: Path, name: str) -> None:
    path = release / f"healpix/sv3/dark/260/26065/{name}-sv3-dark-26065.fits"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source = DesiHealpix([release], ["sv3"])
    with pytest.raises(DataError, match=rf"{name}-sv3-dark-26065.fits: not a readable FITS file"):
        list(source.read(0, [0]))

"""Matching by position, against every pair of rows looked at one by one with astropy's separations."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.coordinates import SkyCoord, angular_separation
from astropy.time import Time
from astropy_healpix import HEALPix
from hypothesis import given, settings
from hypothesis import strategies as st

import shards.crossmatch.match_table as match_table_module
import shards.crossmatch.table as table_module
from astroclip_dist.errors import ConfigError, DataError
from shards.crossmatch.match_table import ROW_GROUP, MatchTable
from shards.crossmatch.position import match_by_position
from shards.crossmatch.positions import match_epoch
from shards.crossmatch.sky import Sky, fine_order, move, unit_vectors
from shards.crossmatch.table import CatalogueTable, Columns
from tests.random_catalogue import offset, random_positions, write_positions

Positions = tuple[np.ndarray, np.ndarray]


def run(folder: Path, a: Positions, b: Positions, radius: float, **options: Any) -> tuple[dict[str, Any], Path]:
    first = write_positions(folder / "a.parquet", *a, prefix="a")
    second = write_positions(folder / "b.parquet", *b, prefix="b")
    out = folder / "match.parquet"
    description = match_by_position(
        CatalogueTable(first), CatalogueTable(second), str(out), radius, progress=io.StringIO(), **options
    )
    return description, out


def pairs(out: Path) -> list[tuple[int, int]]:
    table = pq.read_table(out)
    return list(zip(table["index_a"].to_pylist(), table["index_b"].to_pylist(), strict=True))


def separations(a: Positions, b: Positions) -> np.ndarray:
    """(rows of a, rows of b) arcsec, by the Vincenty formula."""
    ra_a, dec_a, ra_b, dec_b = (np.radians(values) for values in (*a, *b))
    return np.degrees(angular_separation(ra_a[:, None], dec_a[:, None], ra_b, dec_b)) * 3600


def oracle(a: Positions, b: Positions, radius: float) -> tuple[list[tuple[int, int]], int, int]:
    """Mutual nearest neighbours within the radius, and how many rows of a and of b have several neighbours."""
    distance = separations(a, b)
    near = distance <= radius
    first, second = distance.argmin(axis=1), distance.argmin(axis=0)
    mutual = [(i, int(first[i])) for i in range(len(first)) if near[i, first[i]] and second[first[i]] == i]
    return mutual, int((near.sum(axis=1) > 1).sum()), int((near.sum(axis=0) > 1).sum())


def check(folder: Path, a: Positions, b: Positions, radius: float, **options: Any) -> list[tuple[int, int]]:
    expected, ambiguous_a, ambiguous_b = oracle(a, b, radius)
    description, out = run(folder, a, b, radius, **options)
    assert pairs(out) == expected
    assert description["matched"] == len(expected)
    assert (description["ambiguous_a"], description["ambiguous_b"]) == (ambiguous_a, ambiguous_b)
    assert description["unmatched_a"] == len(a[0]) - len(expected)
    assert description["unmatched_b"] == len(b[0]) - len(expected)
    found = pq.read_table(out)["separation_arcsec"].to_numpy()
    distance = separations(a, b)
    assert np.allclose(found, [distance[pair] for pair in expected], rtol=0, atol=1e-8)
    return expected


def scattered(a: Positions, arcsec: float, rng: np.random.Generator) -> Positions:
    rows = len(a[0])
    return offset(*a, rng.uniform(0, arcsec, rows), rng.uniform(0, 2 * np.pi, rows))


def both(*positions: Positions) -> Positions:
    ra, dec = zip(*positions, strict=True)
    return np.concatenate(ra), np.concatenate(dec)


@pytest.mark.parametrize("rows_in_memory", [1 << 20, 40])
def test_a_random_sky(tmp_path: Path, rows_in_memory: int) -> None:
    rng = np.random.default_rng(1)
    a = random_positions(1500, rng)
    b = both(scattered((a[0][:700], a[1][:700]), 4.0, rng), random_positions(300, rng))
    expected = check(tmp_path, a, b, 2.0, rows_in_memory=rows_in_memory)
    assert 250 < len(expected) < 450


@pytest.mark.parametrize("pole", [90.0, -90.0])
def test_the_poles(tmp_path: Path, pole: float) -> None:
    rng = np.random.default_rng(2)
    a = offset(np.zeros(300), np.full(300, pole), rng.uniform(0, 60, 300), rng.uniform(0, 2 * np.pi, 300))
    a = both(a, (np.array([123.0]), np.array([pole])))
    b = both(scattered(a, 1.5, rng), (np.array([0.0]), np.array([pole])))
    assert len(check(tmp_path, a, b, 1.5, rows_in_memory=400)) > 150


def test_where_right_ascension_wraps(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    a = (rng.normal(0, 3 / 3600, 300) % 360, rng.uniform(-80, 80, 300))
    a = both(a, (np.array([0.0, 360.0]), np.array([10.0, 20.0])))
    b = both(scattered((a[0][:300], a[1][:300]), 1.0, rng), (np.array([360.0, 0.0]), np.array([10.0, 20.0])))
    expected = check(tmp_path, a, b, 1.0)
    assert {(300, 300), (301, 301)} <= set(expected)


def corners_and_edges(order: int) -> Positions:
    """Points of the borders of all pixels of an order: corners, and places along the edges."""
    grid = HEALPix(nside=1 << order, order="nested")
    along = np.linspace(0, 1, 5)
    zero, one = np.zeros(5), np.ones(5)
    dx, dy = np.concatenate([along, along, zero, one]), np.concatenate([zero, one, along, along])
    pixels = np.arange(grid.npix)
    ra, dec = grid.healpix_to_lonlat(np.repeat(pixels, len(dx)), np.tile(dx, grid.npix), np.tile(dy, grid.npix))
    return ra.to_value(units.deg) % 360, dec.to_value(units.deg)


@pytest.mark.parametrize("rows_in_memory", [1 << 20, 1500])  # first cut into 12 pixels, and into 768
@pytest.mark.parametrize("radius", [0.3, 30.0])
def test_nothing_is_lost_at_the_borders_of_pixels(tmp_path: Path, radius: float, rows_in_memory: int) -> None:
    """Rows of a on the borders of the pixels that the match uses, each with one partner just inside the radius, in
    all directions; 768 pixels' corners include all places where three pixels meet and the 24 where seven adjoin."""
    rng = np.random.default_rng(4)
    ra, dec = corners_and_edges(3)
    # Where edges share a corner one row is left: nobody may have a nearer partner than its own.
    _, keep = np.unique(np.round(unit_vectors(ra, dec), 9), axis=0, return_index=True)
    keep = keep[abs(dec[keep]) < 89.999]
    a = (ra[keep], dec[keep])
    angle = rng.uniform(0, 2 * np.pi, len(keep))
    b = offset(*a, radius * 0.999, angle)
    description, out = run(tmp_path, a, b, radius, rows_in_memory=rows_in_memory)
    assert pairs(out) == [(row, row) for row in range(len(keep))]
    assert description["unmatched_a"] == description["unmatched_b"] == 0
    beyond, out = run(tmp_path, a, offset(*a, radius * 1.001, angle), radius, rows_in_memory=rows_in_memory)
    assert beyond["matched"] == 0


@pytest.mark.parametrize("pixel", [0, 5, 100, 191, 400, 767])
def test_crowds_around_a_corner(tmp_path: Path, pixel: int) -> None:
    """Chains of neighbours across a corner: a row's partner has another partner beyond the next border."""
    rng = np.random.default_rng(pixel)
    grid = HEALPix(nside=8, order="nested")
    ra, dec = grid.healpix_to_lonlat(np.full(2, pixel), np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    a: list[Positions] = []
    b: list[Positions] = []
    for corner_ra, corner_dec in zip(ra.to_value(units.deg), dec.to_value(units.deg), strict=True):
        for side in (a, b):
            side.append(
                offset(
                    np.full(150, corner_ra),
                    np.full(150, corner_dec),
                    rng.uniform(0, 6, 150),
                    rng.uniform(0, 2 * np.pi, 150),
                )
            )
    for limit in (1 << 20, 310):
        assert check(tmp_path, both(*a), both(*b), 1.0, rows_in_memory=limit)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.floats(-90, 90),
    st.floats(0, 360),
    st.floats(0.05, 1000),
    st.integers(1, 60),
    st.integers(1, 60),
)
def test_any_crowded_field(
    tmp_path_factory: pytest.TempPathFactory, seed: int, dec: float, ra: float, radius: float, rows_a: int, rows_b: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = (
        offset(np.full(rows, ra), np.full(rows, dec), rng.uniform(0, 4, rows) * radius, rng.uniform(0, 6.3, rows))
        for rows in (rows_a, rows_b)
    )
    check(tmp_path_factory.mktemp("field"), a, b, radius)


def test_the_radius_is_the_limit(tmp_path: Path) -> None:
    ra, dec = np.full(2, 150.0), np.array([2.0, 3.0])
    b = offset(ra, dec, np.array([1 - 1e-7, 1 + 1e-7]), 0.7)
    assert check(tmp_path, (ra, dec), b, 1.0) == [(0, 0)]


def test_ties_go_to_the_first_row(tmp_path: Path) -> None:
    ra, dec = np.full(3, 10.0), np.full(3, 20.0)
    description, out = run(tmp_path, (ra, dec), (ra[:2], dec[:2]), 1.0)
    assert pairs(out) == [(0, 0)]
    assert (description["ambiguous_a"], description["ambiguous_b"]) == (3, 2)


def test_swapped_catalogues_give_the_same_pairs(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    a = offset(np.full(200, 80.0), np.full(200, -40.0), rng.uniform(0, 30, 200), rng.uniform(0, 6.3, 200))
    b = scattered(a, 3.0, rng)
    _, out = run(tmp_path, a, b, 2.0)
    forward = pairs(out)
    _, out = run(tmp_path, b, a, 2.0)
    assert sorted((second, first) for first, second in pairs(out)) == forward


def test_the_same_bytes_however_the_sky_is_cut(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    a = both(random_positions(800, rng), offset(np.full(300, 5.0), np.full(300, 5.0), rng.uniform(0, 900, 300), 1.0))
    b = scattered(a, 2.0, rng)
    written = set()
    for limit in (1 << 20, 300, 100):
        _, out = run(tmp_path, a, b, 1.0, rows_in_memory=limit)
        written.add(out.read_bytes())
    assert len(written) == 1


BLOCK = 1 << 10


def peak_bytes(folder: Path, rows: int) -> int:
    """Of numpy and Arrow together, while a catalogue is matched with itself."""
    folder.mkdir()
    write_positions(folder / "all.parquet", *random_positions(rows, np.random.default_rng(1)))
    pq.write_table(pq.read_table(folder / "all.parquet"), folder / "a.parquet", row_group_size=BLOCK)
    usual, watched = pa.default_memory_pool(), pa.proxy_memory_pool(pa.default_memory_pool())
    pa.set_memory_pool(watched)
    tracemalloc.start()
    try:
        table = CatalogueTable(folder / "a.parquet")
        out = str(folder / "m.parquet")
        found = match_by_position(table, table, out, 0.1, rows_in_memory=16 * BLOCK, progress=io.StringIO())
        assert found["matched"] == rows
        return tracemalloc.get_traced_memory()[1] + watched.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def test_memory_does_not_grow_with_the_catalogues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With blocks a hundredth of the usual, because few rows are matched here."""
    monkeypatch.setattr(table_module, "ROWS_AT_ONCE", BLOCK)
    monkeypatch.setattr(match_table_module, "_RANGE_ROWS", BLOCK)
    peak_bytes(tmp_path / "warm", 1000)
    few, many = peak_bytes(tmp_path / "few", 5 * BLOCK), peak_bytes(tmp_path / "many", 20 * BLOCK)
    assert many < 1.25 * few


def test_the_match_table(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    a = random_positions(ROW_GROUP + 500, rng)
    _, out = run(tmp_path, a, scattered(a, 0.5, rng), 1.0)
    table = MatchTable(str(out))
    assert len(table) == len(a[0])
    assert table.description["radius_arcsec"] == 1.0
    assert table.description["epoch_a"] == table.description["epoch_b"] == "unknown"
    part = table.read(ROW_GROUP - 3, ROW_GROUP + 4, ["key_a", "key_b", "shard_a"])
    rows = range(ROW_GROUP - 3, ROW_GROUP + 4)
    assert part["key_a"].to_pylist() == [f"a{row}" for row in rows]
    assert part["key_b"].to_pylist() == [f"b{row}" for row in rows]
    assert part["shard_a"].null_count == len(part)


def test_too_many_rows_in_one_place(tmp_path: Path) -> None:
    zeros = (np.zeros(300), np.zeros(300))
    with pytest.raises(DataError, match="600 rows within"):
        run(tmp_path, zeros, zeros, 1.0, rows_in_memory=100)
    assert not (tmp_path / "match.parquet").exists()


@pytest.mark.parametrize("radius", [0.0, -1.0, float("nan"), 4000.0])
def test_a_radius_without_meaning(tmp_path: Path, radius: float) -> None:
    one = (np.zeros(1), np.zeros(1))
    with pytest.raises(ConfigError, match="--radius"):
        run(tmp_path, one, one, radius)


@pytest.mark.parametrize(
    ("ra", "dec", "message"),
    [
        (np.nan, 0.0, "row 1: ra nan, dec 0.0. Give every row a position"),
        (0.0, np.inf, "dec inf"),
        (-10.0, 0.0, "ra -10.0, dec 0.0. Right ascension is 0 to 360"),
        (360.5, 0.0, "360.5"),
        (0.0, 90.01, "90.01"),
    ],
)
def test_positions_that_are_none(tmp_path: Path, ra: float, dec: float, message: str) -> None:
    a = (np.array([1.0, ra]), np.array([1.0, dec]))
    with pytest.raises(DataError, match=message):
        run(tmp_path, a, (np.ones(1), np.ones(1)), 1.0)


def test_missing_positions_are_left_out_when_asked(tmp_path: Path) -> None:
    a = (np.array([np.nan, 1.0, 2.0]), np.array([1.0, 1.0, np.nan]))
    description, out = run(tmp_path, a, (np.ones(1), np.ones(1)), 1.0, skip_missing=True)
    assert pairs(out) == [(1, 0)]
    assert (description["skipped_a"], description["unmatched_a"]) == (2, 0)


def test_a_missing_column(tmp_path: Path) -> None:
    one = (np.ones(1), np.ones(1))
    with pytest.raises(DataError, match="column TARGET_RA: absent"):
        run(tmp_path, one, one, 1.0, columns_b=Columns(position=("TARGET_RA", "dec")))


class TestEpochs:
    def test_moving_is_what_astropy_does(self) -> None:
        rng = np.random.default_rng(9)
        ra, dec = random_positions(200, rng)
        motion_ra, motion_dec = rng.normal(0, 500, (2, 200))
        stars = SkyCoord(
            ra * units.deg,
            dec * units.deg,
            distance=np.full(200, 100.0) * units.pc,
            pm_ra_cosdec=motion_ra * units.mas / units.yr,
            pm_dec=motion_dec * units.mas / units.yr,
            radial_velocity=np.zeros(200) * units.km / units.s,
            obstime=Time(2000.0, format="jyear", scale="tcb"),
        )
        later = stars.apply_space_motion(Time(2021.5, format="jyear", scale="tcb"))
        vectors = move(ra, dec, motion_ra, motion_dec, np.full(200, 21.5))
        expected = unit_vectors(later.ra.deg, later.dec.deg)
        assert np.abs(vectors - expected).max() * 206265 < 1e-5  # arcsec

    def test_moved_rows_match(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(10)
        ra, dec = random_positions(50, rng)
        motion = rng.normal(0, 400, (2, 50))
        motion[:, 0] = np.nan
        separation, angle = np.hypot(*motion) / 1000 * 5.5, np.arctan2(*motion)
        b = offset(ra, dec, np.nan_to_num(separation), np.nan_to_num(angle))
        first = write_positions(
            tmp_path / "a.parquet", ra, dec, "a", pm1=motion[0], pm2=motion[1], when=np.full(50, 2016)
        )
        second = write_positions(tmp_path / "b.parquet", *b, prefix="b")
        tables = CatalogueTable(first), CatalogueTable(second)
        out = tmp_path / "m.parquet"
        description = match_by_position(
            *tables,
            str(out),
            0.01,
            columns_a=Columns(proper_motion=("pm1", "pm2"), epoch="when"),
            columns_b=Columns(epoch=2021.5),
            progress=io.StringIO(),
        )
        assert description["matched"] == 50
        assert description["epoch"] == 2021.5
        assert (description["moved_a"], description["moved_b"], description["unmoved_rows_a"]) == (True, False, 1)
        still = match_by_position(*tables, str(out), 0.01, progress=io.StringIO())
        assert still["matched"] < 5

    @pytest.mark.parametrize(
        ("a", "b", "epoch", "expected"),
        [
            (Columns(epoch=2000.0), Columns(epoch=2015.0), None, None),
            (Columns(proper_motion=("x", "y"), epoch=2000.0), Columns(epoch=2015.0), None, 2015.0),
            (Columns(epoch=2010.0), Columns(proper_motion=("x", "y"), epoch="e"), None, 2010.0),
            (
                Columns(proper_motion=("x", "y"), epoch="e"),
                Columns(proper_motion=("x", "y"), epoch=2015.0),
                None,
                2015.0,
            ),
            (Columns(proper_motion=("x", "y"), epoch="e"), Columns(), 2016.0, 2016.0),
        ],
    )
    def test_to_which_epoch(self, a: Columns, b: Columns, epoch: float | None, expected: float | None) -> None:
        assert match_epoch(a, b, epoch) == expected

    @pytest.mark.parametrize(
        ("a", "b", "epoch"),
        [
            (Columns(), Columns(), 2016.0),
            (Columns(proper_motion=("x", "y")), Columns(epoch=2015.0), None),
            (Columns(proper_motion=("x", "y"), epoch=2000.0), Columns(), None),
            (Columns(proper_motion=("x", "y"), epoch=2000.0), Columns(epoch="e"), None),
        ],
    )
    def test_epochs_that_leave_it_open(self, a: Columns, b: Columns, epoch: float | None) -> None:
        with pytest.raises(ConfigError, match="epoch"):
            match_epoch(a, b, epoch)


def test_margins_reach_far_enough() -> None:
    """Whatever lies within the margin of a row lies in a pixel that has a copy of it: on all borders of the coarse
    pixels, where fine pixels are most distorted too."""
    rng = np.random.default_rng(11)
    margin = 200.0
    sky = Sky(fine_order(margin))
    ra, dec = corners_and_edges(3)
    ra, dec = offset(ra, dec, rng.uniform(0, 2 * margin, len(ra)), rng.uniform(0, 2 * np.pi, len(ra)))
    rows = sky.pixels(unit_vectors(ra, dec))
    coarse, row = sky.copies(rows, 3)
    copies = set(zip(row.tolist(), coarse.tolist(), strict=True))
    assert len(copies) == len(row)
    for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
        there = sky.coarsen(sky.pixels(unit_vectors(*offset(ra, dec, margin, angle))), 3)
        assert all(couple in copies for couple in enumerate(there.tolist()))

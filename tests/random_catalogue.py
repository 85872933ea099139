"""Catalogues of random positions, in any number of rows: for tests, and to measure a match by hand.

``python -m tests.random_catalogue FOLDER 8000000 1000000`` writes ``a.parquet`` and ``b.parquet`` of so many rows; the
rows of b are rows of a, scattered by 0.2 arcsec (in each coordinate) and shuffled.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

_PIECE = 1 << 18
_SCATTER_ARCSEC = 0.2


def write_positions(path: Path, ra: Any, dec: Any, prefix: str = "", **columns: Any) -> Path:
    """A catalogue with the keys ``PREFIX0``, ``PREFIX1``, ...; positions in degrees."""
    keys = [f"{prefix}{row}" for row in range(len(ra))]
    pq.write_table(pa.table({"key": keys, "ra": np.asarray(ra), "dec": np.asarray(dec), **columns}), path)
    return path


def random_positions(rows: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(rows,) right ascensions and declinations, deg, uniform over the sky."""
    return rng.uniform(0, 360, rows), np.degrees(np.arcsin(rng.uniform(-1, 1, rows)))


def offset(
    ra: np.ndarray, dec: np.ndarray, separation_arcsec: np.ndarray | float, angle: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Positions at a separation and position angle (rad, from north to east), exact at the poles, too."""
    longitude, latitude = np.radians(ra), np.radians(dec)
    distance = np.radians(np.asarray(separation_arcsec) / 3600)
    z = np.sin(latitude) * np.cos(distance) + np.cos(latitude) * np.sin(distance) * np.cos(angle)
    east = np.sin(distance) * np.sin(angle)
    outward = np.cos(latitude) * np.cos(distance) - np.sin(latitude) * np.sin(distance) * np.cos(angle)
    return (
        np.degrees(longitude + np.arctan2(east, outward)) % 360,
        np.degrees(np.arctan2(z, np.hypot(east, outward))),
    )


def main(arguments: Sequence[str]) -> None:
    """Write both catalogues, piece by piece."""
    folder, rows_a, rows_b = Path(arguments[0]), int(arguments[1]), int(arguments[2])
    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("key", pa.string()), ("ra", pa.float64()), ("dec", pa.float64())])
    every = rows_a // rows_b
    with pq.ParquetWriter(folder / "a.parquet", schema) as a, pq.ParquetWriter(folder / "b.parquet", schema) as b:
        for start in range(0, rows_a, _PIECE):
            rng = np.random.default_rng(start)
            numbers = np.arange(start, min(start + _PIECE, rows_a))
            ra, dec = random_positions(len(numbers), rng)
            a.write_table(pa.table([[f"a{number}" for number in numbers], ra, dec], schema=schema))
            chosen = rng.permutation(np.flatnonzero((numbers % every == 0) & (numbers // every < rows_b)))
            near = offset(
                ra[chosen],
                dec[chosen],
                _SCATTER_ARCSEC * rng.rayleigh(size=len(chosen)),
                rng.uniform(0, 2 * np.pi, len(chosen)),
            )
            b.write_table(pa.table([[f"b{number}" for number in numbers[chosen]], *near], schema=schema))


if __name__ == "__main__":
    main(sys.argv[1:])

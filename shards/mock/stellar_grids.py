"""Light of stars and of the gas that they ionise, as tables over age and metallicity; where the tables come from."""

from __future__ import annotations

import os
import tempfile
import zipfile
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np

from astroclip_dist.errors import DataError
from shards.mock.bruzual_charlot import find_grid_folder, read_bruzual_charlot
from shards.mock.builtin_grid import make_builtin_grid
from shards.mock.grid_axes import RECIPE_VERSION, GridTables

GridName = Literal["auto", "bc03", "builtin"]


@dataclass(frozen=True)
class StellarGrid:
    """Tables per solar mass formed, with the interpolation in metallicity and ionisation.

    Args:
        name: "bc03" or "builtin".
        tables: see :class:`GridTables`.
    """

    name: str
    tables: GridTables

    def population(self, history: np.ndarray, log_metallicity: float) -> tuple[np.ndarray, float]:
        """A composite population.

        Args:
            history: (ages,), mass formed in each age bin (any unit).
            log_metallicity: log10 Z / Zsun.

        Returns:
            (wavelengths,) luminosity density in Lsun / angstrom, and the stellar mass that is left, both per unit of
            ``history``'s mass (Lsun per Msun formed).
        """
        low, weight = self._metallicity(log_metallicity)
        tables = self.tables
        # einsum, not BLAS: a BLAS sum may depend on its thread count, and galaxies must not.
        light = np.einsum("a,aw->w", (history * (1 - weight)).astype(np.float32), tables.light[low])
        light += np.einsum("a,aw->w", (history * weight).astype(np.float32), tables.light[low + 1])
        surviving = tables.surviving[low] * (1 - weight) + tables.surviving[low + 1] * weight
        return light, float((history * surviving).sum())

    def nebula(self, history: np.ndarray, log_metallicity: float, log_ionisation: float) -> np.ndarray:
        """(lines,), luminosities (Lsun) of the emission lines around the stars younger than 10 Myr in ``history``."""
        low, weight = self._metallicity(log_metallicity)
        tables = self.tables
        place = np.interp(log_ionisation, tables.log_ionisation, np.arange(len(tables.log_ionisation)))
        below = min(int(place), len(tables.log_ionisation) - 2)
        above_weight = place - below
        young = history[: tables.lines.shape[2]]
        lines = np.zeros(tables.lines.shape[3])
        for step, ionisation_weight in ((below, 1 - above_weight), (below + 1, above_weight)):
            for row, metal_weight in ((low, 1 - weight), (low + 1, weight)):
                lines += ionisation_weight * metal_weight * np.einsum("a,al->l", young, tables.lines[step, row])
        return lines

    def _metallicity(self, log_metallicity: float) -> tuple[int, float]:
        axis = self.tables.log_metallicity
        place = float(np.interp(log_metallicity, axis, np.arange(len(axis))))
        low = min(int(place), len(axis) - 2)
        return low, place - low


@cache
def load_stellar_grid(name: GridName = "auto") -> StellarGrid:
    """The grid by name; "auto" takes BC03 where its files are installed, else the built-in one.

    Raises:
        DataError: "bc03" is asked for and not installed, or no such name.
    """
    if name not in ("auto", "bc03", "builtin"):
        raise DataError("stellar grid", name, "Use auto, bc03 or builtin.")
    folder = find_grid_folder()
    if name == "builtin" or (name == "auto" and folder is None):
        return StellarGrid("builtin", make_builtin_grid())
    if folder is None:
        raise DataError(
            "stellar grid bc03", "its files are not installed", "Run: pip install 'astroclip-dist[stellar]'."
        )
    return StellarGrid("bc03", _cached_bruzual_charlot(folder))


def _cached_bruzual_charlot(folder: Path) -> GridTables:
    """The rebinned tables from the user's cache; made anew, and stored if possible, when absent or damaged."""
    cache_root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    path = cache_root / "astroclip-dist" / f"bc03-recipe{RECIPE_VERSION}.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            return GridTables(**{field.name: stored[field.name] for field in fields(GridTables)})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        tables = read_bruzual_charlot(folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as aside:
            np.savez(aside, **{field.name: getattr(tables, field.name) for field in fields(GridTables)})
        Path(aside.name).replace(path)
    except OSError:
        pass  # a read-only home costs the next start a few seconds, nothing else
    return tables

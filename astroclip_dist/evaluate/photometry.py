"""The baseline that a representation must beat: what three magnitudes say."""

from __future__ import annotations

import numpy as np

from astroclip_dist.embed.table import EmbeddingTable

BANDS = ("g", "r", "z")
_ZERO_POINT = 22.5  # of nanomaggies


def colours_and_magnitude(table: EmbeddingTable) -> np.ndarray | None:
    """g - r, r - z and r of each galaxy, (rows, 3) float64, NaN where one is missing.

    From ``mag_*``, or from ``flux_*`` in nanomaggies; None where the catalogue has neither.
    """
    names = table.columns.column_names
    if all(f"mag_{band}" in names for band in BANDS):
        g, r, z = (table.numbers(f"mag_{band}") for band in BANDS)
    elif all(f"flux_{band}" in names for band in BANDS):
        fluxes = [table.numbers(f"flux_{band}") for band in BANDS]
        g, r, z = (_ZERO_POINT - 2.5 * np.log10(np.where(flux > 0, flux, np.nan)) for flux in fluxes)
    else:
        return None
    return np.stack([g - r, r - z, r], axis=1)

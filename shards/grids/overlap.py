"""How much of each input bin lies in each output bin: the geometry under all resampling, of spectra and of images."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array

_SLIVER = 1e-6


def overlap_lengths(input_edges: np.ndarray, output_edges: np.ndarray) -> csr_array:
    """Lengths of the intersections of two partitions of a line.

    Args:
        input_edges: (n + 1,) increasing.
        output_edges: (m + 1,) increasing.

    Returns:
        (m, n) sparse: the length that output bin j and input bin i share, in the unit of the edges.
    """
    edges = np.unique(np.concatenate([input_edges, output_edges]))
    middle = 0.5 * (edges[1:] + edges[:-1])
    source = np.searchsorted(input_edges, middle) - 1
    target = np.searchsorted(output_edges, middle) - 1
    n, m = len(input_edges) - 1, len(output_edges) - 1
    # Grids that agree but for rounding would share slivers, and a masked pixel would get its neighbour's value.
    wide = np.diff(edges) > _SLIVER * np.diff(input_edges).min()
    shared = wide & (source >= 0) & (source < n) & (target >= 0) & (target < m)
    return csr_array((np.diff(edges)[shared], (target[shared], source[shared])), shape=(m, n))

"""Values to bins: by the quantiles of a sample (scGPT), or by fixed edges (BulkRNABert)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def quantile_bins(
    values: NDArray[np.floating], bins: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Bins of the expressed genes of one sample, as scGPT defines them (Cui et al., Nature Methods 2024, eq. 2).

    Edges are the quantiles of the values at ``linspace(0, 1, bins - 1)``; bin 0 is for genes that are not expressed. A
    value on several edges at once, which happens to small counts, falls into one of the bins between them at random.
    Only ranks matter: counts and their logarithms have the same bins.

    Parameters
    ----------
    values
        ``[n]`` values above 0, at least one.
    bins
        Number of bins, that for 0 included; at least 3.
    generator
        Decides between coinciding edges.

    Returns
    -------
    ``[n]`` numbers from 1 to ``bins - 1``.
    """
    edges = np.quantile(values, np.linspace(0, 1, bins - 1))
    upper = np.digitize(values, edges)
    lower = np.digitize(values, edges, right=True)
    return np.ceil(upper - generator.random(len(values)) * (upper - lower)).astype(np.int64)


def fixed_bins(values: NDArray[np.floating], bins: int) -> NDArray[np.int64]:
    """Bins of values that were scaled to the unit interval: ``linspace(0, 1, bins)`` are the left edges.

    Returns
    -------
    Numbers from 0 to ``bins - 1``; values above 1 are in the last bin.
    """
    return np.clip(np.digitize(values, np.linspace(0, 1, bins)) - 1, 0, bins - 1)

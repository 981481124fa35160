"""Order statistics of columns from counts alone: how many values lie at or below a threshold, bisected.

A federation cannot sort the values of all its patients, but it can add up how many of them lie at or below a
threshold. Cantelli's inequality bounds where a quantile lies by mean and standard deviation; every round of
counts halves that range.
"""

from __future__ import annotations

import numpy as np

from equipoise.datasets.omics.statistics import Sums, TableSums, moments, unbounded

#: Rounds of counts; each halves the range in which the order statistic lies (2^-40 of it remains).
ROUNDS = 40


def order_statistic_from_counts(table: TableSums, rank: np.ndarray | float, *, share: bool) -> np.ndarray:
    """[G] the value of every column that ``rank`` of its values do not exceed.

    Parameters
    ----------
    table
        Answers with counts; NaN is not counted.
    rank
        Number of values, 1 or more, or, with ``share``, their share in (0, 1).
    share
        What ``rank`` is.

    Returns
    -------
    numpy.ndarray
        The smallest threshold with at least that many values at or below it, up to 2^-40 of the range that mean and
        standard deviation allow; 0 for a column without values.
    """
    count = len(table.columns)
    gaps, (low, high) = np.full(count, np.nan), unbounded(count)
    mean = moments(table, np.zeros(count), low, high, gaps).mean
    sums = moments(table, mean, low, high, gaps)
    wanted = np.maximum(np.ceil(rank * sums.n if share else np.minimum(rank, sums.n)), 1)
    # Cantelli: at most a share of 1 / (1 + k²) lies k standard deviations or more below the mean, and as many above.
    p = np.clip((wanted - 0.5) / np.maximum(sums.n, 1), 1e-9, 1 - 1e-9)
    slack = 1e-9 * (np.abs(sums.mean) + sums.spread)
    low = sums.mean - sums.spread * np.sqrt((1 - p) / p) - slack
    high = sums.mean + sums.spread * np.sqrt(p / (1 - p)) + slack
    for _ in range(ROUNDS):
        middle = (low + high) / 2

        def at_or_below(rows: np.ndarray, threshold: np.ndarray = middle) -> Sums:
            return {"n": (rows <= threshold).sum(axis=0).astype(np.float64)}

        enough = table.total(at_or_below)["n"] >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return high

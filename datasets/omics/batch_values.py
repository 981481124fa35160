"""Tables that carry the batch they were prepared in: by values that only one batch has, or moments of 0 and 1.

A gene's zero counts become one exact number when a table is standardised, and so do gaps when they are imputed. Where
that was done for each study apart, the number is another one in every study: a model reads the study from it without
learning anything about biology. PORPOISE's RNA tells GBM from LGG, LUAD from LUSC and KIRC from KIRP in this way.

Which patients were prepared together is found without labels: two patients belong together if they share several
exact values that are far more frequent than their neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

#: Columns that are looked at, evenly chosen from wider tables.
MAX_COLUMNS = 2000
#: Fewest patients with one value for it to count as repeated.
LEAST_REPEATS = 5
#: How many times as frequent as both neighbours a repeated value must be: rounding alone makes neighbours alike.
DOMINANCE = 5
#: Share of distinct values below which a column holds categories or counts, whose repetitions say nothing.
MIN_DISTINCT = 0.2
#: Fewest repeated values that two patients share when they were prepared together, and their least share of those that
#: the one with fewer has: single coincidences occur.
LEAST_SHARED, LEAST_SHARE = 3, 0.1
#: Fewest patients of a batch.
MIN_BATCH = 10
#: Largest distance from 0 and 1 of means and standard deviations that count as standardised.
ROUNDING = 5e-3


def batches_by_exact_values(rows_NG: np.ndarray) -> np.ndarray:
    """Groups of patients that share no repeated value with each other.

    Parameters
    ----------
    rows_NG
        [N, G], NaN = missing. Columns with few distinct values are left out.

    Returns
    -------
    numpy.ndarray
        [N] index of the batch, the largest first; -1 for patients in none of at least ten patients. All 0 or -1: the
        table does not tell any batches apart.
    """
    marks_NM = _repeated_values(rows_NG)
    found = _connected(marks_NM)
    sizes = np.bincount(found, minlength=1)
    order = np.argsort(-sizes, kind="stable")
    names = np.full(len(sizes), -1)
    names[order] = np.where(sizes[order] >= MIN_BATCH, np.arange(len(order)), -1)
    return names[found]


def _repeated_values(rows_NG: np.ndarray) -> np.ndarray:
    """[N, M] float32, 1 where a patient has the m-th repeated value."""
    width = rows_NG.shape[1]
    columns = np.linspace(0, width - 1, min(width, MAX_COLUMNS)).astype(int)
    marks = []
    for column in columns:
        values = rows_NG[:, column]
        known = values[~np.isnan(values)]
        distinct, counts = np.unique(known, return_counts=True)
        if len(distinct) < max(MIN_DISTINCT * len(known), 2):
            continue
        around = np.concatenate([[0], counts, [0]])
        neighbours = np.maximum(around[:-2], around[2:])
        for value in distinct[(counts >= LEAST_REPEATS) & (counts >= DOMINANCE * neighbours)]:
            marks.append((values == value).astype(np.float32))
    return np.stack(marks, axis=1) if marks else np.zeros((len(rows_NG), 0), np.float32)


def _connected(marks_NM: np.ndarray, at_once: int = 64) -> np.ndarray:
    """[N] index of the connected component; patients are neighbours who share enough marks."""
    found = np.full(len(marks_NM), -1)
    owned_N = marks_NM.sum(axis=1)
    component = 0
    for start in range(len(marks_NM)):
        if found[start] >= 0:
            continue
        found[start] = component
        frontier = [start]
        while frontier:
            some, frontier = frontier[:at_once], frontier[at_once:]
            left = np.flatnonzero(found < 0)
            shared = marks_NM[some] @ marks_NM[left].T
            enough = np.maximum(LEAST_SHARED, LEAST_SHARE * np.minimum(owned_N[some][:, None], owned_N[left]))
            joined = left[(shared >= enough).any(axis=0)]
            found[joined] = component
            frontier += joined.tolist()
        component += 1
    return found


def standardised_cohorts(rows_NG: np.ndarray, cohorts: Sequence[str]) -> list[str]:
    """Cohorts in which at least nine of ten columns have mean 0 and standard deviation 1 to rounding.

    Both standard deviations, of the whole and of a sample, count. Two such cohorts were standardised apart.
    """
    names, result = np.asarray(cohorts), []
    for name in dict.fromkeys(cohorts):
        rows = rows_NG[names == name].astype(np.float64)
        rows = rows[:, ~np.isnan(rows).any(axis=0)]
        if len(rows) < MIN_BATCH or not rows.shape[1]:
            continue
        spread = rows.std(axis=0)
        sample = spread * np.sqrt(len(rows) / (len(rows) - 1))
        unit = np.minimum(abs(spread - 1), abs(sample - 1)) < ROUNDING
        if (unit & (abs(rows.mean(axis=0)) < ROUNDING)).mean() >= 0.9:
            result.append(name)
    return result

"""Comparing many methods over independent data sets: ranks, Friedman's test, Nemenyi's critical difference.

A block of these tests is a *data set*: its patients are in no other block, and every method was trained and tested
within it. Folds, repeats and tasks of one study share patients and are no blocks: under equal methods Friedman's p
fell below .05 in 19 to 98 % of simulated studies that took them as such. :func:`ranking` therefore counts a data set
once, however many folds and tasks it has, and needs three. Methods on one data set are compared by
:mod:`~equipoise.platform.evaluation.multiple_comparisons`.

Sources: Friedman (1937); Nemenyi (1963); Demšar (2006) for both tests over data sets and the diagram.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2, studentized_range

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.metric_definitions import LOWER_IS_BETTER

Floats = NDArray[np.float64]

#: Columns of a table of scores: one row per data set, method, task and metric.
SCORE_COLUMNS = ("dataset", "method", "task", "metric", "value")

#: Data sets below which no test of ranks can find a difference between a few methods.
MIN_DATASETS = 3
#: Data sets below which the critical difference is called too coarse to rank by.
FEW_DATASETS = 10


class Friedman(NamedTuple):
    """Statistic of Friedman's test with its correction for ties, degrees of freedom and p."""

    chi2: float
    df: int
    p: float


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of k methods over N independent data sets, with tests of their differences.

    Parameters
    ----------
    mean_ranks
        By method, best (lowest) first.
    critical_difference
        Distance of mean ranks from which two methods differ at level ``alpha`` (Nemenyi).
    friedman
        Test of the hypothesis that all methods perform equally.
    datasets
        Names of the N data sets.
    cliques
        Maximal groups of two methods or more that cannot be told apart, each best first.
    dropped
        Data sets left out because a method has no value there.
    """

    mean_ranks: pd.Series
    critical_difference: float
    friedman: Friedman
    datasets: tuple[str, ...]
    cliques: tuple[tuple[str, ...], ...]
    alpha: float
    dropped: tuple[str, ...] = ()


def why_no_ranking(datasets: int) -> str:
    """The reason why so few data sets have no test of ranks, as a sentence; empty if there are enough."""
    if datasets >= MIN_DATASETS:
        return ""
    given = "one data set" if datasets == 1 else f"{datasets} data sets"
    return (
        "Friedman's test, Nemenyi's critical difference and their diagram need at least "
        f"{MIN_DATASETS} independent data sets (no patient in two of them, every method trained and tested within "
        f"each); this is {given}. Folds, repeats and tasks share patients and do not count as data sets: taken as "
        "such, they make equal methods differ in 19 to 98 % of simulated studies."
    )


def dataset_table(scores: pd.DataFrame, metric_of: Mapping[str, str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Data sets as rows and methods as columns: mean rank of each method over the tasks of a data set, 1 the best.

    Parameters
    ----------
    scores
        Columns ``SCORE_COLUMNS``.
    metric_of
        Task → the metric it is ranked by; other tasks are left out.

    Returns
    -------
    The table without data sets in which a method has no value, and the names of those.

    Raises
    ------
    DataError
        If a method has two values of a task in a data set.
    """
    wanted = scores[scores["metric"] == scores["task"].map(metric_of)]
    twice = wanted.duplicated(["dataset", "method", "task"])
    if twice.any():
        row = wanted[twice].iloc[0]
        raise DataError(
            f"two values of {row['method']!r} for task {row['task']} in data set {row['dataset']}",
            fix="a data set counts once: give the mean over its folds and repeats",
        )
    lower = wanted["metric"].isin(LOWER_IS_BETTER)
    oriented = wanted.assign(value=np.where(lower, -wanted["value"], wanted["value"]))
    table = oriented.pivot(index=["dataset", "task"], columns="method", values="value")
    table = table[list(dict.fromkeys(scores["method"]))] if len(table) else table
    incomplete = table.isna().any(axis=1).groupby(level="dataset").any()
    ranked = ranks(table).groupby(level="dataset", sort=False).mean()
    ranked = ranked.reindex([name for name in dict.fromkeys(scores["dataset"]) if name in ranked.index])
    keep = ~incomplete.reindex(ranked.index).to_numpy(bool) if len(ranked) else []
    return ranked[keep], tuple(str(name) for name in incomplete.index[incomplete])


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Rank of each method within each row, 1 the best (highest), ties sharing the mean of their ranks."""
    return table.rank(axis=1, ascending=False, method="average")


def friedman_test(table: pd.DataFrame) -> Friedman:
    """Friedman's test over blocks (rows) and methods (columns); NaN if every block is one tie."""
    n, k = table.shape
    ranked = ranks(table).to_numpy()
    ties = sum(float((counts**3 - counts).sum()) for counts in map(_tie_sizes, ranked))
    correction = 1 - ties / (n * k * (k**2 - 1)) if n else 0.0
    if correction <= 0:
        return Friedman(float("nan"), k - 1, float("nan"))
    spread = float(((ranked.mean(0) - (k + 1) / 2) ** 2).sum())
    statistic = 12 * n / (k * (k + 1)) * spread / correction
    return Friedman(statistic, k - 1, float(chi2.sf(statistic, k - 1)))


def critical_difference(methods: int, datasets: int, alpha: float = 0.05) -> float:
    """Nemenyi's difference of mean ranks, q √(k (k + 1) / 6 N), q the studentised range over √2."""
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return q * float(np.sqrt(methods * (methods + 1) / (6 * datasets)))


def ranking(scores: pd.DataFrame, metric_of: Mapping[str, str], alpha: float = 0.05) -> Ranking | None:
    """Mean ranks over independent data sets; None with fewer than two methods or :data:`MIN_DATASETS` data sets.

    Parameters
    ----------
    scores, metric_of
        See :func:`dataset_table`. Within a data set methods are ranked by their mean rank over its tasks.
    alpha
        Level of Nemenyi's test.
    """
    table, dropped = dataset_table(scores, metric_of)
    if table.shape[1] < 2 or len(table) < MIN_DATASETS:
        return None
    means = ranks(-table).mean().sort_values(kind="stable")
    distance = critical_difference(table.shape[1], len(table), alpha)
    return Ranking(
        mean_ranks=means,
        critical_difference=distance,
        friedman=friedman_test(-table),
        datasets=tuple(map(str, table.index)),
        cliques=cliques(means, distance),
        alpha=alpha,
        dropped=dropped,
    )


def cliques(mean_ranks: pd.Series, distance: float) -> tuple[tuple[str, ...], ...]:
    """Maximal runs of methods, best first, whose mean ranks lie less than ``distance`` apart."""
    names, values = [str(name) for name in mean_ranks.index], mean_ranks.to_numpy(float)
    spans: list[tuple[int, int]] = []
    for start in range(len(names)):
        end = int(np.searchsorted(values, values[start] + distance, side="left"))
        if end - start > 1 and (not spans or end > spans[-1][1]):
            spans.append((start, end))
    return tuple(tuple(names[start:end]) for start, end in spans)


def ranking_caution(result: Ranking) -> str:
    """Limits of a ranking as evidence, in two or three sentences."""
    k, n = len(result.mean_ranks), len(result.datasets)
    few = " That is coarse: with few data sets, only large differences can be detected." * (
        n < FEW_DATASETS or k > n
    )
    return (
        f"Among {k} methods on {n} independent data sets mean ranks must lie {result.critical_difference:.2f} apart to "
        f"differ at the {100 * result.alpha:g} % level; the largest possible distance is {k - 1}.{few} The absence of "
        "a significant difference does not prove equality."
    )


def _tie_sizes(ranked: Floats) -> Floats:
    return np.unique(ranked, return_counts=True)[1].astype(float)

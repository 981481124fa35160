"""Comparing many methods on the same folds: ranks, Friedman, Nemenyi's critical difference, Holm, P(best).

Everything here works on plain tables, so that runs, trials of a search and rounds of a federation are
compared by the same functions. A table of *scores* has the columns ``SCORE_COLUMNS``: one row per method,
fold, task and metric. Folds of several seeds are told apart by their name (``7/0-1``).

Sources: Demšar (2006) for the tests over several data sets and the diagram; Holm (1979). Blocks (folds of one
study) share patients, which none of these tests takes into account: :func:`ranking_caution` states this in a sentence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, rankdata, studentized_range

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.metric_definitions import LOWER_IS_BETTER

Floats = NDArray[np.float64]

SCORE_COLUMNS = ("method", "fold", "task", "metric", "value")

#: Blocks below which the critical difference is called too coarse to rank by.
FEW_BLOCKS = 10


class Friedman(NamedTuple):
    """Statistic of Friedman's test with its correction for ties, degrees of freedom and p."""

    chi2: float
    df: int
    p: float


@dataclass(frozen=True)
class Ranking:
    """Mean ranks of k methods over N blocks, with tests of their differences.

    Parameters
    ----------
    mean_ranks
        By method, best (lowest) first.
    critical_difference
        Distance of mean ranks from which two methods differ at level ``alpha`` (Nemenyi).
    friedman
        Test of the hypothesis that all methods perform equally.
    blocks
        Number N of (task, fold) blocks.
    tasks, folds
        Number of tasks and of folds they come from.
    cliques
        Maximal groups of two methods or more that cannot be told apart, each best first.
    dropped
        Blocks left out because a method has no value there, as ``task, fold``.
    """

    mean_ranks: pd.Series
    critical_difference: float
    friedman: Friedman
    blocks: int
    tasks: int
    folds: int
    cliques: tuple[tuple[str, ...], ...]
    alpha: float
    dropped: tuple[str, ...] = ()


def block_table(scores: pd.DataFrame, metric_of: Mapping[str, str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Methods side by side on (task, fold) blocks, oriented so that more is better.

    Parameters
    ----------
    scores
        Columns ``SCORE_COLUMNS``.
    metric_of
        Task → the metric it is ranked by; other tasks are left out.

    Returns
    -------
    Blocks as rows (index task, fold), methods as columns; and the blocks dropped for a missing value.

    Raises
    ------
    DataError
        If a method has two values in a block.
    """
    wanted = scores[scores["metric"] == scores["task"].map(metric_of)]
    twice = wanted.duplicated(["method", "task", "fold"])
    if twice.any():
        row = wanted[twice].iloc[0]
        raise DataError(
            f"two values of {row['method']!r} for task {row['task']}, fold {row['fold']}",
            fix="give runs of different seeds different fold names or method names",
        )
    lower = wanted["metric"].isin(LOWER_IS_BETTER)
    oriented = wanted.assign(value=np.where(lower, -wanted["value"], wanted["value"]))
    table = oriented.pivot(index=["task", "fold"], columns="method", values="value")
    table = table[list(dict.fromkeys(scores["method"]))] if len(table) else table
    incomplete = table.isna().any(axis=1)
    return table[~incomplete], tuple(f"{task}, {fold}" for task, fold in table.index[incomplete])


def ranks(table: pd.DataFrame) -> pd.DataFrame:
    """Rank of each method within each block, 1 the best, ties sharing the mean of their ranks."""
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


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's difference of mean ranks, q √(k (k + 1) / 6 N), q the studentised range over √2."""
    q = float(studentized_range.ppf(1 - alpha, methods, np.inf)) / np.sqrt(2)
    return q * float(np.sqrt(methods * (methods + 1) / (6 * blocks)))


def ranking(scores: pd.DataFrame, metric_of: Mapping[str, str], alpha: float = 0.05) -> Ranking | None:
    """Mean ranks over (task, fold) blocks with the critical difference; None without two methods or a block.

    Parameters
    ----------
    scores, metric_of
        See :func:`block_table`.
    alpha
        Level of Nemenyi's test.
    """
    table, dropped = block_table(scores, metric_of)
    if table.shape[1] < 2 or table.empty:
        return None
    means = ranks(table).mean().sort_values(kind="stable")
    distance = critical_difference(table.shape[1], len(table), alpha)
    return Ranking(
        mean_ranks=means,
        critical_difference=distance,
        friedman=friedman_test(table),
        blocks=len(table),
        tasks=table.index.get_level_values("task").nunique(),
        folds=table.index.get_level_values("fold").nunique(),
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
    k = len(result.mean_ranks)
    few = ""
    if result.blocks < FEW_BLOCKS or k > result.blocks:
        few = " That is coarse: with few blocks, only large differences can be detected."
    return (
        f"Among {k} methods on {result.blocks} blocks ({result.tasks} task{'s' * (result.tasks > 1)}, {result.folds} "
        f"fold{'s' * (result.folds > 1)}) mean ranks must lie {result.critical_difference:.2f} apart to differ at the "
        f"{100 * result.alpha:g} % level; the largest possible distance is {k - 1}.{few} Folds share training patients "
        "and tasks share patients, so blocks are not independent and even a difference beyond the critical one is "
        "less certain than it looks. The absence of a significant difference does not prove equality: add seeds, tasks "
        "or cohorts."
    )


def holm(p: ArrayLike) -> Floats:
    """p values adjusted by Holm's step-down method; NaN stays NaN and is not counted."""
    values = np.asarray(p, float)
    adjusted = np.full(values.shape, np.nan)
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1)
    return adjusted


def best_shares(replicates: Mapping[str, Sequence[Floats]]) -> pd.DataFrame:
    """How often each method is best when patients are resampled.

    Parameters
    ----------
    replicates
        Method → bootstrap replicates ``[R]`` for each task, higher is better; the same draws for all methods.

    Returns
    -------
    Index method; ``p_best`` and ``p_top3``: shares of replicates in which the method's mean rank over tasks is
    the lowest (ties share), and among the three lowest; ``rank_low``, ``rank_high``: 95 % percentile interval of
    its mean rank. NaN if no replicate is defined for all.
    """
    names = list(replicates)
    values_MTR = np.array([np.stack(list(replicates[name])) for name in names])
    values_MTR = values_MTR[:, :, ~np.isnan(values_MTR).any(axis=(0, 1))]
    if not values_MTR.shape[2]:
        return pd.DataFrame(np.nan, index=names, columns=["p_best", "p_top3", "rank_low", "rank_high"])
    mean_MR = rankdata(-values_MTR, axis=0).mean(1)
    best = np.isclose(mean_MR, mean_MR.min(0))
    third = np.sort(mean_MR, axis=0)[min(3, len(names)) - 1]
    low, high = np.quantile(mean_MR, [0.025, 0.975], axis=1)
    return pd.DataFrame(
        {
            "p_best": (best / best.sum(0)).mean(1),
            "p_top3": (mean_MR <= third + 1e-12).mean(1),
            "rank_low": low,
            "rank_high": high,
        },
        index=names,
    )


def _tie_sizes(ranked: Floats) -> Floats:
    return np.unique(ranked, return_counts=True)[1].astype(float)

"""Many methods on one data set: every pair at once by max-T, and the set that cannot be excluded as the best.

Folds, repeats and tasks of one data set share patients, so that they are no blocks for a rank test, and the best of
many methods is no fixed method, so that a test of it against the others is no test. Instead, the differences of all
pairs are drawn together under the hypothesis that they are all zero: a standard normal number per patient times the
influence of the patient on every method, over the square root of a chi² with its degrees of freedom. The largest
|difference / se| of each draw is what the largest of all pairs is compared with. With 1.5 V
(:mod:`~equipoise.platform.evaluation.intervals`) sixteen equal methods gave a false difference in 1.6 to 4.7 % of
simulated studies, Holm against the selected best in 30 to 42 %; ``python -m benchmarks.coverage`` measures it again.

Sources: Westfall and Young (1993) for max-T; Hsu (1984) for multiple comparisons with the best; Mohamad, Goeman and van
Zwet (2019) for ranks from simultaneous comparisons; Hothorn, Bretz and Westfall (2008) for the multivariate t.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

#: Draws of the largest difference.
DRAWS = 4000
#: Differences that are held at once.
_BLOCK = 8_000_000
#: Variance of a difference below which two methods are the same.
_NOTHING = 1e-15


@dataclass(frozen=True)
class Contrasts:
    """Values of M methods on one task, and the directions in which their errors lie.

    Parameters
    ----------
    values
        ``[M]``, higher is better.
    directions
        ``[M, D]``: the squared length of a difference of two rows is the variance of the difference of their values.
    units
        ``[D]``: what a direction belongs to, usually a patient; draws are shared by the tasks of a unit.
    df
        Degrees of freedom of the variances: patients of the rarer class less the number of cells.
    """

    values: Floats
    directions: Floats
    units: tuple[Hashable, ...]
    df: float

    @staticmethod
    def mean(tasks: Sequence["Contrasts"]) -> "Contrasts":
        """The mean over tasks, with the influence of patients who have several."""
        units = {unit: index for index, unit in enumerate(dict.fromkeys(u for t in tasks for u in t.units))}
        directions = np.zeros((len(tasks[0].values), len(units)))
        for task in tasks:
            index = np.array([units[u] for u in task.units], int)
            np.add.at(directions.T, index, task.directions.T / len(tasks))
        values = np.mean([task.values for task in tasks], axis=0)
        return Contrasts(values, directions, tuple(units), min(task.df for task in tasks))


@dataclass(frozen=True)
class AllPairs:
    """Comparison of every pair of methods on one task, corrected for all of them.

    Parameters
    ----------
    names
        The M methods.
    values
        ``[M]``, higher is better.
    se
        ``[M, M]``: standard errors of the differences.
    p
        ``[M, M]``: p of row against column, corrected for all pairs of the task.
    p_joint
        The same, corrected for all pairs of all tasks.
    may_be_best
        ``[M]``: whether a method cannot be excluded as the best.
    critical
        |difference / se| from which a pair of the task differs.
    alpha
        Family-wise level.
    """

    names: tuple[str, ...]
    values: Floats
    se: Floats
    p: Floats
    p_joint: Floats
    may_be_best: NDArray[np.bool_]
    critical: float
    alpha: float

    @cached_property
    def difference(self) -> Floats:
        """``[M, M]``: value of the row less value of the column."""
        return self.values[:, None] - self.values

    @property
    def rank_low(self) -> NDArray[np.int64]:
        """``[M]``: best rank that the comparisons leave possible."""
        return 1 + ((self.p < self.alpha) & (self.difference < 0)).sum(1)

    @property
    def rank_high(self) -> NDArray[np.int64]:
        """``[M]``: worst rank that the comparisons leave possible."""
        return len(self.names) - ((self.p < self.alpha) & (self.difference > 0)).sum(1)

    @property
    def separated(self) -> int:
        """Number of pairs that differ."""
        return int(np.triu((self.p < self.alpha), 1).sum())

    @property
    def best_set(self) -> list[str]:
        """Methods that cannot be excluded as the best, by value."""
        order = np.argsort(-self.values, kind="stable")
        return [self.names[i] for i in order if self.may_be_best[i]]

    @property
    def smallest_detectable(self) -> float:
        """Smallest difference that a pair with the median standard error would need; NaN without two methods apart."""
        errors = self.se[np.triu_indices(len(self.names), 1)]
        errors = errors[errors > 0]
        return float(self.critical * np.median(errors)) if len(errors) else float("nan")

    def matrix(self) -> pd.DataFrame:
        """Corrected p of every pair, methods as rows and columns; NaN on the diagonal."""
        table = pd.DataFrame(self.p, index=list(self.names), columns=list(self.names))
        return table.mask(np.eye(len(self.names), dtype=bool))


def compare_all(
    names: Sequence[str],
    tasks: Mapping[str, Contrasts],
    alpha: float = 0.05,
    seed: int = 0,
    draws: int = DRAWS,
) -> dict[str, AllPairs]:
    """Compare all pairs of methods on every task, and on all tasks jointly.

    Parameters
    ----------
    names
        The M methods.
    tasks
        Task → values and directions of the methods.
    alpha
        Family-wise level.
    seed
        Of the draws.
    draws
        Number of draws.

    Returns
    -------
    Task → comparison. p is (1 + larger draws) / (1 + draws), NaN where two methods differ without any variance.
    """
    if not tasks:
        return {}
    units = {unit: i for i, unit in enumerate(dict.fromkeys(u for t in tasks.values() for u in t.units))}
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(0x6D617854,)))
    index = {name: np.array([units[u] for u in task.units], int) for name, task in tasks.items()}
    se = {name: standard_errors(task.directions) for name, task in tasks.items()}
    largest: dict[str, list[Floats]] = {name: [] for name in tasks}
    one_sided: dict[str, list[Floats]] = {name: [] for name in tasks}
    step = max(1, min(500, _BLOCK // len(names) ** 2))
    for start in range(0, draws, step):
        drawn = rng.normal(size=(min(step, draws - start), len(units)))
        for name, task in tasks.items():
            scale = np.sqrt(rng.chisquare(task.df, len(drawn)) / task.df)
            error_BM = drawn[:, index[name]] @ task.directions.T / scale[:, None]
            t_BMM = _over(error_BM[:, :, None] - error_BM[:, None, :], se[name])
            of_best = t_BMM.max(1)  # [B, M]: how much better than method m another one seems
            one_sided[name].append(of_best)
            largest[name].append(of_best.max(1))
    maxima = {name: np.concatenate(parts) for name, parts in largest.items()}
    joint = np.max(list(maxima.values()), axis=0)
    result = {}
    for name, task in tasks.items():
        difference = task.values[:, None] - task.values
        t_MM = _over(difference, se[name])
        undecided = (se[name] == 0) & (np.abs(difference) > 1e-12)
        excluded_from = np.quantile(np.concatenate(one_sided[name]), 1 - alpha, axis=0)
        result[name] = AllPairs(
            tuple(names),
            task.values,
            se[name],
            np.where(undecided, np.nan, _tail_share(np.abs(t_MM), maxima[name])),
            np.where(undecided, np.nan, _tail_share(np.abs(t_MM), joint)),
            np.asarray(~(t_MM > excluded_from).any(0)),
            float(np.quantile(maxima[name], 1 - alpha)),
            alpha,
        )
    return result


def standard_errors(directions: Floats) -> Floats:
    """``[M, M]`` standard errors of all differences of rows; 0 where rows are the same."""
    gram = directions @ directions.T
    squared = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
    return np.sqrt(np.where(squared > max(_NOTHING, 1e-12 * float(np.diag(gram).max(initial=0))), squared, 0))


def _over(difference: Floats, se: Floats) -> Floats:
    return np.asarray(np.where(se > 0, difference / np.where(se > 0, se, 1), 0))


def _tail_share(t: Floats, maxima: Floats) -> Floats:
    exceeding = len(maxima) - np.searchsorted(np.sort(maxima), t - 1e-12, side="left")
    return np.asarray((1 + exceeding) / (1 + len(maxima)))

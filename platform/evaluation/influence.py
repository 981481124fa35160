"""Influence values: how much each patient moves a metric, from which every variance and paired test is computed.

A metric of a *cell* (the patients of one test fold, or of one cohort in it) gets one influence value per patient,
scaled so that the sum of their squares is the variance of the metric for a fixed model. A mean over cells is linear
in them, and so is the difference of two models or a mean over classes: :class:`CellMean` adds them up patient by
patient.

=====================  ===============================================================================
AUROC                  placements, n - 1 scaling: the sum of squares is the variance of DeLong et al.
mean of patients       deviations, n - 1 scaling: sensitivity, specificity, mean absolute error
anything else          leave-one-out jackknife; closed forms for r, R² and the concordance
=====================  ===============================================================================

A patient whose own influence cannot be told from its cell (the only positive of a fold, the only event) has NaN. In a
mean it stands for its whole cell: the deviation of the cell from the mean of the cells, as survey statistics treat a
stratum with one unit. This is a little conservative, for it contains true differences between cells.

Sources: DeLong, DeLong and Clarke-Pearson (1988); Sun and Xu (2014) for midranks; LeDell, Petersen and van der Laan
(2015) for the mean over folds; Efron and Stein (1981) for the jackknife; Lumley (2010), section 3.2, for lonely units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

#: Elements of the weight matrix of a jackknife that are held at once.
_BLOCK = 2_000_000
#: Events of the pair matrix of a concordance that are held at once.
_EVENTS_AT_ONCE = 512
#: Repeats of a cross-validation from which the spread of their means is part of the variance.
ENOUGH_REPEATS = 3


class Influence(NamedTuple):
    """Value ``[...]`` of a metric and the influence ``[..., N]`` of each patient.

    The sum of squared influences is the variance of the value. NaN: the influence of this patient cannot be told.
    """

    value: Floats
    influence: Floats


def auroc_influence(target: ArrayLike, score: ArrayLike) -> Influence:
    """AUROC of one or many scores of the same patients.

    Parameters
    ----------
    target
        ``[N]`` of 0 and 1.
    score
        ``[..., N]``, higher means more likely positive.

    Notes
    -----
    The placement of a positive is its share of negatives below (ties one half), that of a negative the share of
    positives above. NaN for a class of one patient; a missing class makes everything NaN.

    >>> auroc_influence([0, 0, 1, 1], [0.1, 0.4, 0.3, 0.9]).influence.round(3).tolist()
    [0.177, -0.177, -0.177, 0.177]
    """
    y = np.asarray(target) == 1
    s = np.asarray(score, float)
    m, n = int(y.sum()), int((~y).sum())
    if m == 0 or n == 0:
        return Influence(np.full(s.shape[:-1], np.nan), np.full(s.shape, np.nan))
    among_all = rankdata(s, axis=-1)
    placement = np.empty(s.shape)
    placement[..., y] = (among_all[..., y] - rankdata(s[..., y], axis=-1)) / n
    placement[..., ~y] = 1 - (among_all[..., ~y] - rankdata(s[..., ~y], axis=-1)) / m
    auc = placement[..., y].mean(-1)
    deviation = placement - auc[..., None]
    scale = np.full(y.shape, np.nan)
    for of_class, size in ((y, m), (~y, n)):
        if size > 1:
            scale[of_class] = 1 / np.sqrt(size * (size - 1))
    return Influence(auc, deviation * scale)


def mean_influence(values: ArrayLike, among: ArrayLike | None = None) -> Influence:
    """Mean of one number per patient over the patients of ``among`` (all if None); the others have no influence.

    Sensitivity is the mean of "called positive" among positives, the mean absolute error that of the errors.

    Parameters
    ----------
    values
        ``[N]``.
    among
        ``[N]`` booleans.
    """
    x = np.asarray(values, float)
    chosen = np.ones(x.shape, bool) if among is None else np.asarray(among, bool)
    n = int(chosen.sum())
    influence = np.zeros(x.shape)
    if n == 0:
        return Influence(np.asarray(np.nan), np.full(x.shape, np.nan))
    mean = x[chosen].mean()
    influence[chosen] = (x[chosen] - mean) / np.sqrt(n * (n - 1)) if n > 1 else np.nan
    return Influence(np.asarray(mean), influence)


def pearson_influence(target: ArrayLike, score: ArrayLike) -> Influence:
    """Correlation of Pearson with its leave-one-out jackknife, ``[N]`` against ``[..., N]``."""
    y, x = np.asarray(target, float), np.asarray(score, float)
    n = y.shape[-1]
    dy, dx = y - y.mean(), x - x.mean(-1, keepdims=True)
    shrink = n / (n - 1) if n > 1 else np.nan  # removing a patient moves the mean too
    yy, xx, xy = (dy**2).sum(), (dx**2).sum(-1), (dx * dy).sum(-1)
    without = (xy[..., None] - shrink * dx * dy, xx[..., None] - shrink * dx**2, yy - shrink * dy**2)
    noise = (n * 1e-12) ** 2 * (np.abs(y).max(initial=0) * np.abs(x).max(initial=0)) ** 2
    return _jackknife(_correlation(xy, xx, yy, noise), _correlation(*without, noise))


def r2_influence(target: ArrayLike, score: ArrayLike) -> Influence:
    """Coefficient of determination with its leave-one-out jackknife, ``[N]`` against ``[..., N]``."""
    y, x = np.asarray(target, float), np.asarray(score, float)
    n = y.shape[-1]
    squared = (y - x) ** 2
    total = (y - y.mean()) ** 2
    shrink = n / (n - 1) if n > 1 else np.nan
    residual = squared.sum(-1)
    left = total.sum() - shrink * total
    noise = (1e-12 * np.abs(y).max(initial=0)) ** 2 * n
    return _jackknife(
        1 - _ratio(residual, total.sum() if total.sum() > noise else 0.0),
        1 - _ratio(residual[..., None] - squared, np.where(left > noise, left, 0.0)),
    )


def average_precision_influence(target: ArrayLike, score: ArrayLike) -> Influence:
    """Average precision with its leave-one-out jackknife inside each class, ``[N]`` against ``[N]``.

    Removing a patient changes precision at its own score and below; the sums above and below are cumulative.
    """
    y, s = np.asarray(target) == 1, np.asarray(score, float)
    _, step = np.unique(-s, return_inverse=True)  # distinct scores, the highest first
    gained = np.bincount(step, y).astype(float)
    positives, called = np.cumsum(gained), np.cumsum(np.bincount(step)).astype(float)

    def split(precision: Floats) -> tuple[Floats, Floats]:
        terms = gained * precision
        return np.cumsum(terms) - terms, terms.sum() - np.cumsum(terms)

    above, _ = split(positives / called)
    less = np.maximum(called - 1, 1)  # the highest step may be one patient, whose own term is then 0
    after_positive, after_negative = split((positives - 1) / less)[1], split(positives / less)[1]
    without_positive = above + (gained - 1) * (positives - 1) / less + after_positive
    without_negative = above + gained * positives / less + after_negative
    total = positives[-1] if len(positives) else 0.0
    left_out = np.where(y, _ratio(without_positive[step], total - 1), _ratio(without_negative[step], total))
    value = _ratio((gained * positives / called).sum(), total)
    return _jackknife(value, left_out, y.astype(int))


def concordance_influence(
    time: ArrayLike, event: ArrayLike, risk: ArrayLike, strata: ArrayLike | None = None
) -> Influence:
    """Concordance of Harrell with its leave-one-out jackknife.

    Removing a patient removes its pairs, so that every leave-one-out value follows from counts of pairs per patient.

    Parameters
    ----------
    time, event
        ``[N]``; ``event`` is 1 for an event and 0 for censored.
    risk
        ``[N]``, higher is worse.
    strata
        ``[N]`` integers: only pairs inside a stratum count. One stratum if None.
    """
    t, e, r = np.asarray(time, float), np.asarray(event, float), np.asarray(risk, float)
    s = np.zeros(t.shape, int) if strata is None else np.asarray(strata)
    right_of, pairs_of = np.zeros(t.shape), np.zeros(t.shape)
    (cases,) = np.nonzero(e == 1)
    for start in range(0, len(cases), _EVENTS_AT_ONCE):
        i = cases[start : start + _EVENTS_AT_ONCE]
        pair = ((t[i, None] < t) | ((t[i, None] == t) & (e == 0))) & (s[i, None] == s)
        right = pair * ((r[i, None] > r) + 0.5 * (r[i, None] == r))
        np.add.at(right_of, i, right.sum(1))
        np.add.at(pairs_of, i, pair.sum(1))
        right_of += right.sum(0)
        pairs_of += pair.sum(0)
    right_all, pairs_all = right_of.sum() / 2, pairs_of.sum() / 2
    return _jackknife(_ratio(right_all, pairs_all), _ratio(right_all - right_of, pairs_all - pairs_of))


def jackknife_influence(
    value: Callable[[Floats | None], Floats], patients: int, strata: ArrayLike | None = None
) -> Influence:
    """Leave-one-out jackknife of any metric that takes weights of patients.

    Parameters
    ----------
    value
        ``weight [R, N]`` → ``[R]``, and None → the value itself.
    patients
        Number N.
    strata
        ``[N]`` integers; sizes of strata are fixed by design (a class in stratified folds), so that deviations are
        taken inside each. One stratum if None.
    """
    left_out = np.empty(patients)
    step = max(1, _BLOCK // max(1, patients))
    for start in range(0, patients, step):
        index = np.arange(start, min(start + step, patients))
        weight = np.ones((len(index), patients))
        weight[np.arange(len(index)), index] = 0
        left_out[index] = value(weight)
    return _jackknife(np.asarray(value(None), float), left_out, strata)


def _jackknife(value: ArrayLike, left_out: Floats, strata: ArrayLike | None = None) -> Influence:
    """Influences from leave-one-out values ``[..., N]``: deviations times √((n - 1) / n) inside each stratum."""
    labels = np.zeros(left_out.shape[-1], int) if strata is None else np.asarray(strata)
    influence = np.full(left_out.shape, np.nan)
    for label in np.unique(labels):
        inside = labels == label
        n = int(inside.sum())
        if n > 1:
            part = left_out[..., inside]
            known = ~np.isnan(part)
            count = known.sum(-1, keepdims=True)
            mean = _ratio(np.where(known, part, 0).sum(-1, keepdims=True), count)
            influence[..., inside] = np.sqrt((n - 1) / n) * (mean - part)
    return Influence(np.asarray(value, float), influence)


class Cell(NamedTuple):
    """A metric of one cell: its value, the influence ``[n]`` of each of its patients, and who they are.

    ``patient [n]`` are indices of the sample's patients. ``repeat`` and ``fold`` say whose test patients they are.
    """

    value: float
    influence: Floats
    patient: Ints
    repeat: int = 0
    fold: int = 0


@dataclass(frozen=True)
class CellMean:
    """Mean of a metric over cells, with the influence of every patient on the mean of each repeat.

    Parameters
    ----------
    value
        The mean.
    by_repeat
        ``[S, N]``: influence of each patient on the mean of each of S repeats.
    repeat_means
        ``[S]``.
    fold_means
        ``[J]``: means of the cells of each fold, over all repeats.
    folds
        Disjoint test parts K of a repeat.
    cells
        Number of cells of a repeat.
    """

    value: float
    by_repeat: Floats
    repeat_means: Floats
    fold_means: Floats
    folds: int
    cells: int

    @classmethod
    def of(cls, cells: Sequence[Cell], patients: int) -> "CellMean | None":
        """The plain mean of the cells; None if the influence of a patient cannot be told.

        Parameters
        ----------
        cells
            One or more.
        patients
            Number N of patients of the sample.
        """
        values = np.array([cell.value for cell in cells])
        repeats, repeat_of = np.unique([cell.repeat for cell in cells], return_inverse=True)
        sizes = np.bincount(repeat_of)
        by_repeat = np.zeros((len(repeats), patients))
        tested = np.zeros((len(repeats), patients), int)
        for cell, s in zip(cells, repeat_of, strict=True):
            tested[s][cell.patient] += 1
        for cell, s in zip(cells, repeat_of, strict=True):
            lonely = np.isnan(cell.influence)
            own = cell.influence
            if lonely.any():
                others = values[repeat_of == s]
                if len(others) < 2 or (tested[s][cell.patient[lonely]] > 1).any():
                    return None
                spread = (cell.value - others.mean()) * np.sqrt(len(others) / (len(others) - 1))
                own = np.where(lonely, spread / np.sqrt(lonely.sum()), own)
            by_repeat[s][cell.patient] += own / sizes[s]
        means = np.array([values[repeat_of == s].mean() for s in range(len(repeats))])
        keys, fold_of = np.unique([(c.repeat, c.fold) for c in cells], axis=0, return_inverse=True)
        fold_of = fold_of.reshape(-1)
        fold_means = np.array([values[fold_of == k].mean() for k in range(len(keys))])
        folds = int(np.bincount(np.unique(keys[:, 0], return_inverse=True)[1]).max())
        value = float((sizes * means).sum() / sizes.sum())
        return cls(value, by_repeat, means, fold_means, folds, int(sizes.max()))

    @staticmethod
    def average(parts: Sequence["CellMean"]) -> "CellMean | None":
        """Mean of several metrics of the same patients, such as the classes of a task; None if their folds differ."""
        first = parts[0]
        if any(
            p.by_repeat.shape != first.by_repeat.shape or len(p.fold_means) != len(first.fold_means)
            for p in parts
        ):
            return None
        return CellMean(
            float(np.mean([p.value for p in parts])),
            np.mean([p.by_repeat for p in parts], axis=0),
            np.mean([p.repeat_means for p in parts], axis=0),
            np.mean([p.fold_means for p in parts], axis=0),
            first.folds,
            max(p.cells for p in parts),
        )

    def minus(self, other: "CellMean") -> "CellMean | None":
        """Difference to another model of the same patients and folds; None if their folds differ."""
        if self.by_repeat.shape != other.by_repeat.shape or len(self.fold_means) != len(other.fold_means):
            return None
        return CellMean(
            self.value - other.value,
            self.by_repeat - other.by_repeat,
            self.repeat_means - other.repeat_means,
            self.fold_means - other.fold_means,
            self.folds,
            max(self.cells, other.cells),
        )

    @property
    def repeats(self) -> int:
        """Number S of repeats."""
        return len(self.repeat_means)

    @property
    def ratio(self) -> float:
        """Test over training patients, n_te / n_tr; NaN for a single test part, whose training part is not known.

        1 / (K - 1) for K disjoint folds. Of random splits only the patients who were ever tested are known, so that
        the ratio is an upper bound.
        """
        if self.folds > 1:
            return 1 / (self.folds - 1)
        tested = (self.by_repeat != 0).sum(1)
        others = int((self.by_repeat != 0).any(0).sum()) - tested.mean()
        return float(tested.mean() / others) if others > 0 else float("nan")

    @cached_property
    def variance(self) -> float:
        """V: variance of the mean of a repeat for fixed models, averaged over repeats."""
        return float((self.by_repeat**2).sum(1).mean())

    @cached_property
    def repeated_variance(self) -> float:
        """Variance of the mean over repeats, with the spread that another assignment to folds would bring."""
        return float((self.directions**2).sum())

    @cached_property
    def directions(self) -> Floats:
        """``[N + extra]``: numbers, linear in the scores' influences, whose squares add up to a variance.

        Differences of directions are the directions of differences, so that pairs of many methods are compared
        at once. One repeat: the influences. Two: both, the mean of their variances. Three or more: the mean influence
        of each patient, and (K - 1) times the variance of the repeats' means, for a re-split keeps the share (K - 1)
        / K of the pairs of a training and a test patient. Random splits: influences times √(1 / S + n_te / n_tr), the
        factor of Nadeau and Bengio (2003).
        """
        s = self.repeats
        if s == 1:
            return self.by_repeat[0]
        if self.folds == 1:
            factor = 1 / s + min(self.ratio, 1.0)
            return (np.sqrt(factor / s) * self.by_repeat).ravel()
        if s < ENOUGH_REPEATS:
            return (self.by_repeat / np.sqrt(s)).ravel()
        apart = (self.repeat_means - self.repeat_means.mean()) * np.sqrt((self.folds - 1) / (s - 1))
        return np.concatenate([self.by_repeat.mean(0), apart])


def _correlation(xy: Floats, xx: Floats, yy: ArrayLike, noise: float) -> Floats:
    product = np.maximum(xx, 0) * np.maximum(yy, 0)
    return np.clip(_ratio(xy, np.sqrt(np.where(product > noise, product, 0))), -1, 1)


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Floats:
    """Quotient, NaN where the denominator is 0."""
    bottom = np.asarray(denominator, float)
    safe = np.where(bottom == 0, 1, bottom)
    return np.asarray(np.where(bottom == 0, np.nan, np.asarray(numerator, float) / safe))

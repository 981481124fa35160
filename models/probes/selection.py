"""The penalty of an elastic net, chosen by inner cross-validation on the training cases.

The score of a penalty is the held-out loss per case (half the deviance, for likelihoods) or, under Cox's model, the
cross-validated partial likelihood of Verweij and van Houwelingen (Stat. Med. 12, 1993): the loss of all cases minus
the loss of the cases that the model was fitted on, because the likelihood of a few held-out events by themselves says
little. Both are sums over folds, divided by the number of cases or events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.path import LinearFit, Step, null_model, penalty_grid, walk_path

#: Penalties beyond the best one so far that are still tried; the rest of an L1 path only overfits, slowly.
PATIENCE = 4


@dataclass(frozen=True)
class Choice:
    """A fitted elastic net and how its penalty was chosen.

    Attributes
    ----------
    penalty
        The chosen :math:`\\lambda`.
    fit
        The model of all training cases at that penalty.
    penalties, scores
        ``[L]`` penalties that were tried, descending, and their cross-validated losses; smaller is better.
    null_score
        The score of a model without any column, on the same folds.
    at_edge
        Whether the smallest penalty of the grid was best, so that a wider grid could be better.
    """

    penalty: float
    fit: LinearFit
    penalties: Array
    scores: Array
    null_score: float
    at_edge: bool


def inner_folds(likelihood: Likelihood, rows: ArrayLike, folds: int, seed: int) -> NDArray[np.int64]:
    """``[n]`` fold of each case, spreading classes, or events of each stratum, evenly; -1 for unused cases.

    Parameters
    ----------
    likelihood
        Its ``strata`` say what is spread.
    rows
        ``[n]`` 1 for the cases to use.
    folds, seed
        Number of folds and the seed of their order.
    """
    used = np.flatnonzero(np.asarray(rows) > 0)
    rng = np.random.default_rng(seed)
    strata = likelihood.strata
    order = rng.permutation(used)
    if strata is not None:
        order = order[np.argsort(strata[order], kind="stable")]
    fold = np.full(len(np.asarray(rows)), -1, np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def choose_penalty(
    x: ArrayLike,
    likelihood: Likelihood,
    *,
    l1_ratio: float,
    penalties: ArrayLike | None = None,
    factors: ArrayLike | None = None,
    use: ArrayLike | None = None,
    folds: int | ArrayLike = 4,
    seed: int = 0,
    tolerance: float = 1e-7,
) -> Choice:
    """Choose the penalty with the smallest cross-validated loss, and fit all cases with it.

    Parameters
    ----------
    x, likelihood, l1_ratio, factors
        As in :func:`~equipoise.models.probes.path.walk_path`.
    penalties
        ``[L]`` values to try; :func:`~equipoise.models.probes.path.penalty_grid` if not given. With L1 the path ends
        when :data:`PATIENCE` penalties in a row were no better.
    use
        ``[n]`` 1 for training cases; all if not given.
    folds
        Number of inner folds, or ``[n]`` fold of each case.
    seed
        Of the folds.
    tolerance
        Accuracy of the final fit; models of inner folds are fitted to 1e-4, and at least so.

    Raises
    ------
    ValueError
        If a fold leaves no label (no event) to fit on; use fewer folds.
    """
    x = np.asarray(x, np.float64)
    rows = np.ones(len(x)) if use is None else np.asarray(use, np.float64)
    fold = (
        inner_folds(likelihood, rows, folds, seed) if isinstance(folds, int) else np.asarray(folds, np.int64)
    )
    sets = np.stack([rows * (fold != k) for k in range(fold.max() + 1)] + [rows], axis=1)
    if penalties is None:
        penalties = penalty_grid(x, likelihood, l1_ratio=l1_ratio, factors=factors, use=rows)
    tried = np.sort(np.asarray(penalties, np.float64).ravel())[::-1]
    steps = walk_path(
        x, likelihood, tried, l1_ratio=l1_ratio, factors=factors, use=sets, tolerance=max(tolerance, 1e-4)
    )
    scores: list[float] = []
    everyone = sets.shape[1] - 1
    best = 0
    for step in steps:
        scores.append(_held_out(x, likelihood, sets, step))
        if int(np.argmin(scores)) == len(scores) - 1:
            best, start = len(scores) - 1, step.fit(everyone)
        elif l1_ratio and len(scores) - 1 - best >= PATIENCE:
            break
    (last,) = walk_path(
        x,
        likelihood,
        tried[best : best + 1],
        l1_ratio=l1_ratio,
        factors=factors,
        use=rows,
        tolerance=tolerance,
        start=start,
    )
    return Choice(
        penalty=float(tried[best]),
        fit=last.fit(),
        penalties=tried[: len(scores)],
        scores=np.array(scores),
        null_score=null_score(likelihood, sets),
        at_edge=best == len(tried) - 1,
    )


def null_score(likelihood: Likelihood, sets: Array) -> float:
    """Cross-validated loss of a model without any column; ``sets`` are the folds' cases and, last, all cases."""
    intercepts = null_model(likelihood, sets)
    step = Step(np.inf, np.zeros((sets.shape[1], 0, likelihood.outputs)), intercepts.T)
    return _held_out(np.zeros((len(sets), 0)), likelihood, sets, step)


def _held_out(x: Array, likelihood: Likelihood, sets: Array, step: Step) -> float:
    """Loss of all cases minus that of the fitted ones, over folds, per case or event."""
    fitted, everyone = sets[:, :-1], sets[:, -1:]
    eta = np.stack([step.fit(k).outputs(x) for k in range(fitted.shape[1])], axis=2)
    whole = np.repeat(everyone, fitted.shape[1], axis=1)
    total = likelihood.at(eta, whole).value * likelihood.counts(whole)
    inside = likelihood.at(eta, fitted).value * likelihood.counts(fitted)
    return float((total - inside).sum() / likelihood.counts(everyone)[0])

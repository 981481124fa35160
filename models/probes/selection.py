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
from equipoise.models.probes.path import LinearFit, Standardised, Step, null_model, penalty_grid, walk_path

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
    fold
        ``[n]`` inner fold of each case; those that are not held out have -1.
    outputs
        ``[n, K, F + 1]`` outputs at the chosen penalty of the models that leave out one inner fold each, and last
        of the one of all training cases.
    """

    penalty: float
    fit: LinearFit
    penalties: Array
    scores: Array
    null_score: float
    at_edge: bool
    fold: NDArray[np.int64]
    outputs: Array


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
    x: ArrayLike | Standardised,
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
    inputs = x if isinstance(x, Standardised) else Standardised(x, factors)
    count = len(inputs.x)
    rows = np.ones(count) if use is None else np.asarray(use, np.float64)
    fold = (
        inner_folds(likelihood, rows, folds, seed) if isinstance(folds, int) else np.asarray(folds, np.int64)
    )
    sets = np.stack([rows * (fold != k) for k in range(fold.max() + 1)] + [rows], axis=1)
    if penalties is None:
        penalties = penalty_grid(inputs.x, likelihood, l1_ratio=l1_ratio, factors=inputs.factors, use=rows)
    tried = np.sort(np.asarray(penalties, np.float64).ravel())[::-1]
    # A ridge converges quadratically, so that its models of all cases are accurate at once.
    rough = max(tolerance, 1e-4) if l1_ratio else tolerance
    scores: list[float] = []
    best: Step | None = None
    for step in walk_path(inputs, likelihood, tried, l1_ratio=l1_ratio, use=sets, tolerance=rough):
        scores.append(_held_out(likelihood, sets, step.outputs))
        at = int(np.argmin(scores))
        if at == len(scores) - 1:
            best = step
        elif l1_ratio and len(scores) - 1 - at >= PATIENCE:
            break
    assert best is not None
    fit = best.fit(sets.shape[1] - 1)
    if l1_ratio:
        again = walk_path(
            inputs, likelihood, [best.penalty], l1_ratio=l1_ratio, use=rows, tolerance=tolerance, start=fit
        )
        fit = next(again).fit()
    best_index = int(np.argmin(scores))
    return Choice(
        penalty=best.penalty,
        fit=fit,
        penalties=tried[: len(scores)],
        scores=np.array(scores),
        null_score=null_score(likelihood, sets),
        at_edge=best_index == len(tried) - 1,
        fold=np.where(rows > 0, fold, -1),
        outputs=best.outputs,
    )


def null_score(likelihood: Likelihood, sets: Array) -> float:
    """Cross-validated loss of a model without any column; ``sets`` are the folds' cases and, last, all cases."""
    intercepts = null_model(likelihood, sets)
    return _held_out(likelihood, sets, np.broadcast_to(intercepts, (len(sets), *intercepts.shape)))


def _held_out(likelihood: Likelihood, sets: Array, outputs: Array) -> float:
    """Loss of all cases minus that of the fitted ones, over folds, per case or event; ``outputs`` are ``[n, K, F]``."""
    fitted, everyone = sets[:, :-1], sets[:, -1:]
    eta = outputs[..., : fitted.shape[1]]
    whole = np.repeat(everyone, fitted.shape[1], axis=1)
    total = likelihood.at(eta, whole).value * likelihood.counts(whole)
    inside = likelihood.at(eta, fitted).value * likelihood.counts(fitted)
    return float((total - inside).sum() / likelihood.counts(everyone)[0])

"""Late fusion of penalised linear models: one per modality, summed with weights that inner held-out outputs chose.

Every modality has a model of its own with a penalty of its own (:mod:`equipoise.models.probes.selection`). The models
that leave out an inner fold predict the cases of that fold; each is put on a common scale by the mean and the standard
deviation of its outputs for the cases that it was fitted on, never for those that it predicts. The weights are the
minimum of the loss of

.. math:: \\eta_i = b_P + \\sum_{m \\in P} w_{Pm} z_{im}, \\quad w \\ge 0

over these held-out outputs z: stacked regression (Wolpert, Neural Networks 5, 1992) with the constraint that makes it
work (Breiman, Machine Learning 24, 1996). There is one set of weights for each pattern P of modalities that a case may
have, so that a case without RNA gets the fusion that would have been made had there never been any RNA.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.path import LinearFit, Standardised, null_model, penalty_grid, walk_path
from equipoise.models.probes.selection import Choice, choose_penalty

#: Ridge on weights: it decides only where held-out outputs separate classes perfectly.
RIDGE = 1e-3
#: Cases of the rarest class, or events, that must have all modalities of a pattern for weights of its own; with fewer
#: the weights come from all cases that have one of them, where an absent modality counts as its mean.
ENOUGH = 10


@dataclass(frozen=True)
class LateFusion:
    """Models of M modalities and the weights of their sum.

    Attributes
    ----------
    fits
        Per modality, the linear model whose outputs for its training cases have mean 0 and standard deviation 1;
        zero for a modality that takes no part.
    penalties
        Per modality, NaN for one that takes no part: too few labels for inner folds.
    weights
        ``[2^M, M]``, 0 or more; row :math:`\\sum_{m \\in P} 2^m` belongs to the modalities P.
    intercepts
        ``[2^M, K]``; 0 under Cox's model.
    gain
        How much lower the loss of the fused held-out outputs is than that of a constant.
    """

    fits: tuple[LinearFit, ...]
    penalties: tuple[float, ...]
    weights: Array
    intercepts: Array
    gain: float


def fuse_late(
    blocks: Sequence[Array],
    factors: Sequence[Array],
    present: NDArray[np.bool_],
    likelihood: Likelihood,
    known: NDArray[np.bool_],
    fold: NDArray[np.int64],
    *,
    l1_ratio: float,
    penalties: int,
) -> LateFusion:
    """Fit every modality alone, and the weights of their sum.

    Parameters
    ----------
    blocks, factors
        Per modality, ``[n, p_m]`` inputs and ``[p_m]`` relative penalties.
    present
        ``[n, M]`` which modalities a case has.
    likelihood, known
        The loss, and ``[n]`` which cases have a label.
    fold
        ``[n]`` inner fold of each labelled case, -1 for the others.
    l1_ratio, penalties
        As in :func:`~equipoise.models.probes.path.penalty_grid`; ``penalties`` is their number.
    """
    count = len(blocks)
    chosen = [
        _choose(x, f, likelihood, fold, known & present[:, m], l1_ratio, penalties)
        for m, (x, f) in enumerate(zip(blocks, factors, strict=True))
    ]
    z = np.stack([_held_out(one, len(known), likelihood.outputs) for one in chosen], axis=1)
    weights, intercepts = np.zeros((1 << count, count)), np.zeros((1 << count, likelihood.outputs))
    takes_part = np.array([one is not None for one in chosen])
    for pattern in range(1 << count):
        has = (pattern >> np.arange(count) & 1).astype(bool) & takes_part
        weights[pattern], intercepts[pattern] = _stack(z, present, likelihood, known, has)
    return LateFusion(
        tuple(
            LinearFit(np.zeros((x.shape[1], likelihood.outputs)), np.zeros(likelihood.outputs))
            if one is None
            else standardised(one.fit, x[known & present[:, m]])
            for m, (x, one) in enumerate(zip(blocks, chosen, strict=True))
        ),
        tuple(np.nan if one is None else one.penalty for one in chosen),
        weights,
        intercepts,
        _gain(z, present, likelihood, known, weights, intercepts) if takes_part.any() else float("nan"),
    )


def standardised(fit: LinearFit, x: Array) -> LinearFit:
    """The model with outputs of mean 0 and standard deviation 1 over these rows; zero if they do not differ."""
    mean, scale = _scale(fit.outputs(x)[:, :, None])
    return LinearFit(fit.weights / scale[0], (fit.intercept - mean[:, 0]) / scale[0])


def fit_one(
    x: Array, factors: Array, likelihood: Likelihood, use: NDArray[np.bool_], penalty: float, l1_ratio: float
) -> LinearFit:
    """The model of one modality at a known penalty, with outputs of mean 0 and standard deviation 1."""
    inputs = Standardised(x, factors)
    step = next(walk_path(inputs, likelihood, [penalty], l1_ratio=l1_ratio, use=use.astype(float)))
    return standardised(step.fit(), x[use])


def _choose(
    x: Array,
    factors: Array,
    likelihood: Likelihood,
    fold: NDArray[np.int64],
    use: NDArray[np.bool_],
    l1_ratio: float,
    penalties: int,
) -> Choice | None:
    """The model of one modality; None where an inner fold would leave no label, or no event, to fit on."""
    rows = use.astype(float)
    sets = np.stack([rows * (fold != k) for k in range(fold.max(initial=0) + 1)] + [rows], axis=1)
    if fold.max(initial=-1) < 1 or not likelihood.counts(sets).all():
        return None
    inputs = Standardised(x, factors)
    grid = penalty_grid(x, likelihood, l1_ratio=l1_ratio, factors=factors, use=rows, count=penalties)
    return choose_penalty(inputs, likelihood, l1_ratio=l1_ratio, penalties=grid, use=rows, folds=fold)


def _held_out(choice: Choice | None, cases: int, outputs: int) -> Array:
    """``[n, K]`` standardised outputs of the model that left a case out; 0 where there is none."""
    z = np.zeros((cases, outputs))
    if choice is None:
        return z
    for k in range(choice.outputs.shape[2] - 1):
        inside = choice.outputs[(choice.fold >= 0) & (choice.fold != k), :, k]
        mean, scale = _scale(inside[:, :, None])
        z[choice.fold == k] = (choice.outputs[choice.fold == k, :, k] - mean[:, 0]) / scale[0]
    return z


def _scale(outputs_nKC: Array) -> tuple[Array, Array]:
    """``[K, C]`` means and ``[C]`` standard deviations (root mean square over K); infinite where nothing differs."""
    spread = np.sqrt(outputs_nKC.var(axis=0).mean(axis=0))
    size = np.abs(outputs_nKC).max(axis=(0, 1), initial=1.0)
    return outputs_nKC.mean(axis=0), np.where(spread > 1e-9 * size, spread, np.inf)


def _stack(
    z_nMK: Array,
    present: NDArray[np.bool_],
    likelihood: Likelihood,
    known: NDArray[np.bool_],
    has: NDArray[np.bool_],
) -> tuple[Array, Array]:
    """``[M]`` weights and ``[K]`` intercepts of a pattern; 0 for modalities outside it."""
    weights, intercept = np.zeros(len(has)), np.zeros(likelihood.outputs)
    everyone = known.astype(float)[:, None]
    if not likelihood.counts(everyone)[0]:
        return weights, intercept
    use = known & present[:, has].all(axis=1)
    if not _enough(likelihood, use):
        use = known & present[:, has].any(axis=1)
    rows = use.astype(float)[:, None]
    if not has.any() or not likelihood.counts(rows)[0]:
        return weights, null_model(likelihood, everyone)[:, 0]
    inputs, m = z_nMK[:, has], int(has.sum())
    offset = null_model(likelihood, rows)[:, 0]

    def objective(theta: Array) -> tuple[float, Array]:
        eta = np.einsum("nmk,m->nk", inputs, theta[:m]) + offset + theta[m:]
        loss = likelihood.at(eta[:, :, None], rows)
        slope = loss.gradient[:, :, 0]
        intercepts = slope.sum(axis=0) if likelihood.intercept else np.zeros(likelihood.outputs)
        gradient = np.r_[np.einsum("nmk,nk->m", inputs, slope) + RIDGE * theta[:m], intercepts]
        return float(loss.value[0]) + RIDGE / 2 * float(theta[:m] @ theta[:m]), gradient

    bounds = [(0, None)] * m + [(None, None)] * likelihood.outputs
    start = np.r_[np.full(m, 1 / m), np.zeros(likelihood.outputs)]
    solved = minimize(
        objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-12, "gtol": 1e-7}
    ).x
    weights[has] = np.maximum(solved[:m], 0)
    return weights, offset + solved[m:]


def _enough(likelihood: Likelihood, use: NDArray[np.bool_]) -> bool:
    """Whether the rarest class, or the events, have :data:`ENOUGH` of these cases."""
    if not likelihood.intercept:
        return bool(likelihood.counts(use[:, None].astype(float))[0] >= ENOUGH)
    strata = likelihood.strata
    if strata is None:
        return bool(use.sum() >= ENOUGH)
    everywhere = np.unique(strata)
    return all(int((strata[use] == label).sum()) >= ENOUGH for label in everywhere)


def _gain(z_nMK, present, likelihood: Likelihood, known, weights: Array, intercepts: Array) -> float:
    """Loss of a constant minus that of the fused held-out outputs, each case with the weights of its pattern."""
    rows = known.astype(float)[:, None]
    pattern = present @ (1 << np.arange(present.shape[1]))
    eta = np.einsum("nmk,nm->nk", z_nMK, weights[pattern] * present) + intercepts[pattern]
    constant = np.broadcast_to(null_model(likelihood, rows)[None], (*eta.shape, 1))
    return float((likelihood.at(constant, rows).value - likelihood.at(eta[:, :, None], rows).value)[0])

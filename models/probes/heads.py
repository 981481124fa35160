"""Between probes and the heads of models: the likelihood of a task, and a fit as weights of its linear head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn, no_grad, tensor

from equipoise.models.batch import TaskHead
from equipoise.models.probes.likelihoods import (
    Array,
    Cox,
    Hazards,
    Likelihood,
    Logistic,
    Softmax,
    SquaredError,
)
from equipoise.models.probes.path import LinearFit


def likelihood_of(
    head: TaskHead,
    target: ArrayLike,
    *,
    class_weights: Sequence[float] | None = None,
    ties: Literal["efron", "breslow"] = "efron",
    cohort: ArrayLike | None = None,
) -> Likelihood:
    """The loss of a task over n cases, as the training loop defines it.

    Parameters
    ----------
    head
        Description of the task.
    target
        ``[n]`` values, or ``[n, 2]`` days and events for survival; anything where a case is never used.
    class_weights
        Weights of the classes, all 1 if not given.
    ties, cohort
        For Cox's model: treatment of ties, and ``[n]`` indices of the cohorts that are the strata of a stratified
        head.

    Raises
    ------
    ValueError
        If a stratified head gets no cohorts.
    """
    values = np.asarray(target, np.float64)
    if head.kind == "regression":
        return SquaredError(values)
    if head.kind == "binary":
        return Logistic(values, class_weights)
    if head.kind == "multiclass":
        return Softmax(values, head.outputs, class_weights)
    if head.edges is not None:
        return Hazards(values[:, 0], values[:, 1], head.edges)
    if head.stratified and cohort is None:
        raise ValueError(
            f"task {head.name!r} is stratified by cohort, and the cohorts of the cases are not given"
        )
    return Cox(values[:, 0], values[:, 1], cohort if head.stratified else None, ties)


def smallest_group(likelihood: Likelihood, use: NDArray[np.bool_]) -> int:
    """Cases among ``use`` of the rarest class that occurs, events, or cases of a number: how many folds they fill."""
    if isinstance(likelihood, Cox):
        return int(likelihood.counts(use[:, None].astype(np.float64))[0])
    if likelihood.strata is None:
        return int(use.sum())
    counts = np.bincount(likelihood.strata[use])
    return int(counts[counts > 0].min(initial=len(use)))


def write_head(layer: nn.Linear, head: TaskHead, fit: LinearFit) -> None:
    """Make a linear head give the outputs of a fit; the logit of a binary task is split evenly between its two."""
    weights, intercept = fit.weights.T, fit.intercept
    if head.kind == "binary":
        weights, intercept = np.concatenate([-weights, weights]) / 2, np.r_[-intercept, intercept] / 2
    with no_grad():
        layer.weight.copy_(tensor(weights))
        layer.bias.copy_(tensor(intercept))


def read_head(layer: nn.Linear, head: TaskHead) -> LinearFit:
    """The fit that a linear head is, in the form of its likelihood: one logit for a binary task."""
    weights, intercept = _float64(layer.weight).T, _float64(layer.bias)
    if head.kind == "binary":
        weights, intercept = weights[:, 1:] - weights[:, :1], intercept[1:] - intercept[:1]
    return LinearFit(weights, intercept)


def _float64(values: Tensor) -> Array:
    return values.detach().cpu().double().numpy()

"""Losses of linear models with first and second derivatives, for many models at once, in float64.

They are the losses of :mod:`equipoise.models.losses` (the tests hold values and gradients against it): squared error,
cross-entropy with class weights, Cox's partial likelihood with ties and strata, discrete-time hazards. A
binary task has **one** logit here, the difference of the two that a network's head has.

Shapes: n cases, K outputs, C models that are fitted side by side (folds, penalties). ``use`` is ``[n, C]``, 1 where a
model is fitted on a case and 0 elsewhere, so that folds share one matrix of inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
#: Positions of rows, columns or models.
Index = NDArray[np.intp] | slice


class Derivatives(Protocol):
    """Value and derivatives of the mean loss at some outputs.

    Attributes
    ----------
    value
        ``[C]`` mean loss of each model over the cases (events, under Cox's model) that it uses.
    gradient
        ``[n, K, C]`` derivative of ``value`` with respect to the outputs.
    diagonal
        ``[n, K, C]`` diagonal of the second derivative, or an upper bound of it.
    """

    @property
    def value(self) -> Array: ...

    @property
    def gradient(self) -> Array: ...

    @property
    def diagonal(self) -> Array: ...

    def curvature(self, direction: Array) -> Array:
        """``[n, K, C]`` second derivative applied to a direction ``[n, K, C]``."""
        ...


class Likelihood(Protocol):
    """A convex loss of the outputs of n cases.

    Attributes
    ----------
    outputs
        K.
    intercept
        Whether the loss changes when a constant is added to all outputs.
    strata
        ``[n]`` integer: what inner folds should spread evenly (class, event within stratum), None for numbers.
    """

    outputs: int
    intercept: bool

    @property
    def strata(self) -> NDArray[np.int64] | None: ...

    def counts(self, use: Array) -> Array:
        """``[C]`` terms of the mean loss: cases, or events under Cox's model."""
        ...

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at outputs ``eta`` ``[n, K, C]``."""
        ...


@dataclass(frozen=True)
class _PerCase:
    """Derivatives of a loss that is a sum over cases; ``second`` is [n, K, C], the Hessian's diagonal."""

    value: Array
    gradient: Array
    diagonal: Array

    def curvature(self, direction: Array) -> Array:
        return self.diagonal * direction


class SquaredError:
    """Mean squared error (no factor 1/2), as of :class:`~equipoise.models.losses.TaskLosses`.

    Parameters
    ----------
    target
        ``[n]`` values; NaN where a case is never used.
    """

    outputs, intercept = 1, True

    def __init__(self, target: ArrayLike) -> None:
        self.target = np.nan_to_num(np.asarray(target, np.float64))

    @property
    def strata(self) -> None:
        """Numbers have none."""

    def counts(self, use: Array) -> Array:
        """``[C]`` cases."""
        return use.sum(axis=0)

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at outputs ``[n, 1, C]``."""
        share = (use / np.maximum(self.counts(use), 1))[:, None]
        error = eta - self.target[:, None, None]
        value = (share * error**2).sum(axis=(0, 1))
        return _PerCase(value, 2 * share * error, np.broadcast_to(2 * share, eta.shape))


class Logistic:
    """Binary cross-entropy of one logit.

    Parameters
    ----------
    target
        ``[n]`` 0 or 1; NaN where a case is never used.
    class_weights
        Weights of class 0 and 1. The weighted sum is divided by the number of cases, as in the training loop.
    """

    outputs, intercept = 1, True

    def __init__(self, target: ArrayLike, class_weights: Sequence[float] | None = None) -> None:
        self.target = np.nan_to_num(np.asarray(target, np.float64))
        self.weight = np.asarray(class_weights or (1.0, 1.0), np.float64)[self.target.astype(int)]

    @property
    def strata(self) -> NDArray[np.int64]:
        """Classes."""
        return self.target.astype(np.int64)

    def counts(self, use: Array) -> Array:
        """``[C]`` cases."""
        return use.sum(axis=0)

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at logits ``[n, 1, C]``."""
        share = (self.weight[:, None] * use / np.maximum(self.counts(use), 1))[:, None]
        y = self.target[:, None, None]
        tail = np.exp(-np.abs(eta))
        probability = np.where(eta >= 0, 1.0, tail) / (1 + tail)
        value = (share * (np.maximum(eta, 0) + np.log1p(tail) - y * eta)).sum(axis=(0, 1))
        return _PerCase(value, share * (probability - y), share * probability * (1 - probability))


class Softmax:
    """Cross-entropy of K logits; the intercepts of K classes are defined up to a constant.

    Parameters
    ----------
    target
        ``[n]`` class index; NaN where a case is never used.
    classes
        K.
    class_weights
        As in :class:`Logistic`.
    """

    intercept = True

    def __init__(self, target: ArrayLike, classes: int, class_weights: Sequence[float] | None = None) -> None:
        self.outputs = classes
        self.target = np.nan_to_num(np.asarray(target, np.float64)).astype(int)
        self.weight = np.asarray(class_weights or [1.0] * classes, np.float64)[self.target]
        self.one_hot = np.eye(classes)[self.target][:, :, None]

    @property
    def strata(self) -> NDArray[np.int64]:
        """Classes."""
        return self.target.astype(np.int64)

    def counts(self, use: Array) -> Array:
        """``[C]`` cases."""
        return use.sum(axis=0)

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at logits ``[n, K, C]``."""
        share = (self.weight[:, None] * use / np.maximum(self.counts(use), 1))[:, None]
        top = eta.max(axis=1, keepdims=True)
        exp = np.exp(eta - top)
        total = exp.sum(axis=1, keepdims=True)
        log_total = np.log(total) + top
        own = (eta * self.one_hot).sum(axis=1, keepdims=True)
        return _SoftmaxDerivatives(
            (share * (log_total - own)).sum(axis=(0, 1)),
            share * (exp / total - self.one_hot),
            exp / total,
            share,
        )


@dataclass(frozen=True)
class _SoftmaxDerivatives:
    value: Array
    gradient: Array
    probability: Array
    share: Array

    @property
    def diagonal(self) -> Array:
        return self.share * self.probability * (1 - self.probability)

    def curvature(self, direction: Array) -> Array:
        p = self.probability
        mean = (p * direction).sum(axis=1, keepdims=True)
        return self.share * p * (direction - mean)


class Hazards:
    """Discrete-time survival (:mod:`equipoise.models.hazards`): binary cross-entropy over the intervals lived in.

    Parameters
    ----------
    time, event
        ``[n]`` days, and 1 where the event was seen; NaN where a case is never used.
    edges
        K - 1 edges between the intervals, in days.
    """

    intercept = True

    def __init__(self, time: ArrayLike, event: ArrayLike, edges: Sequence[float]) -> None:
        self.outputs = len(edges) + 1
        self.event = np.nan_to_num(np.asarray(event, np.float64))
        interval = np.searchsorted(
            np.asarray(edges), np.nan_to_num(np.asarray(time, np.float64)), side="right"
        )
        steps = np.arange(self.outputs)
        self.lived = (steps <= interval[:, None]).astype(np.float64)[:, :, None]
        self.here = (steps == interval[:, None]).astype(np.float64)[:, :, None] * self.event[:, None, None]

    @property
    def strata(self) -> NDArray[np.int64]:
        """Events and censored cases."""
        return self.event.astype(np.int64)

    def counts(self, use: Array) -> Array:
        """``[C]`` cases."""
        return use.sum(axis=0)

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at logits of hazards ``[n, K, C]``."""
        share = self.lived * (use / np.maximum(self.counts(use), 1))[:, None]
        tail = np.exp(-np.abs(eta))
        hazard = np.where(eta >= 0, 1.0, tail) / (1 + tail)
        value = (share * (np.maximum(eta, 0) + np.log1p(tail) - self.here * eta)).sum(axis=(0, 1))
        return _PerCase(value, share * (hazard - self.here), share * hazard * (1 - hazard))


class Cox:
    """Cox's negative log partial likelihood per event, within strata.

    Parameters
    ----------
    time, event
        ``[n]`` follow-up times in any unit, and 1 where the event was seen; NaN where a case is never used.
    strata
        ``[n]`` labels of strata: only cases of one stratum are compared. One stratum if not given.
    ties
        ``efron`` or ``breslow``, as in :func:`~equipoise.models.cox.cox_partial_likelihood`.

    Notes
    -----
    An event i of group g (cases of one stratum with one time) has the term :math:`\\log q_i - \\eta_i` with
    :math:`q_i = S_g - \\varphi_i T_g`: S sums :math:`e^\\eta` over the risk set, T over the events of the group, and
    :math:`\\varphi_i` is 0 (Breslow) or the rank of the event in its group divided by the group's events (Efron).
    """

    outputs, intercept = 1, False

    def __init__(
        self,
        time: ArrayLike,
        event: ArrayLike,
        strata: ArrayLike | None = None,
        ties: Literal["efron", "breslow"] = "efron",
    ) -> None:
        if ties not in ("efron", "breslow"):
            raise ValueError(f"ties must be 'efron' or 'breslow', not {ties!r}")
        days = np.nan_to_num(np.asarray(time, np.float64))
        seen = np.nan_to_num(np.asarray(event, np.float64))
        labels = (
            np.zeros(len(days), int)
            if strata is None
            else np.unique(np.asarray(strata), return_inverse=True)[1]
        )
        self.order = np.lexsort((-days, labels))
        self.inverse = np.argsort(self.order)
        stratum, sorted_days = labels[self.order], days[self.order]
        new_stratum = np.r_[True, np.diff(stratum) != 0]
        new_group = new_stratum | np.r_[True, np.diff(sorted_days) != 0]
        bounds = np.r_[np.flatnonzero(new_stratum), len(days)]
        self.segments = list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))
        self.first = np.flatnonzero(new_group)
        self.group = np.cumsum(new_group) - 1
        self.last = np.r_[self.first[1:], len(days)] - 1
        self.event = seen[self.order][:, None]
        tied = np.add.reduceat(self.event, self.first, axis=0).max(initial=0) > 1
        self.efron = ties == "efron" and bool(tied)
        # Events of all strata follow one another, so that folds share them evenly over all strata, too.
        self._spread = (seen * (labels.max(initial=0) + 1) + labels).astype(np.int64)

    @property
    def strata(self) -> NDArray[np.int64]:
        """Events and censored cases of each stratum."""
        return self._spread

    def counts(self, use: Array) -> Array:
        """``[C]`` events."""
        return (use[self.order] * self.event).sum(axis=0)

    def at(self, eta: Array, use: Array) -> Derivatives:
        """The loss at log risks ``[n, 1, C]``."""
        return _CoxDerivatives(self, eta[:, 0][self.order], use[self.order])

    def running(self, x: Array) -> Array:
        """Cumulative sums from the longest follow-up down, within strata; sorted rows in and out."""
        out = np.empty_like(x)
        for a, b in self.segments:
            np.cumsum(x[a:b], axis=0, out=out[a:b])
        return out

    def backwards(self, x: Array) -> Array:
        """Cumulative sums from the shortest follow-up up, within strata."""
        out = np.empty_like(x)
        for a, b in self.segments:
            np.cumsum(x[a:b][::-1], axis=0, out=out[a:b][::-1])
        return out

    def grouped(self, x: Array) -> Array:
        """Sums over cases of one stratum and time, for each case of it."""
        return np.add.reduceat(x, self.first, axis=0)[self.group]

    def top(self, s: Array) -> Array:
        """Largest value in its stratum, for each case."""
        out = np.empty_like(s)
        for a, b in self.segments:
            out[a:b] = s[a:b].max(axis=0)
        return out


class _CoxDerivatives:
    """Sorted rows inside; rows of the caller in ``gradient`` and ``curvature``."""

    def __init__(self, cox: Cox, s: Array, use: Array) -> None:
        self.cox = cox
        self.event = cox.event * use
        self.scale = 1 / np.maximum(self.event.sum(axis=0), 1)
        top = cox.top(np.where(use > 0, s, -np.inf))
        top = np.where(np.isfinite(top), top, 0.0)
        self.risk = use * np.exp(np.clip(s - top, -700, 0))
        at_risk = cox.running(self.risk)[cox.last][cox.group]
        self.share: Array | None = None
        q = at_risk
        if cox.efron:
            deaths = cox.grouped(self.event)
            before = np.cumsum(self.event, axis=0) - self.event
            rank = before - before[cox.first][cox.group]
            self.share = np.where(self.event > 0, rank / np.maximum(deaths, 1), 0.0)
            q = at_risk - self.share * cox.grouped(self.event * self.risk)
        dead = self.event > 0
        q = np.where(dead, q, 1.0)
        self.inverse_q = self.event / q
        self.value = (np.where(dead, np.log(q) + top - s, 0.0)).sum(axis=0) * self.scale
        self.hazard = self._spread(self.inverse_q)
        self.gradient = self._unsorted((self.hazard - self.event) * self.scale)

    @property
    def diagonal(self) -> Array:
        """An upper bound: the cumulative hazards."""
        return self._unsorted(self.hazard * self.scale)

    def curvature(self, direction: Array) -> Array:
        cox = self.cox
        v = direction[:, 0][cox.order]
        moved = self.risk * v
        mean = cox.running(moved)[cox.last][cox.group]
        if self.share is not None:
            mean = mean - self.share * cox.grouped(self.event * moved)
        weighted = (
            self.inverse_q * self.inverse_q * mean
        )  # events are 0 or 1, so that inverse_q² = event / q²
        return self._unsorted((v * self.hazard - self._spread(weighted)) * self.scale)

    def _spread(self, per_event: Array) -> Array:
        """Each case's risk times the sum of ``per_event`` over the events in whose risk set it is."""
        cox = self.cox
        total = cox.backwards(per_event)[cox.first][cox.group]
        if self.share is not None:
            total = total - self.event * cox.grouped(self.share * per_event)
        return self.risk * total

    def _unsorted(self, x: Array) -> Array:
        return x[self.cox.inverse][:, None]

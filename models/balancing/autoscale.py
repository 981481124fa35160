"""AutoScale (Yang et al., 2025, arXiv 2508.13979): fixed weights, found in a first phase of the same training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from equipoise.models.balancing.entries import AutoScaleParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.solvers import Array
from equipoise.models.balancing.weighting import Weighting
from equipoise.models.batch import TaskHead


class AutoScale(Weighting):
    r"""Plain weighted sums do as well as other methods where weights bring the gradients to similar size. The gradient
    magnitude similarity (Yu et al. 2020) of two weighted gradients with norms :math:`n_a, n_b` is 1 where they are
    equally long:

    .. math:: \Phi_{ab}(w) = \frac{2 \, w_a n_a \, w_b n_b}{(w_a n_a)^2 + (w_b n_b)^2}, \qquad
              w = \arg\max_w \; \sum_j \sum_{a < b} \Phi_{ab}^{(j)}(w), \qquad \sum_k w_k = T

    over the epochs j of the first phase (``explore_epochs``), n the mean norms of an epoch. In that phase weights are
    those of the epochs so far, 1 in the first one. Afterwards they are fixed, and a step costs a single backward pass.

    Notes
    -----
    The paper's two phases and this metric, one of several that it tried, are from its abstract and public summaries;
    the length of the first phase, windows of one epoch and the exact maximum over them are ours. A task that was in no
    batch of an epoch keeps its weight.
    """

    def __init__(self, params: AutoScaleParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.explore = params.explore_epochs
        self.w = torch.ones(len(heads), dtype=torch.float64)
        self.epochs = torch.zeros(0, len(heads), dtype=torch.float64)
        self._sums = torch.zeros(2, len(heads), dtype=torch.float64)  # norms and steps of this epoch

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """w, of sum T."""
        return self.w

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """Note the norms of a step of the first phase."""
        if len(self.epochs) >= self.explore:
            return
        assert feedback.gram is not None
        norms = feedback.gram.diagonal().clamp(min=0).sqrt().double()
        self._sums += torch.stack([norms, (norms > 0).double()])

    def on_epoch_end(self, mean_losses: Tensor) -> None:
        """New weights from the epochs of the first phase; none after it."""
        if len(self.epochs) >= self.explore:
            return
        seen = self._sums[1] > 0
        self.epochs = torch.cat([self.epochs, (self._sums[0] / self._sums[1])[None]])
        self._sums = torch.zeros_like(self._sums)
        found = torch.from_numpy(most_similar(self.epochs.numpy()))[seen]
        self.w = self.w.clone()
        self.w[seen] = found * (self.w[seen].sum() / found.sum())
        self._say_needs()

    def state_dict(self) -> dict[str, Any]:
        """Weights, mean norms of the epochs of the first phase, and sums of the current one."""
        return {"w": self.w.clone(), "epochs": self.epochs.tolist(), "sums": self._sums.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.w, self._sums = state["w"].clone(), state["sums"].clone()
        self.epochs = torch.tensor(state["epochs"], dtype=torch.float64).reshape(-1, len(self.w))
        self._say_needs()

    def _say_needs(self) -> None:
        self.needs = AutoScaleParams.needs if len(self.epochs) < self.explore else frozenset()


def most_similar(norms: Array) -> Array:
    """``[T]`` weights of sum T for which weighted norms are most similar, from norms ``[epochs, T]``, NaN where
    unknown.

    With x = log w and l = log n, Φ is 1/cosh((x + l)_a − (x + l)_b).
    """
    logs = np.log(norms)
    known = ~np.isnan(logs).all(axis=0)
    chosen = logs[:, known]
    if chosen.shape[1] < 2:
        return np.ones(norms.shape[1])
    first, second = np.triu_indices(chosen.shape[1], 1)
    apart = chosen[:, first] - chosen[:, second]
    measured = ~np.isnan(apart)

    def dissimilarity(x: Array) -> tuple[float, Array]:
        distance = np.where(measured, x[first] - x[second] + apart, 0.0)
        similar = np.where(measured, 1 / np.cosh(np.clip(distance, -300, 300)), 0.0)
        slope = (similar * np.tanh(distance)).sum(axis=0)
        gradient = np.zeros_like(x)
        np.add.at(gradient, first, slope)
        np.add.at(gradient, second, -slope)
        return -float(similar.sum()), gradient

    start = -np.nanmean(chosen, axis=0)
    x = minimize(dissimilarity, start, jac=True, method="BFGS", options={"gtol": 1e-9}).x
    w = np.exp(x - x.max())
    weights = np.full(norms.shape[1], math.nan)
    weights[known] = w / w.mean()
    weights[~known] = 1.0
    result: Array = weights * (len(weights) / weights.sum())
    return result

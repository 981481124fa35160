"""Nash-MTL (Navon et al., ICML 2022, arXiv 2202.01017, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.models.balancing.entries import NashMtlParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import UnitGradients, equilibrium
from equipoise.models.batch import TaskHead


class NashMtl(Aggregator):
    r"""The bargaining solution of tasks that each want :math:`g_k \cdot d` to be large: :math:`d = J^\top a` with

    .. math:: G a = 1 / a, \quad a > 0, \qquad d \leftarrow d \min(1, \text{max\_norm} / \|d\|) .

    Solved every ``every`` steps; between them a is kept.

    Notes
    -----
    The equation is stationarity of the convex :math:`\tfrac12 a^\top G a - \sum \log a_k`, so Newton's method finds
    its only solution; the authors and torchjd go through a sequence of cvxpy programmes (84 to 123 ms), which
    torchjd calls flawed. In units y = n ∘ a it reads C y = 1/y: the direction does not depend on norms of
    gradients at all, and ‖d‖ = √T before clipping, however small gradients become. Opposite gradients have no
    solution; the floor under the eigenvalues of C makes them cancel.
    """

    def __init__(self, params: NashMtlParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.every = params.every
        self.max_norm = params.max_norm
        self.calls = 0
        self.known = np.full(len(heads), np.nan)

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` a, clipped."""
        unit = UnitGradients.of(gram)
        tasks = np.array(context.rows)[unit.rows]
        if len(unit) and (self.calls % self.every == 0 or np.isnan(self.known[tasks]).any()):
            self.known[tasks] = equilibrium(unit.cosines, np.ones(len(unit)), 1.0) / unit.norms
        self.calls += 1
        a = unit.expand(self.known[tasks])
        norm = math.sqrt(max(float(a @ gram @ a), 0.0))
        return a * (self.max_norm / norm) if 0 < self.max_norm < norm else a

    def state_dict(self) -> dict[str, Any]:
        """``[T]`` a of the last solution, NaN for tasks never in one, and how often it was asked for."""
        return {"known": torch.from_numpy(self.known.copy()), "calls": self.calls}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.known = state["known"].double().numpy().copy()
        self.calls = int(state["calls"])

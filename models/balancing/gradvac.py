"""Gradient Vaccine (Wang et al., ICLR 2021, arXiv 2010.05874, algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.models.balancing.entries import GradVacParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import as_array
from equipoise.models.batch import TaskHead

#: Targets above it would ask for multiples of another gradient without bound: they go with tan of the angle.
HIGHEST_TARGET = 0.99


class GradVac(Aggregator):
    r"""Every gradient is turned until it agrees with each other one as much as usual. For each i,
    :math:`\tilde g = g_i`, and for all :math:`j \neq i` in random order, with :math:`\varphi = \cos(\tilde g, g_j)`
    and the target :math:`\hat\varphi_{ij}`, if :math:`\varphi < \hat\varphi_{ij}`,

    .. math:: \tilde g \leftarrow \tilde g + \frac{\|\tilde g\|
                  (\hat\varphi \sqrt{1 - \varphi^2} - \varphi \sqrt{1 - \hat\varphi^2})}
                  {\|g_j\| \sqrt{1 - \hat\varphi^2}} \, g_j ;
              \qquad \hat\varphi_{ij} \leftarrow (1 - \beta) \hat\varphi_{ij} + \beta \varphi

    in either case, with the original :math:`g_j`. The direction is the sum of all :math:`\tilde g`; with targets
    of 0, where they start, it is PCGrad's.

    Notes
    -----
    Own code: torchjd draws the order from the global generator and forgets its targets when a task is absent;
    here a pair keeps its target until both are seen again. A pair with a zero gradient has no cosine and changes
    nothing. β = 0.5 is the libraries' default, 0.01 the paper's in its own experiments.
    """

    def __init__(self, params: GradVacParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.beta = params.beta
        self.target = np.zeros((len(heads), len(heads)))

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]`` coefficients of the sum."""
        G = as_array(gram)
        t, rows = len(G), context.rows
        norms = np.sqrt(G.diagonal())
        generator = context.generator()
        total = np.zeros(t)
        for i in range(t):
            c, products = np.zeros(t), G[i].copy()
            c[i] = 1.0
            others = [j for j in range(t) if j != i]
            for j in (others[k] for k in torch.randperm(t - 1, generator=generator).tolist()):
                length = math.sqrt(max(products @ c, 0.0))
                if length <= 1e-12 * norms[i] or norms[j] == 0:
                    continue
                cosine = min(max(products[j] / (length * norms[j]), -1.0), 1.0)
                known = self.target[rows[i], rows[j]]
                target = min(known, HIGHEST_TARGET)
                if cosine < target:
                    sine, wanted = math.sqrt(1 - cosine**2), math.sqrt(1 - target**2)
                    share = length * (target * sine - cosine * wanted) / (norms[j] * wanted)
                    c[j] += share
                    products += share * G[j]
                self.target[rows[i], rows[j]] = (1 - self.beta) * known + self.beta * cosine
            total += c
        return torch.from_numpy(total)

    def state_dict(self) -> dict[str, Any]:
        """``[T, T]`` targets."""
        return {"target": torch.from_numpy(self.target.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.target = state["target"].double().numpy().copy()

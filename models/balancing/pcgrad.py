"""PCGrad (Yu et al., NeurIPS 2020, arXiv 2001.06782, algorithm 1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import as_array


class PcGrad(Aggregator):
    r"""Every gradient loses what points against another. For each i, :math:`\tilde g = g_i`, and for all
    :math:`j \neq i` in random order

    .. math:: \tilde g \leftarrow \tilde g - \frac{\min(0, \tilde g \cdot g_j)}{\|g_j\|^2} g_j

    with the original :math:`g_j`; the direction is the sum of all :math:`\tilde g`. Gradients stay
    combinations :math:`\tilde g = J^\top c`, hence :math:`\tilde g \cdot g_j = (Gc)_j`: nothing of the size of
    the model is touched.

    Notes
    -----
    Own code: torchjd draws the order from the global generator, which workers do not share.
    """

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``, the sum of all c; ones without a conflict."""
        G = as_array(gram)
        t = len(G)
        if not (G < 0).any():
            return torch.ones(t, dtype=torch.float64)
        generator = context.generator()
        total = np.zeros(t)
        for i in range(t):
            c = np.zeros(t)
            c[i] = 1.0
            for j in torch.randperm(t, generator=generator).tolist():
                product = G[j] @ c
                if j != i and product < 0 and G[j, j] > 0:
                    c[j] -= product / G[j, j]
            total += c
        return torch.from_numpy(total)

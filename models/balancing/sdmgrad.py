"""SDMGrad (Xiao, Ban and Ji, NeurIPS 2023, arXiv 2305.18409, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from equipoise.models.balancing.entries import SdmGradParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.balancing.solvers import as_array, project_on_simplex
from equipoise.models.batch import TaskHead


class SdmGrad(Aggregator):
    r"""The minimum-norm direction, drawn towards the mean gradient, without the bias that the square of a noisy
    gradient has: products are of gradients on two independent batches, :math:`A = J_1 J_2^\top`. From the
    weights w of the last step, ``iterations`` steps of

    .. math:: m \leftarrow \text{momentum} \cdot m + \frac{A (w + \lambda \tilde w)}{r^2}, \qquad
              w \leftarrow \Pi_\text{simplex}(w - \text{lr} \, m)

    with :math:`\tilde w = 1/T` and r the mean of :math:`\sqrt{\max(A_{kk}, 0)}`; then, on a third batch,
    :math:`\text{coefficients} = (w + \lambda \tilde w) / (1 + \lambda)`.

    Notes
    -----
    Own code: 20 iterations of torch calls cost 1 ms. w of absent tasks rests; present ones share what is left.
    """

    def __init__(self, params: SdmGradParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.params = params
        self.w = np.full(len(heads), 1 / len(heads))

    def coefficients(self, gram: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[t]``, of sum 1."""
        if context.cross_gram is None:
            raise ValueError("sdmgrad needs products of gradients on two further batches (cross_gram)")
        A, rows = as_array(context.cross_gram), list(context.rows)
        share = self.w[rows].sum()
        w = self.w[rows] / share if share > 0 else np.full(len(rows), 1 / len(rows))
        pull = self.params.pull / len(rows)
        scale = np.sqrt(np.maximum(A.diagonal(), 0)).mean() ** 2
        momentum = np.zeros(len(rows))
        for _ in range(self.params.iterations if scale > 0 else 0):
            momentum = self.params.momentum * momentum + A @ (w + pull) / scale
            w = project_on_simplex(w - self.params.lr * momentum)
        self.w[rows] = w * share if share > 0 else 0.0
        return torch.from_numpy((w + pull) / (1 + self.params.pull))

    def state_dict(self) -> dict[str, Any]:
        """``[T]`` w."""
        return {"w": torch.from_numpy(self.w.copy())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.w = state["w"].double().numpy().copy()

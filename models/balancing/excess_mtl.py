"""ExcessMTL (He et al., ICML 2024, equations 6, 7 and 9)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import ExcessMtlParams
from equipoise.models.balancing.protocol import Aggregator, StepContext
from equipoise.models.batch import TaskHead

#: Under the root of summed squares, as in the authors' code.
EPS = 1e-7

#: Coordinates at a time: intermediate results stay in the cache.
CHUNK = 1 << 18


class ExcessMtl(Aggregator):
    r"""Tasks far above what they could reach count more, so that label noise, which no training removes, does
    not draw weight. With the diagonal of AdaGrad for the curvature, the excess risk of task k and its weight are

    .. math:: S_k \leftarrow S_k + g_k^2, \qquad E_k = \sum_p g_{kp}^2 / \sqrt{S_{kp} + \epsilon}, \qquad
              w_k \leftarrow \frac{w_k \exp(\eta E_k / E_k^{(0)})}{\sum_j w_j \exp(\eta E_j / E_j^{(0)})}, \qquad
              d = \sum_k w_k g_k

    from w = 1/T, where :math:`E_k^{(0)}` is the mean of the task's first ``warmup`` values, during which its w is
    left alone (1: the authors' code; appendix C.1 of the paper: three epochs).

    Notes
    -----
    Absent tasks keep their weight; those of present ones share what they had, and count in d relative to it.
    State is ``[T, P]``.
    """

    def __init__(self, params: ExcessMtlParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.step_size, self.warmup = params.step_size, params.warmup
        self.squares = torch.zeros(len(heads), 0)
        self.log_w = torch.zeros(len(heads), dtype=torch.float64)
        self.first = torch.zeros(len(heads), dtype=torch.float64)
        self.seen = torch.zeros(len(heads), dtype=torch.int64)

    def direction(self, jacobian: Tensor, losses: Tensor, context: StepContext) -> Tensor:
        """``[P]`` d."""
        if self.squares.shape[1] == 0:
            self.squares = jacobian.new_zeros(len(self.squares), jacobian.shape[1])
        self.squares = self.squares.to(jacobian.device)
        rows = list(context.rows)
        before = torch.logsumexp(self.log_w[rows], 0)
        for i, row in enumerate(rows):
            self._learn(row, self._excess(row, jacobian[i]))
        self.log_w[rows] += before - torch.logsumexp(self.log_w[rows], 0)
        return torch.softmax(self.log_w[rows], 0).to(jacobian) @ jacobian

    def _excess(self, row: int, gradient: Tensor) -> float:
        """E of one task; its squares are counted in."""
        total = gradient.new_zeros((), dtype=torch.float64)
        for part, squares in zip(gradient.split(CHUNK), self.squares[row].split(CHUNK), strict=True):
            square = part.square()
            squares += square
            total += (square / (squares + EPS).sqrt()).sum()
        return float(total)

    def _learn(self, row: int, excess: float) -> None:
        """One step of the logarithm of w, up to normalisation."""
        if excess <= 0:  # the batch says nothing about the task
            return
        self.seen[row] += 1
        if self.seen[row] <= self.warmup:
            self.first[row] += (excess - self.first[row]) / self.seen[row]
        else:
            self.log_w[row] += self.step_size * excess / self.first[row]

    def state_dict(self) -> dict[str, Any]:
        """``[T, P]`` summed squares; ``[T]`` logarithms of weights, baselines and counts."""
        return {
            "squares": self.squares.clone(),
            "log_w": self.log_w.clone(),
            "first": self.first.clone(),
            "seen": self.seen.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.squares, self.log_w = state["squares"].clone(), state["log_w"].clone()
        self.first, self.seen = state["first"].clone(), state["seen"].clone()

"""GradNorm (Chen et al., ICML 2018, arXiv 1711.02257, equations 1 and 2, algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from equipoise.models.balancing.entries import GradNormParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.balancing.weighting import LearnedVector, Weighting, positive
from equipoise.models.batch import TaskHead

#: Weights stay above it: the paper does not say what a negative weight would mean.
FLOOR = 1e-6


class GradNorm(Weighting):
    r"""Weighted gradients shall have norms in proportion to how far their task lags behind. With norms
    :math:`n_k = \|g_k\|` of the unweighted gradients on shared parameters and first seen losses
    :math:`L_k(0)`,

    .. math:: r_k = \frac{L_k / L_k(0)}{\mathrm{mean}_j \, L_j / L_j(0)}, \qquad
              m_k = \mathrm{mean}_j(w_j n_j) \; r_k^\alpha, \qquad
              \min_w \sum_k | w_k n_k - m_k |

    with the targets m held fixed, so that :math:`\partial/\partial w_k = n_k \, \mathrm{sign}(w_k n_k - m_k)`.
    After Adam's step the weights of the present tasks are scaled back to the sum they had; all of them always
    sum to T.

    Notes
    -----
    The paper takes norms on the last shared layer to save a pass; here they are on all shared parameters, the
    diagonal of the Gram matrix that is at hand anyway.
    """

    def __init__(self, params: GradNormParams, heads: Sequence[TaskHead]) -> None:
        super().__init__(params, heads)
        self.alpha = params.alpha
        self.learned = LearnedVector([1.0] * len(heads), lr=params.lr)
        self.first = torch.full((len(heads),), torch.nan, dtype=torch.float64)

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """w, positive, of sum T."""
        return self.learned.values

    def learn(self, losses: Tensor, context: StepContext, feedback: Feedback) -> None:
        """A step of w towards the target norms."""
        assert feedback.gram is not None
        here = context.present
        new = here & self.first.isnan()
        self.first[new] = positive(losses[new].double(), "gradnorm")
        w = self.learned.values
        norms = feedback.gram.diagonal().clamp(min=0).sqrt()
        rate = positive(losses[here].double(), "gradnorm") / self.first[here]
        target = (w * norms)[here].mean() * (rate / rate.mean()) ** self.alpha
        slope = torch.zeros_like(w)
        slope[here] = norms[here] * torch.sign((w * norms)[here] - target)
        self.learned.step(slope, here)
        moved = self.learned.values.clamp(min=FLOOR)
        moved[here] *= w[here].sum() / moved[here].sum()
        self.learned.assign(moved)

    def state_dict(self) -> dict[str, Any]:
        """Weights, their optimiser, and first seen losses."""
        return {"learned": self.learned.state_dict(), "first": self.first.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.learned.load_state_dict(state["learned"])
        self.first = state["first"].clone()

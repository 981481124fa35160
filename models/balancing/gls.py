"""Geometric loss strategy (Chennupati et al., MultiNet++, CVPR workshops 2019, equation 3)."""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.models.balancing.protocol import StepContext
from equipoise.models.balancing.weighting import Weighting, positive


class Gls(Weighting):
    r"""Minimises the geometric mean of the n present losses, whatever their scales:

    .. math:: \bar L = \Big(\prod_k L_k\Big)^{1/n}, \qquad
              w_k = \frac{\partial \bar L}{\partial L_k} = \frac{\bar L}{n L_k}
    """

    def weights(self, losses: Tensor, context: StepContext) -> Tensor:
        """Gradient of the geometric mean, worked out in logarithms."""
        here = context.present
        logs = torch.log(positive(losses[here].double(), "gls"))
        weights = torch.zeros_like(losses, dtype=torch.float64)
        weights[here] = torch.exp(logs.mean() - logs) / max(len(logs), 1)
        return weights

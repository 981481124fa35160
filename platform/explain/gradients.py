r"""Gradient x input and integrated gradients of the tiles of a case.

Sources: Shrikumar et al., "Not just a black box: learning important features through propagating activation
differences" (arXiv 1605.01713); Sundararajan, Taly and Yan, "Axiomatic attribution for deep networks", ICML 2017
(arXiv 1703.01365), equation 1:

.. math:: a_i = (x_i - b_i) \cdot \int_0^1 \nabla_i f\big(b + t (x - b)\big) \, dt .

All tiles go along the path together; a tile's score is the sum over its features. The integral is a Gauss-Legendre
rule, exact for polynomials of degree 2 steps - 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from equipoise.platform.explain.entries import GradientInputParams, IntegratedGradientsParams
from equipoise.platform.explain.explained import TILES_AT_ONCE, WSI, Explained


class GradientInput:
    """Gradient at the case, times the distance of its tiles from the baseline."""

    def __init__(self, params: GradientInputParams) -> None:
        self.params = params

    def scores(self, case: Explained) -> Tensor:
        """``[N]``."""
        x_1ND = case.batch.bags
        _, gradients = case.gradients({WSI: x_1ND})
        return ((x_1ND - baseline_tiles(x_1ND, self.params.baseline)) * gradients[WSI])[0].sum(dim=1)


class IntegratedGradients:
    """The mean gradient between the baseline and the case, times the distance of its tiles from the baseline."""

    def __init__(self, params: IntegratedGradientsParams) -> None:
        self.params = params

    def scores(self, case: Explained) -> Tensor:
        """``[N]``; they sum to :meth:`difference` but for the error of the rule."""
        x_1ND = case.batch.bags
        start = {WSI: baseline_tiles(x_1ND, self.params.baseline)}
        return integrated_gradients(case, {WSI: x_1ND}, start, self.params.steps)[WSI].sum(dim=1)

    def difference(self, case: Explained) -> float:
        """The output of the case minus that of its baseline."""
        start = baseline_tiles(case.batch.bags, self.params.baseline)
        ends = case.value(), case.value(case.repeated({WSI: start}))
        return float(ends[0] - ends[1])


def baseline_tiles(x_1ND: Tensor, name: str) -> Tensor:
    """``[1, N, D]`` what tiles are compared with."""
    return (
        x_1ND.mean(dim=1, keepdim=True).expand_as(x_1ND) if name == "slide_mean" else torch.zeros_like(x_1ND)
    )


def integrated_gradients(
    case: Explained, inputs: Mapping[str, Tensor], start: Mapping[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """Integrated gradients of several inputs that go along one path together.

    Parameters
    ----------
    case
        The case and the output.
    inputs, start
        ``wsi`` → ``[1, N, D]``, modality → ``[1, G]``: the case, and the baseline.
    steps
        Points of the rule.

    Returns
    -------
    dict
        The shapes of the inputs without the first dimension; all values sum to the difference between the outputs.
    """
    found = mean_gradients(case, inputs, start, steps)
    return {name: found[name] * (x - start[name])[0] for name, x in inputs.items()}


def mean_gradients(
    case: Explained, inputs: Mapping[str, Tensor], start: Mapping[str, Tensor], steps: int
) -> dict[str, Tensor]:
    """The mean gradient along the path, parameters as of :func:`integrated_gradients`."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    dtype, device = next(iter(inputs.values())).dtype, case.batch.site.device
    t_S = torch.as_tensor((nodes + 1) / 2, dtype=dtype, device=device)
    w_S = torch.as_tensor(weights / 2, dtype=dtype, device=device)
    distance = {name: x - start[name] for name, x in inputs.items()}
    total = {name: torch.zeros_like(x[0]) for name, x in inputs.items()}
    at_once = max(TILES_AT_ONCE // max(case.tiles, 1), 1)
    for t, w in zip(t_S.split(at_once), w_S.split(at_once), strict=True):
        points = {name: start[name] + _along(t, d) * d for name, d in distance.items()}
        _, gradients = case.gradients(points)
        for name, gradient in gradients.items():
            total[name] += (_along(w, gradient) * gradient).sum(dim=0)
    return total


def _along(values_S: Tensor, like: Tensor) -> Tensor:
    """``[S, 1, …]`` with as many dimensions as ``like``."""
    return values_S.reshape(-1, *[1] * (like.dim() - 1))

"""A small network with ReLU for few patients.

With a survival task of some hundred patients a wide network overfits before it has learned anything. One hidden layer
of 32, much dropout, also on the input, outputs that start near zero and full batches of Cox's exact likelihood are at
parity with a ridge-penalised linear model on the cohorts of PORPOISE (``benchmarks.linear_baselines``).
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class ReluNetwork(nn.Module):
    """``layers`` of Linear → ReLU → dropout.

    Parameters
    ----------
    width
        Columns of the input.
    dim
        Width of the layers and of the output.
    layers
        Number of layers, 1 or more.
    dropout
        Probability of dropout behind every layer.
    """

    def __init__(self, width: int, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        widths = [width, *[dim] * layers]
        self.layers = nn.Sequential(
            *(nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(widths))
        )

    def forward(self, x_BG: Tensor) -> Tensor:
        """``[B, G]`` → ``[B, dim]``."""
        return self.layers(x_BG)

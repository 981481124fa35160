"""Self-normalising networks: wide and few rows, as omics tables are.

Source: Klambauer, Unterthiner, Mayr and Hochreiter, "Self-normalizing neural networks", NeurIPS 2017
(arXiv 1706.02515): SELU, weights drawn with variance 1 / fan-in, alpha dropout, which keeps mean and variance
where ordinary dropout would not. The genomic branch of Pathomic Fusion and Path-GPTOmic is one.
"""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn


class SelfNormalising(nn.Module):
    """``layers`` of Linear → SELU → alpha dropout.

    Parameters
    ----------
    width
        Columns of the input, standardised.
    dim
        Width of the layers and of the output.
    layers
        Number of layers, 1 or more.
    dropout
        Probability of alpha dropout behind every layer.
    """

    def __init__(self, width: int, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        widths = [width, *[dim] * layers]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(lecun_linear(a, b), nn.SELU(), nn.AlphaDropout(dropout))
                for a, b in pairwise(widths)
            )
        )

    def forward(self, x_BG: Tensor) -> Tensor:
        """``[B, G]`` → ``[B, dim]``."""
        return self.layers(x_BG)


def lecun_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with weights of variance 1 / inputs and no bias at the start (section 3 of the paper)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.normal_(layer.weight, std=inputs**-0.5)
    nn.init.zeros_(layer.bias)
    return layer

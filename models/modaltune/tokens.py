"""Modal tokens: a row of a table becomes tokens of the width of the slide encoder's.

Each class is built as ``Tokens(params, shape, modality, width)``, has ``count``, the number of tokens, and maps rows
``[B, G]`` to ``[B, count, width]``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseShape
from equipoise.models.modaltune.entries import LinearTokensParams, PerceptronTokensParams, SnnTokensParams
from equipoise.models.tables.snn import SelfNormalising, lecun_linear


def constant_first(inputs: int, outputs: int, scale: float) -> nn.Linear:
    """A linear layer that starts as a random constant of variance 1 and a part of the row that is ``scale`` as large.

    What stands behind normalises every token. Around a constant that is nearly linear in the row; without one it keeps
    the direction of a token alone, so that of a single covariate only the sign would be left.
    """
    layer = lecun_linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.mul_(scale)
    nn.init.normal_(layer.bias)
    return layer


class LinearTokens(nn.Module):
    """A linear layer: for vectors of a pretrained encoder, components and short tables.

    Parameters
    ----------
    params
        Number of tokens.
    shape, modality
        Widths of the data, and the table that is read.
    width
        Width of a token.
    """

    def __init__(self, params: LinearTokensParams, shape: CaseShape, modality: str, width: int) -> None:
        super().__init__()
        self.count = params.tokens
        self.project = constant_first(shape.omics[modality], params.tokens * width, params.output_scale)

    def forward(self, rows_BG: Tensor) -> Tensor:
        """``[B, count, width]``."""
        return self.project(rows_BG).unflatten(1, (self.count, -1))


class PerceptronTokens(nn.Module):
    """Dropout → Linear → ReLU → dropout → Linear, which starts small: for components of a few hundred patients.

    Parameters
    ----------
    params
        Sizes.
    shape, modality, width
        As of :class:`LinearTokens`.
    """

    def __init__(self, params: PerceptronTokensParams, shape: CaseShape, modality: str, width: int) -> None:
        super().__init__()
        self.count = params.tokens
        self.hidden = nn.Sequential(
            nn.Dropout(params.input_dropout),
            nn.Linear(shape.omics[modality], params.hidden),
            nn.ReLU(),
            nn.Dropout(params.dropout),
        )
        self.project = constant_first(params.hidden, params.tokens * width, params.output_scale)

    def forward(self, rows_BG: Tensor) -> Tensor:
        """``[B, count, width]``."""
        return self.project(self.hidden(rows_BG)).unflatten(1, (self.count, -1))


class SnnTokens(nn.Module):
    """A self-normalising network (Klambauer et al. 2017) → Linear → LayerNorm: for many columns.

    Parameters
    ----------
    params
        Sizes.
    shape, modality, width
        As of :class:`LinearTokens`.
    """

    def __init__(self, params: SnnTokensParams, shape: CaseShape, modality: str, width: int) -> None:
        super().__init__()
        self.count = params.tokens
        self.network = SelfNormalising(shape.omics[modality], params.hidden, params.layers, params.dropout)
        self.project = nn.Linear(params.hidden, params.tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows_BG: Tensor) -> Tensor:
        """``[B, count, width]``."""
        return self.norm(self.project(self.network(rows_BG)).unflatten(1, (self.count, -1)))

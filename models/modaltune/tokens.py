"""Modal tokens: a row of a table becomes tokens of the width of the slide encoder's.

Each class is built as ``Tokens(params, shape, modality, width)``, has ``count``, the number of tokens, and maps rows
``[B, G]`` to ``[B, count, width]``.
"""

from __future__ import annotations

from torch import Tensor, nn

from equipoise.models.batch import CaseShape
from equipoise.models.modaltune.entries import LinearTokensParams, SnnTokensParams
from equipoise.models.tables.snn import SelfNormalising, lecun_linear


class LinearTokens(nn.Module):
    """Linear → LayerNorm: for vectors of a pretrained encoder, components and short tables.

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
        self.project = lecun_linear(shape.omics[modality], params.tokens * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, rows_BG: Tensor) -> Tensor:
        """``[B, count, width]``."""
        return self.norm(self.project(rows_BG).unflatten(1, (self.count, -1)))


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

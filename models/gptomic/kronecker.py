r"""Gated Kronecker product of branches.

Source: Chen et al., "Pathomic Fusion", IEEE TMI 2020 (arXiv 1912.08937), equations 3 to 5, written from the
formulas: every branch is gated by all branches, has a 1 appended, and the product of all of them holds every product of
entries of different branches, of fewer branches and of one alone,

.. math:: h_m = \mathrm{ReLU}(V_m v_m), \quad z_m = \sigma(U_m [v_1; \dots; v_M]), \quad
          o_m = \mathrm{ReLU}(O_m (z_m \odot h_m)), \quad k = [o_1; 1] \otimes \dots \otimes [o_M; 1].

A layer with ReLU and dropout brings k down to ``hidden``, the gated vectors are put beside it (skip connection), and a
second layer follows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.entries import KroneckerFusionParams


class KroneckerFusion(nn.Module):
    """See the module.

    Parameters
    ----------
    params
        Sizes.
    widths
        Branch → width of its vector.
    """

    per_task = False

    def __init__(self, params: KroneckerFusionParams, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.params = params
        self.names, d, total = tuple(widths), params.dim, sum(widths.values())
        self.content = nn.ModuleList(nn.Linear(width, d) for width in widths.values())
        self.gate = nn.ModuleList(nn.Linear(total, d) for _ in widths)
        self.gated = nn.ModuleList(nn.Linear(d, d) for _ in widths)
        self.dropout = nn.Dropout(params.dropout)
        self.reduce = nn.Linear((d + 1) ** len(widths), params.hidden)
        self.mix = nn.Linear(params.hidden + (d + 1) * len(widths), params.hidden)
        self.hidden = params.hidden

    def width(self, head: TaskHead) -> int:
        """``hidden``."""
        return self.hidden

    def columns(self, head: TaskHead) -> dict[str, slice]:
        """None: a product belongs to all branches."""
        return {}

    def forward(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, hidden]``."""
        parts = self.appended(vectors)
        k_BP = self.dropout(kronecker(parts))
        reduced = self.dropout(functional.relu(self.reduce(k_BP)))
        return self.dropout(functional.relu(self.mix(torch.cat([reduced, *parts], dim=1))))

    def appended(self, vectors: Mapping[str, Tensor]) -> list[Tensor]:
        """``[B, dim + 1]`` gated vector of every branch with a 1 appended."""
        together = torch.cat([vectors[name] for name in self.names], dim=1)
        parts = []
        for name, content, gate, gated in zip(self.names, self.content, self.gate, self.gated, strict=True):
            h = functional.relu(content(vectors[name])) * torch.sigmoid(gate(together))
            parts.append(functional.pad(self.dropout(functional.relu(gated(h))), (0, 1), value=1.0))
        return parts


def kronecker(parts: list[Tensor]) -> Tensor:
    """``[B, P]`` Kronecker product of ``[B, p_m]`` rows, the last branch running fastest."""
    product = parts[0]
    for part in parts[1:]:
        product = (product[:, :, None] * part[:, None, :]).flatten(1)
    return product

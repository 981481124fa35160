r"""Fusions: vectors of branches become what the linear heads read.

A fusion is a module that gets branch → ``[B, d]`` vectors, in which an absent branch is a learned token, branch →
``[B]`` presence, and branch → ``[B, K]`` scores of the branches' own heads (empty without them). Its ``width`` is that
of its result for a task; an additive fusion also says which columns belong to which branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.entries import (
    AttentionFusionParams,
    ConcatFusionParams,
    FusionParams,
    LateFusionParams,
)
from equipoise.models.mil.abmil import GatedAttention


class Fusion(Protocol):
    """What the model needs from a fusion, a module.

    Attributes
    ----------
    params
        Of its entry.
    per_task
        Whether its result depends on the task even where the vectors do not: it is made of scores of the branches' own
        heads.
    """

    params: FusionParams
    per_task: bool

    def width(self, head: TaskHead) -> int:
        """Columns of the result for a task."""
        ...

    def columns(self, head: TaskHead) -> dict[str, slice]:
        """Branch → its columns of the result, for an additive fusion; else empty."""
        ...

    def forward(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, width]``."""
        ...


class ConcatFusion(nn.Module):
    r"""Vectors side by side: under a linear head :math:`\theta = W^G G + W^P P + b`.

    Parameters
    ----------
    params
        There are none.
    widths
        Branch → width of its vector.
    """

    per_task = False

    def __init__(self, params: ConcatFusionParams, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.params = params
        self.widths = dict(widths)

    def width(self, head: TaskHead) -> int:
        """The sum of the branches' widths."""
        return sum(self.widths.values())

    def columns(self, head: TaskHead) -> dict[str, slice]:
        """As concatenated."""
        return _spans(self.widths)

    def forward(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, width]``."""
        return torch.cat([vectors[name] for name in self.widths], dim=1)


class LateFusion(nn.Module):
    """Scores of the branches' own heads side by side, 0 for an absent branch; the head is their weighted sum.

    With every branch present and trained together it is ``concat`` with its weights written as a product. Trained
    apart, which is the default, no gradient of the fused loss reaches a branch, so that none can learn at the cost of
    another.

    Parameters
    ----------
    params
        Whether branches are trained apart.
    widths
        Branch → width of its vector.
    """

    per_task = True

    def __init__(self, params: LateFusionParams, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.params, self.apart = params, params.train == "apart"
        self.names = tuple(widths)

    def width(self, head: TaskHead) -> int:
        """As many outputs as all branches have."""
        return len(self.names) * head.outputs

    def columns(self, head: TaskHead) -> dict[str, slice]:
        """As concatenated."""
        return _spans(dict.fromkeys(self.names, head.outputs))

    def forward(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, width]``."""
        parts = []
        for name in self.names:
            score = scores[name].detach() if self.apart else scores[name]
            parts.append(torch.where(present[name][:, None], score, 0.0))
        return torch.cat(parts, dim=1)


class AttentionFusion(nn.Module):
    """Projection of every branch → gated attention over the branches that are present → weighted mean.

    The attention is that of Ilse et al. (arXiv 1802.04712, equation 9), over branches instead of tiles. A case without
    any branch has the mean over its tokens.

    Parameters
    ----------
    params
        Sizes.
    widths
        Branch → width of its vector.
    """

    per_task = False

    def __init__(self, params: AttentionFusionParams, widths: Mapping[str, int]) -> None:
        super().__init__()
        self.params, self.names = params, tuple(widths)
        self.dim = params.dim
        self.project = nn.ModuleList(
            nn.Sequential(nn.Linear(width, params.dim), nn.ReLU(), nn.Dropout(params.dropout))
            for width in widths.values()
        )
        self.attention = GatedAttention(params.dim, params.hidden)

    def width(self, head: TaskHead) -> int:
        """``dim``."""
        return self.dim

    def columns(self, head: TaskHead) -> dict[str, slice]:
        """None: the weights depend on all branches."""
        return {}

    def forward(
        self, vectors: Mapping[str, Tensor], present: Mapping[str, Tensor], scores: Mapping[str, Tensor]
    ) -> Tensor:
        """``[B, dim]``."""
        pairs = zip(self.names, self.project, strict=True)
        h_BME = torch.stack([layer(vectors[name]) for name, layer in pairs], dim=1)
        shown_BM = torch.stack([present[name] for name in self.names], dim=1)
        shown_BM = shown_BM | ~shown_BM.any(dim=1, keepdim=True)
        weights_BM = self.attention(h_BME, shown_BM)
        return (weights_BM[:, None, :].to(h_BME) @ h_BME)[:, 0]


def _spans(widths: Mapping[str, int]) -> dict[str, slice]:
    spans, start = {}, 0
    for name, width in widths.items():
        spans[name] = slice(start, start + width)
        start += width
    return spans

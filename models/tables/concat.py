"""Late fusion by concatenation: one encoder per modality, a learned token where a modality is missing.

A modality becomes an embedding ``[B, dim]``; the fusion turns the embeddings into what the heads read. Other
multi-modal models replace an encoder or the fusion and keep the rest. Slides are pooled by gated attention
(:mod:`equipoise.models.mil.abmil`); tables go through self-normalising networks (:mod:`equipoise.models.tables.snn`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ConcatParams
from equipoise.models.mil.abmil import GatedAttention
from equipoise.models.tables.modality_dropout import ModalityDropout
from equipoise.models.tables.rows import table_of
from equipoise.models.tables.snn import SelfNormalising

#: The modality of tile features, beside the names of tables.
WSI = "wsi"


class BagEncoder(nn.Module):
    """Projection with ReLU and dropout → weighted mean over tiles; any value for a case without tiles."""

    def __init__(self, features: int, dim: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(features, dim), nn.ReLU(), nn.Dropout(dropout))
        self.attention = GatedAttention(dim, hidden)

    def forward(self, batch: CaseBatch) -> Tensor:
        """``[B, dim]``."""
        h_BNE, weights_BN = self.weigh(batch)
        return (weights_BN[:, None, :].to(h_BNE) @ h_BNE)[:, 0]

    def weigh(self, batch: CaseBatch) -> tuple[Tensor, Tensor]:
        """``[B, N, dim]`` projected tiles, and ``[B, N]`` weights of their mean."""
        bags, mask = batch.bags, batch.mask
        if bags.shape[1] == 0:  # no case has a tile: one of zeros keeps shapes and gradients defined
            bags, mask = bags.new_zeros(len(batch), 1, bags.shape[2]), mask.new_zeros(len(batch), 1)
        if batch.tileless:
            mask = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over nothing would be NaN
        h_BNE = self.project(bags)
        return h_BNE, self.attention(h_BNE, mask if batch.padded or batch.tileless else None)


class TableEncoder(nn.Module):
    """A self-normalising network over one table."""

    def __init__(self, modality: str, width: int, dim: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.modality, self.width = modality, width
        self.network = SelfNormalising(width, dim, layers, dropout)

    def forward(self, batch: CaseBatch) -> Tensor:
        """``[B, dim]``."""
        return self.network(table_of(batch, self.modality, self.width))


class Concatenation(nn.Module):
    """Embeddings side by side → Linear → ReLU → dropout."""

    def __init__(self, modalities: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(modalities * dim, dim), nn.ReLU(), nn.Dropout(dropout))

    def forward(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """modality → ``[B, dim]`` become one ``[B, dim]``."""
        return self.network(torch.cat(list(embeddings.values()), dim=1))


class Concat(MultiTaskModel):
    """Encoders of modalities → learned tokens where one is missing → concatenation → linear heads.

    Parameters
    ----------
    params
        Sizes, and the probability with which a modality of a training case is hidden.
    shape
        Widths of the data: a bag encoder if there are tiles, one encoder per table.
    heads
        Tasks.

    Raises
    ------
    ValueError
        If the data have neither tiles nor tables.
    """

    def __init__(self, params: ConcatParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        super().__init__(shape, heads)
        self.build_heads(params.dim)
        encoders: dict[str, nn.Module] = {}
        if shape.features:
            encoders[WSI] = BagEncoder(shape.features, params.dim, params.hidden, params.dropout)
        for name, width in shape.omics.items():
            encoders[name] = TableEncoder(name, width, params.dim, params.layers, params.dropout)
        if not encoders:
            raise ValueError("the data have neither tiles nor tables")
        self.dropout = ModalityDropout(
            params.modality_dropout,
            list(encoders),
            shape,
            heads,
            by_class=params.class_balanced_dropout,
        )
        self.encoders = nn.ModuleDict(encoders)
        self.tokens = nn.ParameterDict({name: 0.02 * torch.randn(params.dim) for name in encoders})
        self.fusion = Concatenation(len(encoders), params.dim, params.dropout)

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The fused vector, the same for every task."""
        return [self.fusion(self.embeddings(batch))] * len(self.task_heads)

    @property
    def has_attention(self) -> bool:
        """Where it reads tiles."""
        return WSI in self.encoders

    def attention(self, batch: CaseBatch) -> dict[str, Tensor]:
        """task → ``[B, N]`` weights of the mean tile, the same for every task."""
        encoder = self.encoders[WSI]
        assert isinstance(encoder, BagEncoder)
        weights_BN = encoder.weigh(batch)[1]
        return {head.name: weights_BN for head in self.task_heads}

    def embeddings(self, batch: CaseBatch) -> dict[str, Tensor]:
        """modality → ``[B, dim]``: the output of its encoder, the learned token where it is missing.

        Every parameter takes part in every batch, possibly with a gradient of zero, so that workers of a data
        parallel run always exchange the same gradients.
        """
        shown_BM = self._shown(batch)
        return {
            name: torch.where(shown_BM[:, i, None], encoder(batch), self.tokens[name])
            for i, (name, encoder) in enumerate(self.encoders.items())
        }

    def presence(self, batch: CaseBatch) -> Tensor:
        """``[B, M]`` bool: which modalities a case has, in the order of the encoders."""
        flags = [batch.mask.any(dim=1) if name == WSI else batch.present[name] for name in self.encoders]
        return torch.stack(flags, dim=1)

    def _shown(self, batch: CaseBatch) -> Tensor:
        """Presence, with modalities hidden at random in training."""
        present_BM = self.presence(batch)
        return self.dropout(batch, present_BM) if self.training else present_BM

    @property
    def hides_modalities(self) -> bool:
        """Whether modalities of training cases are hidden."""
        return self.dropout.hides

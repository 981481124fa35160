"""Heads linear in tables and the mean tile, to be fitted by a solver: the model ``elastic_net`` and baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.mil.mean_pool import mean_tile
from equipoise.models.tables.rows import row_width, tables_of

CLINICAL = "clinical"


class LinearRows(MultiTaskModel):
    """Tables as they are prepared, the mean tile standardised → one linear head per task.

    A case without tiles has the mean of the training cases, and a column of its own says so where tables are read, too.

    Parameters
    ----------
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`.
    clinical_factor
        Penalty of covariates, relative to that of the other columns.

    Raises
    ------
    ValueError
        If the data have neither tiles nor tables.
    """

    rows_are_standardised = True

    tile_mean: Tensor
    tile_spread: Tensor

    def __init__(self, shape: CaseShape, heads: Sequence[TaskHead], clinical_factor: float) -> None:
        super().__init__(shape, heads)
        self.clinical_factor = clinical_factor
        self.widths = dict(shape.omics)
        self.row_width = row_width(self.widths) + shape.features + (self._marks_tileless and 1)
        if not self.row_width:
            raise ValueError("the data have neither tiles nor tables")
        self.build_heads(self.head_width)
        self.register_buffer("tile_mean", torch.zeros(shape.features))
        self.register_buffer("tile_spread", torch.ones(shape.features))

    @property
    def _marks_tileless(self) -> bool:
        return bool(self.features and self.widths)

    @property
    def head_width(self) -> int:
        """What a head reads: the row."""
        return self.row_width

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The same row for every task."""
        parts = [tables_of(batch, self.widths)] if self.widths else []
        if self.features:
            exists_B1 = batch.mask.any(dim=1, keepdim=True)
            tiles_BD = self._means(batch)
            parts.append(torch.where(exists_B1, (tiles_BD - self.tile_mean) / self.tile_spread, 0.0))
            if self._marks_tileless:
                parts.append((~exists_B1).to(tiles_BD))
        return [torch.cat(parts, dim=1)] * len(self.task_heads)

    def prepare(self, batches: Sequence[CaseBatch]) -> None:
        """Standardise the mean tile on training cases."""
        if not self.features:
            return
        means = [self._means(batch)[batch.mask.any(dim=1)] for batch in batches]
        x_ND = torch.cat(means).double()
        if not len(x_ND):
            return
        spread = x_ND.std(dim=0, correction=0)
        self.tile_mean.copy_(x_ND.mean(dim=0))
        self.tile_spread.copy_(
            torch.where(spread > 1e-6 * x_ND.abs().mean(dim=0).clamp(min=1e-6), spread, 1.0)
        )

    @property
    def factors(self) -> np.ndarray:
        """How strongly each column of a row is penalised: covariates by ``clinical_factor``, the others by 1."""
        parts = [
            np.full(width, self.clinical_factor if name == CLINICAL else 1.0)
            for name, width in self.widths.items()
        ]
        factors = np.concatenate([*parts, np.ones(0)])
        return np.r_[factors, np.ones(self.row_width - len(factors))]

    def _means(self, batch: CaseBatch) -> Tensor:
        """``[B, D]`` mean tiles; zero for a case without tiles."""
        if not batch.tileless:
            return mean_tile(batch)
        counts_B1 = batch.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return (batch.bags * batch.mask[:, :, None]).sum(dim=1) / counts_B1

"""Baselines over tables only: what slides add is measured against them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ClinicalParams, OmicsParams
from equipoise.models.tables.relu import ReluNetwork
from equipoise.models.tables.rows import row_width, tables_of
from equipoise.models.tables.snn import SelfNormalising


class TableModel(MultiTaskModel):
    """All tables side by side → ``body`` → linear heads.

    Parameters
    ----------
    shape, heads
        As in :class:`~equipoise.models.base.MultiTaskModel`; tiles are ignored.
    body
        Module from the row of tables to what the heads read, or None: the heads are then linear in the row.
    dim
        Width of what the heads read.

    Raises
    ------
    ValueError
        If there is no table.
    """

    rows_are_standardised = True

    def __init__(self, shape: CaseShape, heads: Sequence[TaskHead], body: nn.Module | None, dim: int) -> None:
        if not shape.omics:
            raise ValueError("the model reads tables, and the data have none")
        super().__init__(shape, heads)
        self.build_heads(dim)
        if body is None:  # convex losses need no random start, which a penalty would have to undo first
            for parameter in self.parameters():
                nn.init.zeros_(parameter)
        self.widths = dict(shape.omics)
        self.body = body

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """The same vector for every task."""
        row_BW = tables_of(batch, self.widths)
        return [row_BW if self.body is None else self.body(row_BW)] * len(self.task_heads)


class Clinical(TableModel):
    """Heads linear in the covariates: logistic, linear or Cox regression, fitted as every other model is.

    Tasks share no parameter, so balancing changes nothing but the scale of their losses.
    """

    def __init__(self, params: ClinicalParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        del params
        super().__init__(shape, heads, None, row_width(shape.omics))


class Omics(TableModel):
    """Heads linear in all omics tables, or over a network that reads them.

    Parameters
    ----------
    params
        ``network: linear`` shares no parameter among tasks; ``network: snn`` and ``relu`` share the whole network.
    shape, heads
        As in :class:`TableModel`.
    """

    def __init__(self, params: OmicsParams, shape: CaseShape, heads: Sequence[TaskHead]) -> None:
        width = row_width(shape.omics)
        if params.network == "linear":
            super().__init__(shape, heads, None, width)
        else:
            super().__init__(shape, heads, _network(params, width), params.dim)
        if params.output_scale != 1:
            with torch.no_grad():
                for parameter in self.heads.parameters():
                    parameter.mul_(params.output_scale)


def _network(params: OmicsParams, width: int) -> nn.Module:
    kind = SelfNormalising if params.network == "snn" else ReluNetwork
    network = kind(width, params.dim, params.layers, params.dropout)
    return nn.Sequential(nn.Dropout(params.input_dropout), network) if params.input_dropout else network

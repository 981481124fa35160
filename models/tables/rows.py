"""Tables of a batch side by side, checked against the widths a model was built for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from equipoise.models.batch import CaseBatch


def table_of(batch: CaseBatch, modality: str, width: int) -> Tensor:
    """``[B, width]`` values of a table, zero for cases that lack it.

    Raises
    ------
    ValueError
        If the batch has no such table or another number of columns.
    """
    x_BG = batch.omics.get(modality)
    if x_BG is None or x_BG.shape[1] != width:
        columns = "none" if x_BG is None else f"{x_BG.shape[1]}"
        raise ValueError(f"{modality}: the model was built for {width} columns, the batch has {columns}")
    return x_BG


def tables_of(batch: CaseBatch, widths: Mapping[str, int]) -> Tensor:
    """``[B, row_width]`` tables side by side; with several tables, one column per table marks its absence.

    An absent table is zero, the training mean of a standardised one; its column of 1 gives the layer above a
    learned offset for it.
    """
    parts = [table_of(batch, modality, width) for modality, width in widths.items()]
    if len(widths) > 1:
        parts.append(torch.stack([~batch.present[m] for m in widths], dim=1).to(parts[0]))
    return torch.cat(parts, dim=1)


def row_width(widths: Mapping[str, int]) -> int:
    """Columns of :func:`tables_of`."""
    return sum(widths.values()) + (len(widths) if len(widths) > 1 else 0)

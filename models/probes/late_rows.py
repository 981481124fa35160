"""Heads of a late fusion: linear models of single modalities, weighted by which modalities a case has."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.probes.heads import write_head
from equipoise.models.probes.late import LateFusion
from equipoise.models.probes.path import LinearFit
from equipoise.models.probes.rows import LinearRows

#: The modality of the mean tile, beside the names of tables.
WSI = "wsi"


class LateRows(LinearRows):
    """Rows of :class:`~equipoise.models.probes.rows.LinearRows`, every modality times its weight → linear heads.

    What a head reads is the row with the columns of each modality times the weight that the task gives it for the
    pattern of modalities that the case has; then those M weights, whose coefficients are the models' intercepts; then
    an indicator of each of the 2^M patterns, whose coefficients are the intercepts of the fusions. Parameters and
    errors as of the base.
    """

    weights: Tensor
    _owner: Tensor

    def __init__(self, shape: CaseShape, heads: Sequence[TaskHead], clinical_factor: float) -> None:
        widths = {**shape.omics, **({WSI: shape.features} if shape.features else {})}
        self.modalities = tuple(widths)
        super().__init__(shape, heads, clinical_factor)
        markers = len(shape.omics) if len(shape.omics) > 1 else 0
        tables = sum(shape.omics.values())
        starts = np.cumsum([0, *shape.omics.values()])[: len(shape.omics)].tolist()
        starts += [tables + markers] if shape.features else []
        #: Modality → its columns of a row; indicators of absence belong to none.
        self.blocks = {
            name: slice(start, start + width)
            for (name, width), start in zip(widths.items(), starts, strict=True)
        }
        count = len(widths)
        owner = torch.full((self.row_width,), count)
        for i, columns in enumerate(self.blocks.values()):
            owner[columns] = i
        self.register_buffer("_owner", owner, persistent=False)
        self.register_buffer("weights", torch.zeros(len(self.task_heads), 1 << count, count))

    @property
    def head_width(self) -> int:
        """Row, weights of the modalities, indicators of the patterns."""
        count = len(self.modalities)
        return self.row_width + count + (1 << count)

    def pool(self, batch: CaseBatch) -> Sequence[Tensor]:
        """A row per task."""
        row_BW = self.rows(batch)
        pattern_B = self.patterns(batch)
        indicator_BP = nn.functional.one_hot(pattern_B, 1 << len(self.modalities)).to(row_BW)
        result = []
        for weights_PM in self.weights:
            gates_BM = weights_PM[pattern_B]
            ended_BM = nn.functional.pad(gates_BM, (0, 1))  # 0 for columns of no modality
            result.append(torch.cat([row_BW * ended_BM[:, self._owner], gates_BM, indicator_BP], dim=1))
        return result

    def rows(self, batch: CaseBatch) -> Tensor:
        """What the models of the modalities are fitted on."""
        return super().pool(batch)[0]

    def presence(self, batch: CaseBatch) -> Tensor:
        """``[B, M]`` bool: which modalities a case has."""
        flags = [batch.mask.any(dim=1) if m == WSI else batch.present[m] for m in self.modalities]
        return torch.stack(flags, dim=1)

    def patterns(self, batch: CaseBatch) -> Tensor:
        """``[B]`` int64: the sum of 2^m over the modalities m of a case."""
        present_BM = self.presence(batch).long()
        return (present_BM << torch.arange(len(self.modalities), device=present_BM.device)).sum(dim=1)

    def write(self, task: int, fusion: LateFusion) -> None:
        """Make the head of a task give the outputs of a fusion."""
        self.weights[task] = torch.from_numpy(fusion.weights).to(self.weights)
        self.write_fits(task, fusion.fits, fusion.intercepts)

    def write_fits(self, task: int, fits: Sequence[LinearFit], intercepts: np.ndarray | None = None) -> None:
        """Replace the models of the modalities, and the intercepts of the patterns where they are given."""
        layer: nn.Linear = self.heads[task]  # type: ignore[assignment]
        head = self.task_heads[task]
        count, outputs = len(self.modalities), fits[0].weights.shape[1]
        row = np.zeros((self.row_width, outputs))
        for columns, fit in zip(self.blocks.values(), fits, strict=True):
            row[columns] = fit.weights
        if intercepts is None:
            kept = layer.weight.detach()[:, self.row_width + count :].T.double().numpy()
            intercepts = kept[:, 1:] - kept[:, :1] if head.kind == "binary" else kept
        table = np.concatenate([row, [fit.intercept for fit in fits], intercepts])
        write_head(layer, head, LinearFit(table, np.zeros(outputs)))

r"""Modalities of training cases that are hidden at random, so that a model learns to do without them.

Who lacks a modality is rarely chance: in TCGA's gliomas hardly a GBM has RNA, and a learned token for what is missing
then gives the class away. With rates per class, a modality m that a share :math:`p_{mk}` of the patients of class k has
is shown in training with the same probability in every class,

.. math:: s_m = (1 - d) \min_{k: p_{mk} > 0} p_{mk},

which hides what a patient of class k has with probability :math:`1 - s_m / p_{mk}`. Nothing else can do that: what is
missing cannot be shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead


class ModalityDropout:
    """Hides modalities of training cases.

    Parameters
    ----------
    rate
        d, how often a modality of a case is hidden.
    names
        Modalities, in the order of the columns of :meth:`__call__`.
    shape, heads
        Of the model.
    by_class
        Whether rates are balanced over the classes of the main task, or over patients with and without an event. Else
        every modality has the same rate, and one that a case has always stays.

    Raises
    ------
    ValueError
        If rates are to be balanced and the shape does not hold the shares of patients that have a modality.
    """

    def __init__(
        self,
        rate: float,
        names: Sequence[str],
        shape: CaseShape,
        heads: Sequence[TaskHead],
        *,
        by_class: bool = False,
    ) -> None:
        self.rate = rate
        self.main = next((head for head in heads if head.main), heads[0])
        self.hidden_MK: Tensor | None = None
        if not by_class:
            return
        if missing := [name for name in names if name not in shape.presence]:
            raise ValueError(
                f"dropout balanced by class needs to know who has {', '.join(missing)}: fit the targets with presence"
            )
        present_MK = torch.tensor([shape.presence[name] for name in names], dtype=torch.float64)
        lowest_M = torch.where(present_MK > 0, present_MK, torch.inf).amin(1, keepdim=True)
        shown_MK = ((1 - rate) * lowest_M / present_MK).clamp(max=1)
        # The last column is for cases without a label: rates of the classes on average.
        hidden_MK = torch.where(present_MK > 0, 1 - shown_MK, 0.0)
        self.hidden_MK = torch.cat([hidden_MK, hidden_MK.mean(1, keepdim=True)], dim=1).float()

    @property
    def hides(self) -> bool:
        """Whether anything is ever hidden."""
        return self.rate > 0 or (self.hidden_MK is not None and bool((self.hidden_MK > 0).any()))

    def __call__(self, batch: CaseBatch, present_BM: Tensor) -> Tensor:
        """``[B, M]`` bool: which modalities of the cases are shown, out of those that are there."""
        if not self.hides:
            return present_BM
        draw_BM = torch.rand(present_BM.shape, device=present_BM.device)
        if self.hidden_MK is not None:
            return present_BM & (draw_BM >= self.hidden_MK.to(draw_BM.device).T[self._classes(batch)])
        draw_BM = draw_BM.masked_fill(~present_BM, -1)
        kept_BM = draw_BM >= self.rate
        kept_BM |= draw_BM == draw_BM.max(dim=1, keepdim=True).values
        return present_BM & kept_BM

    def _classes(self, batch: CaseBatch) -> Tensor:
        """``[B]`` class of the main task, or whether there was an event; the number of classes without a label."""
        assert self.hidden_MK is not None
        target, known_B = batch.targets[self.main.name], batch.label_mask[self.main.name]
        class_B = (target[:, 1] if self.main.kind == "survival" else target).long()
        return torch.where(known_B, class_B, self.hidden_MK.shape[1] - 1)

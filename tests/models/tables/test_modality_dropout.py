"""Rates by class: what is shown in training does not tell the class; simulated, against plain dropout."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.tables.modality_dropout import ModalityDropout

NAMES = ("wsi", "rna")
#: As in TCGA's gliomas: all have slides, of one class a sixth has RNA, of the other almost all.
HAVE = {"wsi": (1.0, 1.0), "rna": (0.165, 0.976)}


def cases(
    n: int = 60_000, *, survival: bool = False, labelled: float = 1.0
) -> tuple[CaseBatch, torch.Tensor]:
    """A batch of ``n`` cases, and who has what."""
    rng = torch.Generator().manual_seed(3)
    y = (torch.rand(n, generator=rng) < 0.4).long()
    have = torch.tensor([HAVE[name] for name in NAMES])
    present = torch.rand(n, 2, generator=rng) < have.T[y]
    target = torch.stack([torch.ones(n), y.float()], dim=1) if survival else y.float()
    known = torch.rand(n, generator=rng) < labelled
    blank = torch.zeros(n, 1, 1), torch.ones(n, 1, dtype=torch.bool), torch.zeros(n, 1, 2, dtype=torch.int32)
    site = torch.zeros(n, dtype=torch.int64)
    return CaseBatch(*blank, {}, {}, {"y": target}, {"y": known}, site), present


def auroc(shown: torch.Tensor, y: np.ndarray) -> float:
    """Of a logistic regression on what is shown: presence alone."""
    fitted = LogisticRegression().fit(shown.numpy(), y)
    return float(roc_auc_score(y, fitted.decision_function(shown.numpy())))


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("survival", [False, True])
def test_presence_does_not_tell_the_class(rate: float, survival: bool) -> None:
    batch, present = cases(survival=survival)
    head = TaskHead("y", "survival", 1) if survival else TaskHead("y", "binary", 2)
    y = batch.targets["y"].reshape(len(batch), -1)[:, -1].numpy()
    shape = CaseShape(1, {"rna": 3}, presence=HAVE)
    torch.manual_seed(0)
    shown = ModalityDropout(rate, NAMES, shape, [head], by_class=True)(batch, present)
    assert not (shown & ~present).any()
    for k in (0, 1):
        rates = shown[torch.from_numpy(y == k)].float().mean(0)
        # s = (1 - d) times the lowest share; four standard errors of 24,000 cases
        np.testing.assert_allclose(rates, [1 - rate, (1 - rate) * 0.165], atol=0.01)
    assert abs(auroc(shown, y) - 0.5) < 0.01
    plain = ModalityDropout(rate, NAMES, shape, [head])(batch, present)
    assert auroc(plain, y) > (0.9 if rate == 0 else 0.75)


def test_cases_without_a_label_and_classes_without_the_modality() -> None:
    batch, present = cases(labelled=0.5)
    shape = CaseShape(1, {"rna": 3}, presence={"wsi": (1.0, 1.0), "rna": (0.0, 0.8)})
    dropout = ModalityDropout(0.25, NAMES, shape, [TaskHead("y", "binary", 2)], by_class=True)
    torch.manual_seed(0)
    shown = dropout(batch, torch.ones_like(present))
    y, known = batch.targets["y"], batch.label_mask["y"]
    for who, rates in (
        (known & (y == 0), [0.75, 1.0]),  # nobody has it: there is nothing to balance
        (known & (y == 1), [0.75, 0.75]),
        (~known, [0.75, 0.875]),
    ):
        np.testing.assert_allclose(shown[who].float().mean(0), rates, atol=0.015)


def test_what_hides_nothing_and_what_is_not_known() -> None:
    batch, present = cases(20)
    head = TaskHead("y", "binary", 2)
    equal = CaseShape(1, {"rna": 3}, presence={"wsi": (1.0, 1.0), "rna": (0.5, 0.5)})
    for dropout in (
        ModalityDropout(0, NAMES, equal, [head]),
        ModalityDropout(0, NAMES, equal, [head], by_class=True),
    ):
        assert not dropout.hides
        assert torch.equal(dropout(batch, present), present)
    with pytest.raises(ValueError, match="who has wsi, rna"):
        ModalityDropout(0, NAMES, CaseShape(1, {"rna": 3}), [head], by_class=True)

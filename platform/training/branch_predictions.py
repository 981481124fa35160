"""What the branches of a trained model say alone, as rows of the predictions table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from equipoise.models.gptomic.protocol import BranchedModel
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.modulation import BranchView
from equipoise.platform.training.predict import Role, prediction_rows, run_model
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cases import Case


def predict_branches(
    model: nn.Module,
    targets: Targets,
    cases: CaseList | Sequence[Case],
    *,
    role: Role,
    repeat: int,
    fold: int,
) -> dict[str, pd.DataFrame]:
    """Branch → predictions of every case, parameters as in :func:`~equipoise.platform.training.predict.predict`.

    Empty for a model without branches, also for an ensemble, whose members have no common scale for their branches. A
    case that lacks a branch is predicted from what the branch says in its absence.
    """
    if not isinstance(model, BranchedModel):
        return {}
    targets = targets.with_cohorts_of(cases)
    view = BranchView(model, targets.heads)
    _, branches = view.split(run_model(view, targets, cases))
    return {
        name: prediction_rows(targets, outputs, role=role, repeat=repeat, fold=fold)
        for name, outputs in branches.items()
    }

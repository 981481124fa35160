"""The models of a run's folds, and which of them explain a patient: those that have not learned from the patient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from equipoise.datasets.cohorts.cases import CaseReader
from equipoise.platform.explain.table_scores import average_tile, reference_patients
from equipoise.platform.training.crossval import TrainedFold, load_fold

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from equipoise.datasets.cohorts.cases import Case


@dataclass(frozen=True)
class FoldModels:
    """All folds of a run, and the cases of both roles.

    Attributes
    ----------
    folds
        Name of a fold → its model. Tables of external cohorts are prepared with the whole cohort, as for predictions.
    cases
        Role → cases.
    """

    folds: Mapping[str, TrainedFold]
    cases: Mapping[str, CaseReader]

    @classmethod
    def of(
        cls, folders: Sequence[Path], develop: CaseReader, external: CaseReader, device: torch.device
    ) -> FoldModels:
        """Load the folds of these folders."""
        folds = {}
        for folder in folders:
            trained = load_fold(folder, device)
            for parameter in trained.model.parameters():
                parameter.requires_grad_(False)
            targets = trained.targets.with_cohorts_of(external.values()) if len(external) else trained.targets
            folds[folder.name] = replace(trained, targets=targets)
        return cls(folds, {"test": develop, "external": external})

    def case(self, patient: str, role: str) -> Case:
        """The case of a patient in the test part of a fold, or of an external one."""
        return self.cases[role][patient]

    def unseen(self, patient: str, role: str) -> list[str]:
        """Names of the folds whose models explain the patient: all for an external one."""
        if role == "external":
            return list(self.folds)
        return [name for name, fold in self.folds.items() if patient in fold.config["patients"]["test"]]

    def average_tile(self, name: str) -> NDArray[np.float64] | None:
        """The mean tile of some training patients of a fold."""
        patients = reference_patients(self.folds[name].config["patients"]["train"])
        return average_tile(self.cases["test"][patient] for patient in patients)

"""What the step ``explain`` reads: settings, models, patients, predictions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import write_text
from equipoise.platform.explain.fold_models import FoldModels
from equipoise.platform.explain.outputs import explained_outputs
from equipoise.platform.explain.params import ExplainParams
from equipoise.platform.explain.selection import held_out
from equipoise.platform.explain.slide_vectors import SlideTilesBehind

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.inputs import StudyInputs


@dataclass(frozen=True)
class ExplainInputs:
    """What the step reads.

    Attributes
    ----------
    params
        The section ``explain`` of the study.
    models
        The models of the folds, and the cases.
    inputs
        Patients, slides and content keys of the study.
    predictions
        The predictions table.
    tasks
        Names of the tasks that are explained.
    main
        The task by which patients are chosen.
    folds
        Fold → hash of its weights and settings.
    seed
        Of the study.
    synthetic
        Whether the slides were generated.
    whole_slides
        Why tiles cannot be explained although the model reads slides; empty if they can.
    gene_sets
        Pathway → genes; empty without.
    mpp_override
        um per pixel that the study gives all slides; None if it does not.
    encoder_of_rna
        The encoder through which the model reads RNA, whose vectors have no genes; empty without.
    behind
        The slide encoder, for models that read one vector per slide; None for those that read tiles.
    """

    params: ExplainParams
    models: FoldModels
    inputs: StudyInputs
    predictions: pd.DataFrame
    tasks: tuple[str, ...]
    main: str
    folds: Mapping[str, str]
    seed: int
    synthetic: bool
    whole_slides: str
    gene_sets: Mapping[str, Sequence[str]]
    mpp_override: float | None
    encoder_of_rna: str = ""
    behind: SlideTilesBehind | None = None

    def classes(self, patient: str, task: str) -> list[str]:
        """Classes of a task that are explained for a patient; ``""`` for a task without classes."""
        outputs = explained_outputs(next(iter(self.models.folds.values())).targets, task)
        if len(outputs) == 1 or self.params.classes == "all":
            return [output.class_name for output in outputs]
        rows = held_out(self.predictions, task)
        own = rows[rows["patient"] == patient].sort_values(["score", "class"], ascending=[False, True])
        return [str(own["class"].iloc[0])]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table atomically."""
    write_text(path, table.to_csv(index=False))

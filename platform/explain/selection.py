"""Which patients are explained: of every cohort the highest, the lowest and the most wrong prediction, in turn.

The choice is a function of the predictions table, so that a run that is repeated explains the same slides.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.predictions import kind_of
from equipoise.platform.evaluation.thresholds import ensemble, risk_scales, standardise_risks
from equipoise.platform.registry import nearest


@dataclass(frozen=True)
class Chosen:
    """A patient whose slides are explained.

    Attributes
    ----------
    patient, cohort, role
        ``role`` is ``test`` (the patient was in the test part of a fold) or ``external``.
    reason
        Why the patient was chosen.
    """

    patient: str
    cohort: str
    role: str
    reason: str


def held_out(predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """One row per patient and class: predictions of models that had not learned from the patient, averaged.

    Log risks are first brought to the scale of their fold. A task without usable rows gives an empty table.
    """
    rows = predictions[predictions["task"] == task]
    kept = rows[rows["role"].isin(["test", "external"])]
    if len(rows) and kind_of(rows) == "survival":
        kept = standardise_risks(kept, risk_scales(rows))
    return ensemble(kept) if len(kept) else kept


def choose(
    predictions: pd.DataFrame, task: str, per_cohort: int, with_slides: Collection[str]
) -> list[Chosen]:
    """Patients of each cohort, by their predictions of a task.

    Parameters
    ----------
    predictions
        The predictions table.
    task
        The task that decides.
    per_cohort
        Patients of each cohort.
    with_slides
        Patients that have tiles.
    """
    rows = held_out(predictions, task)
    rows = rows[rows["patient"].isin(list(with_slides))]
    chosen: list[Chosen] = []
    for (role, cohort), part in rows.groupby(["role", "cohort"], sort=True):
        ranked = _ranked(part)
        lists = [iter(patients) for _, patients in ranked]
        taken: dict[str, str] = {}
        while len(taken) < min(per_cohort, part["patient"].nunique()):
            before = len(taken)
            for (reason, _), patients in zip(ranked, lists, strict=True):
                patient = next((p for p in patients if p not in taken), None)
                if patient is not None and len(taken) < per_cohort:
                    taken[patient] = reason
            if len(taken) == before:
                break
        chosen += [Chosen(patient, str(cohort), str(role), reason) for patient, reason in taken.items()]
    return chosen


def choose_named(predictions: pd.DataFrame, names: Sequence[str], slides: pd.DataFrame) -> list[Chosen]:
    """The patients behind names of slides or patients.

    Raises
    ------
    DataError
        If a name is no slide or patient of the study, or no model was tested on the patient.
    """
    of_slide = dict(zip(slides["slide"].astype(str), slides["patient"].astype(str), strict=True))
    known = {**{patient: patient for patient in of_slide.values()}, **of_slide}
    rows = (
        predictions[predictions["role"].isin(["test", "external"])]
        .drop_duplicates("patient")
        .set_index("patient")
    )
    chosen = {}
    for name in names:
        patient = known.get(name)
        if patient is None:
            raise DataError(
                f"{name!r} is no slide and no patient with tiles in this study{nearest(name, known)}",
                where="explain.slides",
                fix="manifest/slides.parquet lists the slides, manifest/exclusions.csv those left out",
            )
        if patient not in rows.index:
            raise DataError(
                f"no model was tested on patient {patient}: every one has learned from the patient",
                where="explain.slides",
                fix="choose patients of a test part or of an external cohort",
            )
        row = rows.loc[patient]
        chosen[patient] = Chosen(patient, str(row["cohort"]), str(row["role"]), "named in the study")
    return list(chosen.values())


def _ranked(part: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """Reason → patients of a cohort, those first for whom it holds most."""
    kind = kind_of(part)
    if kind == "multiclass":
        best = part.sort_values(["score", "patient"], ascending=[False, True]).drop_duplicates("patient")
        true = part[part["target"] == 1].assign(error=lambda t: 1 - t["score"])
        wrong = true[
            ~true.set_index(["patient", "class"]).index.isin(best.set_index(["patient", "class"]).index)
        ]
        return [
            ("most certain prediction", _by(best, "score")),
            ("least certain prediction", _by(best, "score", ascending=True)),
            ("most wrong prediction", _by(wrong, "error")),
        ]
    names = {"binary": "probability", "survival": "risk"}
    what = names.get(kind, "value")
    if kind == "survival":
        events = part[part["event"] == 1]
        wrong = events.assign(error=-events["score"])
    else:
        known = part[part["target"].notna()]
        wrong = known.assign(error=np.abs(known["score"] - known["target"]))
        if kind == "binary":
            wrong = wrong[wrong["error"] > 0.5]
    reason = "event despite the lowest risk" if kind == "survival" else "most wrong prediction"
    return [
        (f"highest {what}", _by(part, "score")),
        (f"lowest {what}", _by(part, "score", ascending=True)),
        (reason, _by(wrong, "error")),
    ]


def _by(rows: pd.DataFrame, column: str, *, ascending: bool = False) -> list[str]:
    ordered = rows.sort_values([column, "patient"], ascending=[ascending, True], kind="stable")
    return ordered["patient"].astype(str).tolist()

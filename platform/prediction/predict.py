"""An exported model on new patients: scores of every member, combined and called, with what speaks against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import atomic_path, write_json
from equipoise.platform.prediction.assess import (
    assess,
    slide_flags,
    with_assessment,
    write_assessment,
)
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.prediction.new_patients import NewPatients
from equipoise.platform.prediction.trust import Assessment, Trust
from equipoise.platform.report.formatting import plural

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.targets import Targets

#: Share of the columns of a table that may be missing without a flag.
MAX_MISSING_SHARE = 0.1
#: Columns of the table of patients.
PATIENT_COLUMNS = ("patient", "predicted", "slides", "tiles", "tables", "flags", "reason")


@dataclass(frozen=True)
class Predictions:
    """What a model says of new patients.

    Attributes
    ----------
    table
        One row per patient, task and output: ``patient task kind output class score threshold call flags``, see
        :meth:`~equipoise.platform.prediction.operating_points.OperatingPoints.apply`, and what
        :data:`~equipoise.platform.prediction.assess.COLUMNS` say of patient and task.
    members
        The scores of every member as rows of the predictions table (:mod:`equipoise.platform.evaluation.predictions`),
        role ``external``.
    patients
        One row per patient, also for those who cannot be predicted, ``PATIENT_COLUMNS``.
    assessment
        How far to trust them; None for a model that says nothing of it.
    """

    table: pd.DataFrame
    members: pd.DataFrame
    patients: pd.DataFrame
    assessment: Assessment | None = None


def predict(model: ExportedModel, new: NewPatients, trust: Trust | None = None) -> Predictions:
    """Predict all patients by every member.

    Parameters
    ----------
    model
        With the places of its local files.
    new
        From :func:`~equipoise.platform.prediction.new_patients.read_new_patients`.
    trust
        From :func:`~equipoise.platform.prediction.assess.trust_of`: what is said of their reliability.

    Raises
    ------
    DataError
        If the model does not fit its folder, or a table lacks more than half of its columns.
    """
    import pandas as pd
    import torch

    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device

    cases = CaseList(new.reader, tuple(new.reader))
    before = torch.get_num_threads()
    torch.set_num_threads(model.config.threads)
    try:
        trained = model.members(pick_device("auto"))
        members = pd.concat([member.predict(cases, "external") for member in trained], ignore_index=True)
    finally:
        torch.set_num_threads(before)
    remarks = (*new.remarks, *_missing_columns(new, trained[0].targets))
    assessment = assess(trust, model, new, members)
    patients = _patients(new, remarks, slide_flags(assessment))
    table = model.points.apply(members)
    order = pd.Categorical(table["patient"], categories=patients["patient"])
    table = table.iloc[order.codes.argsort(kind="stable")].reset_index(drop=True)
    flags = dict(zip(patients["patient"], patients["flags"], strict=True))
    table = with_assessment(table.assign(flags=table["patient"].map(flags)), assessment)
    return Predictions(table, members, patients, assessment)


def _missing_columns(new: NewPatients, targets: Targets) -> list[str]:
    """Tables that lack more columns of training than a tenth, which are filled with its medians."""
    remarks = []
    for modality, transform in targets.tables.items():
        table = new.cohorts.omics.get(modality)
        wanted = _columns(transform)
        if table is None or not wanted:
            continue
        missing = len(set(wanted) - set(map(str, table.columns)))
        if missing > MAX_MISSING_SHARE * len(wanted):
            remarks.append(f"{modality}: {missing} of {len(wanted)} columns of training are missing")
    return remarks


def _columns(transform: Any) -> tuple[str, ...]:
    """Columns that a transform looks up; of covariates, the numbers."""
    inner = getattr(transform, "before", transform)
    numbers = getattr(inner, "numbers", inner)
    return () if numbers is None else tuple(numbers.columns)


def _patients(new: NewPatients, remarks: tuple[str, ...], flagged: Mapping[str, list[str]]) -> pd.DataFrame:
    """Everybody who was named, with what is to be said of them."""
    import pandas as pd

    failed: dict[str, list[str]] = {}
    for row in new.slides.itertuples():
        if row.status != "ok":
            failed.setdefault(str(row.patient), []).append(f"slide {row.slide}: {row.status}")
    rows = []
    of_slides = new.cohorts.slides.groupby("patient")["slide"].apply(list).to_dict()
    tiles = dict(zip(new.slides["slide"], new.slides["n"], strict=True)) if len(new.slides) else {}
    for patient in new.cohorts.patients["patient"]:
        slides = of_slides.get(patient, [])
        tables = [name for name, table in new.cohorts.omics.items() if patient in table.index]
        flags = [*remarks, *failed.get(patient, []), *flagged.get(patient, [])]
        count = int(sum(tiles.get(slide, 0) for slide in slides))
        rows.append((patient, True, len(slides), count, " ".join(tables), "; ".join(flags), ""))
    left_out: Mapping[Any, list[str]] = (
        new.cohorts.exclusions.assign(patient=lambda table: table["patient"].astype(str))
        .groupby("patient", sort=False)["reason"]
        .apply(list)
        .to_dict()
    )
    known = {row[0] for row in rows}
    for patient, reasons in left_out.items():
        if patient and patient not in known:
            rows.append((patient, False, 0, 0, "", "; ".join(failed.get(patient, [])), reasons[-1]))
    return pd.DataFrame(rows, columns=list(PATIENT_COLUMNS))


def write(result: Predictions, model: ExportedModel, new: NewPatients, out: Path) -> None:
    """Write the tables and what made them.

    ``predictions.csv`` and ``.parquet`` are the table; ``members.parquet`` has the scores of every member in the layout
    of a run, for an evaluation once labels are known; ``patients.csv`` and ``slides.csv`` name all of them;
    ``drift.csv``, ``batch.csv`` and ``quality.csv`` have every check of the slides; ``about.json`` the model.
    """
    from equipoise import __version__
    from equipoise.platform.evaluation.predictions import write_predictions

    out.mkdir(parents=True, exist_ok=True)
    for name, table in (("predictions", result.table), ("patients", result.patients), ("slides", new.slides)):
        with atomic_path(out / f"{name}.csv") as path:
            table.to_csv(path, index=False)
    with atomic_path(out / "predictions.parquet") as path:
        result.table.to_parquet(path, index=False)
    write_predictions(result.members, out / "members.parquet")
    if result.assessment is not None:
        write_assessment(result.assessment, out)
    config = model.config
    about = {
        "model": config.name,
        "sha256": model.sealed.sha256,
        "synthetic": config.synthetic,
        "equipoise": __version__,
        "patients": int(result.patients["predicted"].sum()),
        "not_predicted": int((~result.patients["predicted"]).sum()),
        "research_use_only": True,
    }
    write_json(out / "about.json", about)


def summary(result: Predictions, model: ExportedModel) -> str:
    """For a person: how many were predicted and called what."""
    import pandas as pd

    done = int(result.patients["predicted"].sum())
    mark = " (SYNTHETIC)" if model.config.synthetic else ""
    lines = [f"{model.config.name}{mark}: {done} of {len(result.patients)} patients predicted"]
    for task, rows in result.table[result.table["output"] != "survival"].groupby("task", sort=False):
        calls = rows.drop_duplicates("patient")["call"]
        if (calls != "").any():
            counts = ", ".join(f"{name or 'not called'} {n}" for name, n in calls.value_counts().items())
            lines.append(f"  {task}: {counts}")
        else:
            scores = pd.to_numeric(rows["score"]).dropna()
            spread = (
                f"median {scores.median():.3g} ({scores.min():.3g} to {scores.max():.3g})"
                if len(scores)
                else "not estimable: the models order no patients"
            )
            lines.append(f"  {task}: {spread}")
    lines += _trust_lines(result)
    flagged = int((result.patients["flags"] != "").sum())
    if flagged:
        lines.append(f"  flags: {plural(flagged, 'patient')}, see patients.csv")
    for row in result.patients[~result.patients["predicted"]].head(5).itertuples():
        lines.append(f"  not predicted: {row.patient}: {row.reason}")
    return "\n".join(lines)


def _trust_lines(result: Predictions) -> list[str]:
    """For a person: in how many patients the model abstains, and whether the batch differs from training."""
    found = result.assessment
    if found is None:
        return []
    lines = []
    abstained = found.decisions.groupby("task", sort=False)["abstained"].sum()
    if len(abstained):
        n = found.decisions["patient"].nunique()
        lines.append(
            f"  no answer: {', '.join(f'{task} {count} of {n}' for task, count in abstained.items())}"
        )
    lines += [f"  drift: {row.reason}" for row in found.batch.itertuples() if row.flagged]
    return lines

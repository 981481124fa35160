"""Assembles raw cohorts: targets encoded over all of them, the participant flow, one table each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.datasets.cohorts.cohort_tables import RawCohort, name_slides
from equipoise.datasets.cohorts.flow import Flow
from equipoise.datasets.cohorts.label_account import lacking_column
from equipoise.datasets.omics.covariates import covariate_table
from equipoise.datasets.omics.params import CLINICAL, Covariate
from equipoise.datasets.tables.plausibility import check_plausible
from equipoise.datasets.tables.reading import table_label
from equipoise.datasets.tables.targets import EncodedTask, NoLabel, encode
from equipoise.datasets.tables.tasks import RegressionTask, Task

if TYPE_CHECKING:
    import pandas as pd

SLIDE_COLUMNS = ("slide", "patient", "cohort", "path", "mpp")


def encode_all(task: Task, cohorts: Sequence[RawCohort]) -> EncodedTask:
    """Encode a task over all cohorts at once, so that no cohort reads a value differently.

    Patients of a cohort that lacks the column have no label, with that as the reason.
    """
    import pandas as pd

    parts: list[Any] = []
    reasons: dict[str, NoLabel] = {}
    for raw in cohorts:
        if (lacking := lacking_column(task, raw)) is not None:
            reasons |= dict.fromkeys(raw.labels.index, lacking[1])
        else:
            parts.append(raw.labels[list(task.columns)])
    encoded = encode(task, pd.concat(parts))
    if isinstance(task, RegressionTask):
        position = {patient: i for i, patient in enumerate(encoded.patients)}
        for raw in cohorts:
            known = [patient for patient in raw.labels.index if patient in position]
            values = encoded.value[[position[patient] for patient in known]]
            where = f"task {task.name!r}, column {task.column!r} of {table_label(raw.source.clinical)}"
            check_plausible(values, known, where, allow=task.allow_wide_range)
    return _extended(encoded, reasons)


def _extended(encoded: EncodedTask, reasons: Mapping[str, NoLabel]) -> EncodedTask:
    """The encoded task with patients that have no label at all behind the others."""
    gap = np.full(len(reasons), np.nan)
    survival = encoded.type == "survival"
    return EncodedTask(
        name=encoded.name,
        type=encoded.type,
        patients=(*encoded.patients, *reasons),
        value=encoded.value if survival else np.concatenate([encoded.value, gap]),
        time=np.concatenate([encoded.time, gap]) if survival else encoded.time,
        event=np.concatenate([encoded.event, gap]) if survival else encoded.event,
        reasons=encoded.reasons | dict(reasons),
        notes=encoded.notes,
    )


def run_flow(
    cohorts: Sequence[RawCohort],
    encoded: Sequence[EncodedTask],
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> list[Flow]:
    """Run every cohort through the stages up to ``has label``.

    Parameters
    ----------
    cohorts, encoded
        Raw cohorts and their targets.
    tables
        Tables that the model reads: a patient in one of them stays without a slide, and one who has neither
        leaves. ``None`` for a model that reads slides only.
    """
    tabled = {patient for table in (tables or {}).values() for patient in table.index}
    labelled = {p for task in encoded for p, known in zip(task.patients, task.known, strict=True) if known}
    flows = []
    for raw, names in zip(cohorts, name_slides(cohorts), strict=True):
        slides = None if raw.slides is None else dict(zip(names, raw.slides["patient"], strict=True))
        flow = Flow(raw.source.name, raw.labels.index, slides)
        for reason in raw.keyless:
            flow.note("", "", "in table", reason)
        flow.close("in table")
        for patient, path in raw.repeated:
            flow.note(patient, path, "unique", "the slides table lists the file again")
        of_path = {} if raw.slides is None else dict(zip(raw.slides["path"], names, strict=True))
        several = {of_path[path]: reason for path, reason in raw.contradicting.items()}
        of_several = [slides[name] for name in several] if slides is not None else []
        flow.drop_slides(several, "unique")
        flow.drop_patients(raw.conflicts, "unique")
        flow.close("unique")
        if slides is not None:
            known = set(raw.labels.index)
            strangers = {
                slide: "its patient is not in the clinical table"
                for slide, p in slides.items()
                if p not in known
            }
            flow.drop_slides(strangers, "has slide")
            if tables is None:
                left = set((flow.slides or {}).values())
                reason = "the slides table gives every slide several pixel sizes"
                flow.drop_patients({p: reason for p in of_several if p not in left}, "has slide")
                flow.drop_slideless("has slide", "the slides table lists no slide")
            flow.close("has slide")
        if tables is not None:
            owners = set((flow.slides or {}).values())
            bare = [p for p in flow.patients if p not in tabled and p not in owners]
            flow.drop_patients(dict.fromkeys(bare, _nothing_to_read(raw, tables)), "has table")
            flow.close("has table")
        if encoded:
            bare = [patient for patient in flow.patients if patient not in labelled]
            reasons = {p: "; ".join(f"{task.name}: {task.reasons[p].text}" for task in encoded) for p in bare}
            flow.drop_patients(reasons, "has label")
            flow.close("has label")
        flows.append(flow)
    return flows


def _nothing_to_read(raw: RawCohort, tables: Mapping[str, pd.DataFrame]) -> str:
    """Why a patient of this cohort has nothing that the model reads."""
    reason = f"no row in what the model reads ({', '.join(tables) or 'no table'})"
    return reason if raw.slides is None else f"{reason}, and the slides table lists no slide"


def patient_table(
    cohorts: Sequence[RawCohort], encoded: Sequence[EncodedTask], flows: Sequence[Flow]
) -> pd.DataFrame:
    """Columns patient, cohort, role, site and the tasks', for everybody who is in."""
    import pandas as pd

    rows = [
        {"patient": patient, "cohort": raw.source.name, "role": raw.source.role, "site": site}
        for raw, flow in zip(cohorts, flows, strict=True)
        for patient, site in zip(raw.labels.index, raw.sites, strict=True)
        if patient in flow.patients
    ]
    table = pd.DataFrame(rows, columns=["patient", "cohort", "role", "site"], dtype=object)
    for task in encoded:
        values = pd.DataFrame(task.columns(), index=list(task.patients)).reindex(table["patient"])
        for column in values:
            table[column] = values[column].to_numpy(dtype=float)
    return table


def slide_table(cohorts: Sequence[RawCohort], flows: Sequence[Flow]) -> pd.DataFrame:
    """Columns slide, patient, cohort, path, mpp of every slide that is in, in manifest order."""
    import pandas as pd

    parts = []
    for raw, names, flow in zip(cohorts, name_slides(cohorts), flows, strict=True):
        if raw.slides is not None:
            part = raw.slides.assign(slide=names, cohort=raw.source.name)
            parts.append(part[part["slide"].isin(list(flow.slides or {}))])
    if not parts:
        return pd.DataFrame(
            {name: pd.Series(dtype=float if name == "mpp" else object) for name in SLIDE_COLUMNS}
        )
    return pd.concat(parts, ignore_index=True)[list(SLIDE_COLUMNS)]


def load_covariates(
    cohorts: Sequence[RawCohort], covariates: Sequence[Covariate]
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The modality ``clinical`` over all cohorts; nothing where the study names no covariate."""
    if not covariates:
        return {}, []
    everything = list(dict.fromkeys(column for raw in cohorts for column in raw.clinical_columns))
    labels = [(raw.source.name, raw.labels) for raw in cohorts]
    table, notes = covariate_table(labels, covariates, everything)
    return {CLINICAL: table}, notes


def select_patients(omics: Mapping[str, pd.DataFrame], patients: Iterable[Any]) -> dict[str, pd.DataFrame]:
    """Matrices cut to these patients, in their order."""
    patients = list(patients)
    return {
        modality: matrix.loc[[patient for patient in patients if patient in matrix.index]]
        for modality, matrix in omics.items()
    }

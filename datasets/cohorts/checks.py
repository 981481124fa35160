"""Checks over all cohorts of a study, and remarks for the user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.cohort_tables import RawCohort
from equipoise.datasets.cohorts.flow import flow_text
from equipoise.datasets.cohorts.label_account import lacking_column, numbered
from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.plausibility import unit_note
from equipoise.datasets.tables.reading import table_label
from equipoise.datasets.tables.tasks import RegressionTask, SurvivalTask, Task

if TYPE_CHECKING:
    import pandas as pd


def refuse_repeated(names: Sequence[str], what: str) -> None:
    """Names of cohorts and tasks must be unique."""
    for name, count in Counter(names).items():
        if count > 1:
            raise DataError(
                f"{count} {what} are called {name!r}",
                where="study",
                fix=f"give every one of the {what} its own name",
            )


def refuse_shared_patients(cohorts: Sequence[RawCohort]) -> None:
    """A patient in two cohorts would be learned from and tested on at once."""
    owner: dict[str, str] = {}
    shared: list[tuple[str, str, str]] = []
    for raw in cohorts:
        for patient in raw.labels.index:
            if owner.setdefault(patient, raw.source.name) != raw.source.name:
                shared.append((patient, owner[patient], raw.source.name))
    if shared:
        examples = ", ".join(f"{patient} in {first} and {second}" for patient, first, second in shared[:3])
        raise DataError(
            f"{len(shared)} patients stand in two cohorts: {examples}",
            where="cohorts",
            fix="remove them from one of the cohorts, for instance with 'where' on its clinical table",
        )


def absent_columns(cohorts: Sequence[RawCohort], tasks: Sequence[Task]) -> list[str]:
    """Remarks on task columns that some cohorts lack; an error where all lack one."""
    notes = []
    for task in tasks:
        found = [(raw, lacking_column(task, raw)) for raw in cohorts]
        lacking = [(raw, *problem) for raw, problem in found if problem is not None]
        for raw, column, gap in lacking:
            several = numbered(column, raw.clinical_columns)
            remedy = (
                f"write which one: rename: {{{several[0]!r}: {column!r}}} of the table" if several else None
            )
            if len(lacking) == len(cohorts):
                everywhere = [name for other in cohorts for name in other.clinical_columns]
                tables = ", ".join(table_label(other.source.clinical) for other in cohorts)
                raise DataError(
                    gap.text
                    if several
                    else f"no cohort has the column {column!r}{nearest(column, dict.fromkeys(everywhere))}",
                    where=f"task {task.name!r} ({tables})",
                    fix=remedy or "correct the task's column, or 'rename' the column of the table",
                )
            near = "" if several else nearest(column, raw.clinical_columns)
            notes.append(
                f"task {task.name!r}: {gap.text}{near}; its patients have no label"
                + (f": {remedy}" if remedy else "")
            )
    return notes


def refuse_empty(
    patients: pd.DataFrame, counts: Iterable[Mapping[str, Any]], cohorts: Iterable[str], *, learning: bool
) -> None:
    """At least one patient must be left: in each of the named cohorts and, where the study learns, in development."""
    left = set(patients["cohort"])
    empty = [name for name in cohorts if name not in left]
    if not empty and len(patients) and (not learning or (patients["role"] == "develop").any()):
        return
    what = f"cohort {', '.join(empty)}" if empty else "the development cohorts"
    raise DataError(
        f"nobody is left in {what}. Patients by stage: {flow_text(counts)}",
        where="participant flow",
        fix="manifest/exclusions.csv says who was left out and why; correct the table or task it points to",
    )


def refuse_impossible(patients: pd.DataFrame, tasks: Sequence[Task]) -> None:
    """Every task needs something to learn in development: each class, one event, two different numbers."""
    develop = patients[patients["role"] == "develop"]
    if develop.empty:
        return
    for task in tasks:
        if isinstance(task, SurvivalTask):
            events = int((develop[f"{task.name}.event"] == 1).sum())
            problem = (
                None if events else f"no event among {develop[f'{task.name}.event'].notna().sum()} patients"
            )
        elif isinstance(task, RegressionTask):
            values = develop[task.name].dropna().nunique()
            problem = None if values >= 2 else f"{values} different value(s)"
        else:
            names = task.class_names if task.type == "multiclass" else ("negative", *task.class_names)
            counts = develop[task.name].dropna().astype(int).value_counts()
            missing = [name for code, name in enumerate(names) if code not in counts.index]
            problem = (
                f"nobody of class {', '.join(missing)} among {counts.sum()} labelled" if missing else None
            )
        if problem:
            raise DataError(
                f"the development cohorts have {problem}",
                where=f"task {task.name!r}",
                fix="drop the task, or give a development cohort that has them",
            )


def unit_notes(patients: pd.DataFrame, tasks: Sequence[Task]) -> list[str]:
    """Remarks where a measurement or a follow-up time looks as if cohorts used different units."""
    notes = []
    for task in tasks:
        if isinstance(task, RegressionTask | SurvivalTask):
            medians = patients.groupby("cohort", sort=False)[task.frame_columns[0]].median().dropna()
            notes.append(unit_note(task.name, {str(k): float(v) for k, v in medians.items()}))
    return [note for note in notes if note]


def survival_notes(tasks: Sequence[Task]) -> list[str]:
    """A remark where a column called censorship is read with 1 as the event."""
    return [
        f"task {task.name!r}: column {task.event.column!r} is read with "
        f"{', '.join(task.event.event_value)} as the event; "
        "in PORPOISE and SurvPath tables 1 means censored"
        for task in tasks
        if isinstance(task, SurvivalTask)
        and "censor" in task.event.column.casefold()
        and "1" in task.event.event_value
    ]

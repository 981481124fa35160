"""Subsamples cohorts for a smoke run (``--smoke``): a few patients of each site, with every class that exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tables.tasks import Task

#: Patients of each class that a cohort keeps regardless of its sites: folds with inner validation need them.
MIN_PER_CLASS = 6


def excluded_by_subsample(patients: pd.DataFrame, per_site: int, task: Task | None) -> dict[str, str]:
    """Patients to leave out so that each site keeps at most ``per_site``, but each cohort keeps some of each class.

    Within a site, patients are taken from each value of the task in turn, in the order of the table: rare classes
    are kept and no random number is needed.

    Parameters
    ----------
    patients
        Columns patient, cohort, site and those of the task.
    per_site
        Patients to keep.
    task
        The task whose classes (or events) are taken in turn; ``None`` takes the first patients.

    Returns
    -------
    Patient → reason, as :meth:`~equipoise.datasets.cohorts.cohort.Cohorts.drop` takes it.
    """
    reason = f"beyond patients_per_site: {per_site}"
    column = None if task is None or task.type == "regression" else task.frame_columns[-1]
    kept: set[str] = set()
    for _, site in patients.groupby(["cohort", "site"], sort=False):
        if column is None:
            ordered = site
        else:
            values = site[column].fillna(-1)  # missing labels come last
            turn = values.groupby(values).cumcount()
            ordered = site.assign(_turn=turn, _last=-values).sort_values(["_turn", "_last"], kind="stable")
        kept |= set(ordered["patient"].iloc[:per_site])
    for _, cohort in patients.groupby("cohort", sort=False):
        groups = [cohort] if column is None else [part for _, part in cohort.groupby(column)]
        for group in groups:
            lacking = MIN_PER_CLASS - int(group["patient"].isin(kept).sum())
            kept |= set(group.loc[~group["patient"].isin(kept), "patient"].iloc[: max(lacking, 0)])
    return {patient: reason for patient in patients["patient"] if patient not in kept}

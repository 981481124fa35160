"""Thins cohorts for a rehearsal: a few patients of each site, every class among them where there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tasks import Task

#: Members of each class that a cohort keeps whatever its sites: folds with inner validation need them.
LEAST_OF_A_CLASS = 6


def beyond(patients: pd.DataFrame, per_site: int, task: Task | None) -> dict[str, str]:
    """Patients to leave out so that a site keeps no more than ``per_site``, but a cohort some of each class.

    Within a site the values of the task take turns in the order of the table, so that a rare class is kept and the
    choice needs no random number.

    Parameters
    ----------
    patients
        Columns patient, cohort, site and those of the task.
    per_site
        Patients to keep.
    task
        The task whose classes (or events) take turns; ``None`` takes the first patients.

    Returns
    -------
    Patient → reason, as :meth:`~equipoise.datasets.cohort.Cohorts.drop` takes it.
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
        for members in groups:
            lacking = LEAST_OF_A_CLASS - int(members["patient"].isin(kept).sum())
            kept |= set(members.loc[~members["patient"].isin(kept), "patient"].iloc[: max(lacking, 0)])
    return {patient: reason for patient in patients["patient"] if patient not in kept}

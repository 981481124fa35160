"""Thins cohorts for a rehearsal: a few patients of each site, both classes among them where there are both."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tasks import Task


def beyond(patients: pd.DataFrame, per_site: int, task: Task | None) -> dict[str, str]:
    """Patients to leave out so that no site of a cohort keeps more than ``per_site``.

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
    left_out: dict[str, str] = {}
    for _, site in patients.groupby(["cohort", "site"], sort=False):
        if column is None:
            ordered = site
        else:
            values = site[column].fillna(-1)  # missing labels come last
            turn = values.groupby(values).cumcount()
            ordered = site.assign(_turn=turn, _last=-values).sort_values(["_turn", "_last"], kind="stable")
        left_out |= dict.fromkeys(ordered["patient"].iloc[per_site:], reason)
    return left_out

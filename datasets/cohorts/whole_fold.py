"""A fold of all development patients, none of whom is tested: for models that other studies will test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.splits import Fold, draw_stratified, strata_of
from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.tasks import RegressionTask, Task, main_task

if TYPE_CHECKING:
    import pandas as pd


def fold_without_test(patients: pd.DataFrame, tasks: Sequence[Task], inner_val: float, seed: int) -> Fold:
    """Training and inner validation part of all development patients.

    Parameters
    ----------
    patients
        Table of :class:`~equipoise.datasets.cohorts.cohort.Cohorts`; rows with another role than ``develop`` are
        ignored.
    tasks
        Inner validation is stratified on the main task within every cohort.
    inner_val
        Share of the patients of every cohort that is held out for early stopping; a cohort of one patient gives none.
    seed
        Of the draw.

    Raises
    ------
    DataError
        If no cohort has two patients.
    """
    develop = patients[patients["role"] == "develop"].sort_values("patient", kind="stable")
    task = main_task(tasks)
    names, strata = develop["patient"].to_numpy(dtype=object), strata_of(task, develop)
    cohorts = develop["cohort"].to_numpy(dtype=object)
    held_out = np.zeros(len(develop), bool)
    for number, cohort in enumerate(sorted(set(cohorts))):
        of_cohort = np.flatnonzero(cohorts == cohort)
        if len(of_cohort) > 1:
            rng = np.random.default_rng(np.random.SeedSequence([seed, number]))
            required = not isinstance(task, RegressionTask)
            held_out[of_cohort[draw_stratified(strata[of_cohort], inner_val, rng, required=required)]] = True
    if not held_out.any():
        raise DataError(
            f"{len(develop)} development patients, not two of them in the same cohort: nobody is left for inner "
            "validation",
            where="pretrain",
            fix="add patients",
        )
    return Fold(0, 0, tuple(names[~held_out].tolist()), tuple(names[held_out].tolist()), ())

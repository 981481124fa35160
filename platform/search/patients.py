"""The patients of a search: development patients without the hold-out, in inner folds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.assembly import select_patients
from equipoise.datasets.cohorts.preserved_sites import assign_sites, site_counts
from equipoise.datasets.cohorts.splits import Fold, SplitScheme, draw_stratified, make_folds, strata_of
from equipoise.datasets.tables.tasks import RegressionTask, Task, main_task
from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts

#: Random stream of the hold-out, beside those of drawn configurations.
HOLDOUT_STREAM = 2


def restrict_to(cohorts: Cohorts, patients: Collection[str]) -> Cohorts:
    """The cohorts restricted to these patients: labels, slides and omics of other patients are removed."""
    kept = set(patients)

    def of(table: pd.DataFrame) -> pd.DataFrame:
        return table[table["patient"].isin(kept)].reset_index(drop=True)

    chosen = of(cohorts.patients)
    return replace(
        cohorts,
        patients=chosen,
        slides=of(cohorts.slides),
        omics=select_patients(cohorts.omics, chosen["patient"]),
        exclusions=cohorts.exclusions.iloc[:0],
        label_gaps=of(cohorts.label_gaps),
    )


def split_holdout(
    cohorts: Cohorts, tasks: Sequence[Task], share: float, whole_sites: bool, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Development patients that are searched on, and those that no trial sees; both sorted.

    Parameters
    ----------
    share
        Share of the development patients in the hold-out.
    whole_sites
        Whether sites are held out as a whole, as the study's split scheme keeps them.
    seed
        Seed of the search.

    Raises
    ------
    DataError
        If whole sites cannot make a hold-out with every class of the main task.
    """
    develop = cohorts.patients[cohorts.patients["role"] == "develop"].sort_values("patient", kind="stable")
    names = develop["patient"].to_numpy(dtype=object)
    if share == 0:
        return tuple(names.tolist()), ()
    task = main_task(tasks)
    strata = strata_of(task, develop)
    required = not isinstance(task, RegressionTask)
    rng = np.random.default_rng(np.random.SeedSequence([seed, HOLDOUT_STREAM]))
    if whole_sites:
        sites = develop["site"].to_numpy(dtype=object)
        held = _hold_out_sites(sites, strata, share, rng, required=required)
    else:
        held = np.zeros(len(names), bool)
        held[draw_stratified(strata, share, rng, required=required)] = True
    return tuple(names[~held].tolist()), tuple(names[held].tolist())


def inner_folds(
    cohorts: Cohorts, tasks: Sequence[Task], splits: SplitScheme, folds: int, seed: int, seeds: int = 1
) -> list[Fold]:
    """Folds of the search patients by the study's scheme; one that sets neither folds nor repeats keeps its number.

    Each fold has three parts as in cross-validation: ``train``, ``val`` for early stopping and for methods that learn
    on inner validation, and ``test``, here the patients that the trial is scored on. Nobody of the hold-out or of an
    external cohort is in any of them. With several ``seeds`` the folds are repeated once for each, with the same
    patients and other repeats; the repeat is part of the seed of a training.
    """
    options = type(splits.params).model_fields
    if "folds" in options:
        wanted = {"folds": folds, "repeats": 1}
    else:
        wanted = {"repeats": folds}
    changed = splits.params.model_copy(update={key: wanted[key] for key in wanted if key in options})
    result = make_folds(cohorts.patients, replace(splits, params=changed), tasks, seed, cohorts.slides)
    repeats = 1 + max(fold.repeat for fold in result)
    return [replace(fold, repeat=fold.repeat + k * repeats) for k in range(seeds) for fold in result]


def _hold_out_sites(
    sites: np.ndarray, strata: np.ndarray, share: float, rng: np.random.Generator, *, required: bool
) -> np.ndarray:
    names, counts = site_counts(sites, strata)
    fix = "write search.holdout: 0 and let external cohorts measure the winner, or splits.scheme: kfold"
    if len(names) < 3:
        raise DataError(
            f"{len(names)} site(s) leave none to hold out beside training and validation",
            where="search.holdout",
            fix=fix,
        )
    chosen = assign_sites(counts, np.array([1 - share, share]), rng)
    held = chosen[np.searchsorted(names, sites.astype(str))] == 1
    classes = set(strata[strata >= 0])
    if not held.any() or held.all() or (required and {*strata[held & (strata >= 0)]} != classes):
        raise DataError(
            f"whole sites make no hold-out of about {share:.0%} in which every class of the main task occurs",
            where="search.holdout",
            fix=fix,
        )
    return held

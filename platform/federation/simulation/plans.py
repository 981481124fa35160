"""Training, validation and test patients of every federation: folds of the study, or a site or cohort left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.splits import Fold, SplitScheme, draw_stratified, make_folds, strata_of
from equipoise.datasets.tables.tasks import RegressionTask, SurvivalTask, Task, main_task
from equipoise.platform.errors import DataError
from equipoise.platform.federation.params import Plan, PlanParams
from equipoise.platform.federation.simulation.sites import Client

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlannedFold:
    """One federation to train.

    Parameters
    ----------
    plan
        Its evaluation plan.
    fold
        Training, inner validation and test patients.
    left_out
        The site or cohort that is the test part; empty in the plan ``folds``.
    """

    plan: Plan
    fold: Fold
    left_out: str = ""

    def parts(self, clients: Sequence[Client]) -> dict[str, Fold]:
        """Client → its training, validation and test patients; clients without training patients are left out."""
        parts = {}
        for client in clients:
            train, val, test = (client.of(getattr(self.fold, part)) for part in ("train", "val", "test"))
            if train:
                parts[client.name] = Fold(self.fold.repeat, self.fold.index, train, val, test)
        return parts


def planned_folds(
    params: PlanParams,
    clients: Sequence[Client],
    patients: pd.DataFrame,
    splits: SplitScheme,
    tasks: Sequence[Task],
    seed: int,
    slides: pd.DataFrame | None = None,
) -> Iterator[PlannedFold]:
    """All federations of a study.

    Parameters
    ----------
    params
        Plans, and how many folds of each.
    clients
        Clients and their patients.
    patients
        Table of :class:`~equipoise.datasets.cohorts.cohort.Cohorts`.
    splits, tasks, seed
        Of the study.
    slides
        Columns slide and patient, for folds that name slides.

    Raises
    ------
    DataError
        If fewer than two clients, or cohorts, are left to train.
    """
    develop = patients[patients["role"] == "develop"].sort_values("patient", kind="stable")
    for plan in params.plans:
        if plan == "folds":
            folds = [PlannedFold(plan, fold) for fold in make_folds(patients, splits, tasks, seed, slides)]
        else:
            groups: Mapping[str, Sequence[str]]
            if plan == "leave_one_site_out":
                groups = {client.name: client.patients for client in clients}
            else:
                groups = {
                    str(name): tuple(rows["patient"]) for name, rows in develop.groupby("cohort", sort=True)
                }
            folds = list(_leave_one_out(plan, groups, develop, splits.params.inner_val, tasks, seed))
        yield from folds[: params.folds]


def _leave_one_out(
    plan: Plan,
    groups: Mapping[str, Sequence[str]],
    develop: pd.DataFrame,
    inner_val: float,
    tasks: Sequence[Task],
    seed: int,
) -> Iterator[PlannedFold]:
    if len(groups) < 3:
        raise DataError(
            f"{plan} needs three groups, so that two remain to train together; there are {', '.join(groups)}",
            where="federation.evaluation.plans",
            fix="use the plan folds, or a scheme that makes more clients",
        )
    for index, (name, left_out) in enumerate(groups.items()):
        rest = develop[~develop["patient"].isin(set(left_out))]
        train, val = train_val_split(rest, main_task(tasks), inner_val, [seed, 0], index)
        yield PlannedFold(plan, Fold(0, index, train, val, tuple(left_out)), name)


def train_val_split(
    patients: pd.DataFrame, task: Task, inner_val: float, seed: Sequence[int], child: int = 0
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Training and inner validation patients out of one table, stratified on a task.

    Parameters
    ----------
    patients
        Two rows or more, with the columns of the task.
    task
        Classes, events or quartiles keep their share in both parts.
    inner_val
        Share of the validation part.
    seed, child
        Of the draw.
    """
    keys = patients["patient"].to_numpy(dtype=object)
    rng = np.random.default_rng(np.random.SeedSequence(list(seed), spawn_key=(child,)))
    strata = strata_of(task, patients)
    val = draw_stratified(strata, inner_val, rng, required=not isinstance(task, RegressionTask))
    train = np.setdiff1d(np.arange(len(keys)), val)
    return tuple(keys[train].tolist()), tuple(keys[val].tolist())


def learnable(task: Task, patients: pd.DataFrame) -> bool:
    """Whether a task can be learned from these patients: two classes, two values, or an event among two patients."""
    known = patients[list(task.frame_columns)].dropna()
    values = known[task.frame_columns[-1]]
    if isinstance(task, SurvivalTask):
        return len(known) > 1 and bool((values > 0).any())
    return values.nunique() > 1

"""Who trains, who validates and who is judged: the folds of the study, and one site or one cohort left out in turn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.splits import Fold, SplitParams, draw_stratified, make_folds, strata_of
from equipoise.datasets.tasks import RegressionTask, SurvivalTask, Task, main_task
from equipoise.platform.errors import DataError
from equipoise.platform.federation.setting import Plan, PlanParams
from equipoise.platform.federation.sites import Client

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class PlannedFold:
    """One federation to train.

    Parameters
    ----------
    plan
        Which plan it belongs to.
    fold
        Training, inner validation and test patients.
    left_out
        The site or cohort that is tested as a whole; empty in the plan ``folds``.
    """

    plan: Plan
    fold: Fold
    left_out: str = ""

    def parts(self, clients: Sequence[Client]) -> dict[str, Fold]:
        """Client → its own training, validation and test patients; clients without training patients are absent."""
        found = {}
        for client in clients:
            train, val, test = (client.of(getattr(self.fold, part)) for part in ("train", "val", "test"))
            if train:
                found[client.name] = Fold(self.fold.repeat, self.fold.index, train, val, test)
        return found


def planned(
    params: PlanParams,
    clients: Sequence[Client],
    patients: pd.DataFrame,
    splits: SplitParams,
    tasks: Sequence[Task],
    seed: int,
) -> Iterator[PlannedFold]:
    """All federations of a study.

    Parameters
    ----------
    params
        Plans, and how many folds of each.
    clients
        Who owns whom.
    patients
        Table of :class:`~equipoise.datasets.cohort.Cohorts`.
    splits, tasks, seed
        Of the study.

    Raises
    ------
    DataError
        If fewer than two clients, or cohorts, are left to train.
    """
    develop = patients[patients["role"] == "develop"].sort_values("patient", kind="stable")
    for plan in params.plans:
        if plan == "folds":
            found = [PlannedFold(plan, fold) for fold in make_folds(patients, splits, tasks, seed)]
        else:
            groups: Mapping[str, Sequence[str]]
            if plan == "leave_one_site_out":
                groups = {client.name: client.patients for client in clients}
            else:
                groups = {
                    str(name): tuple(own["patient"]) for name, own in develop.groupby("cohort", sort=True)
                }
            found = list(_one_out(plan, groups, develop, splits.inner_val, tasks, seed))
        yield from found[: params.folds]


def _one_out(
    plan: Plan,
    groups: Mapping[str, Sequence[str]],
    develop: pd.DataFrame,
    inner_val: float,
    tasks: Sequence[Task],
    seed: int,
) -> Iterator[PlannedFold]:
    if len(groups) < 3:
        raise DataError(
            f"{plan} needs three groups, so that two are left to train together; there are {', '.join(groups)}",
            where="federation.evaluation.plans",
            fix="use the plan folds, or a scheme that makes more clients",
        )
    for index, (name, members) in enumerate(groups.items()):
        rest = develop[~develop["patient"].isin(set(members))]
        train, val = divide(rest, main_task(tasks), inner_val, [seed, 0], index)
        yield PlannedFold(plan, Fold(0, index, train, val, tuple(members)), name)


def divide(
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
    """Whether these patients alone show what a task needs: two classes, two values, an event among two patients."""
    known = patients[list(task.frame_columns)].dropna()
    values = known[task.frame_columns[-1]]
    if isinstance(task, SurvivalTask):
        return len(known) > 1 and bool((values > 0).any())
    return values.nunique() > 1

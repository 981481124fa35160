"""Tables that carry the batch they were prepared in, and the tasks whose labels the batch gives away.

:mod:`equipoise.datasets.omics.batch_values` finds who was prepared together; here the groups are named by cohort and
held against every task. The result stands under ``manifest/``, and ``validate``, audit and report say it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.datasets.omics.batch_values import batches_by_exact_values, standardised_cohorts
from equipoise.datasets.omics.params import OMICS

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.tables.tasks import Task

#: Under ``manifest/``.
FILE = "table_batches.json"
#: p below which a task's labels differ between batches.
LEVEL = 0.001


@dataclass(frozen=True)
class TaskOfBatches:
    """What the batch alone says about a task, on the patients in whom it was found.

    Attributes
    ----------
    task, metric
        Name; ``balanced accuracy``, ``C-index`` or ``explained variance``.
    value, chance
        Of predicting from the batch alone, and of knowing nothing.
    p
        Of equal labels in all batches: chi-squared, log-rank or Kruskal-Wallis test.
    """

    task: str
    metric: str
    value: float
    chance: float
    p: float

    @property
    def spoiled(self) -> bool:
        """Whether the labels differ between batches."""
        return self.p < LEVEL


@dataclass(frozen=True)
class TableBatches:
    """A table whose values tell groups of patients apart that were prepared separately.

    Attributes
    ----------
    modality
        Name of the table.
    reason
        ``exact values``: every group has repeated values that no other has. ``standardised``: every column of these
        cohorts has mean 0 and standard deviation 1.
    groups
        Per group, cohort → patients.
    tasks
        What the group alone says about every task.
    """

    modality: str
    reason: str
    groups: tuple[dict[str, int], ...]
    tasks: tuple[TaskOfBatches, ...]

    @property
    def sentence(self) -> str:
        """For terminal and report."""
        groups = "; ".join(
            ", ".join(f"{n} of {cohort}" for cohort, n in group.items()) for group in self.groups
        )
        what = {
            "exact values": f"{len(self.groups)} groups of patients share no repeated value such as the floor of a "
            "gene, so that a model can read from them who was prepared together",
            "standardised": "all columns of these cohorts have mean 0 and standard deviation 1: they were "
            "standardised apart",
        }[self.reason]
        spoiled = [
            f"{t.task} ({t.metric} {t.value:.3f} by the group alone, {t.chance:.3f} by chance)"
            for t in self.tasks
            if t.spoiled
        ]
        named = f"spoiled: {'; '.join(spoiled)}" if spoiled else "no task's labels differ between the groups"
        return f"{self.modality} carries its batch: {what} ({groups}); {named}"

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        tasks = [asdict(task) | {"spoiled": task.spoiled} for task in self.tasks]
        return {
            "modality": self.modality,
            "reason": self.reason,
            "groups": list(self.groups),
            "tasks": tasks,
            "sentence": self.sentence,
        }


def tables_with_batches(cohorts: Cohorts) -> list[TableBatches]:
    """The omics tables of a study that carry batches, over development and external patients."""
    patients = cohorts.patients.set_index("patient")
    result = []
    for modality in OMICS:
        table = cohorts.omics.get(modality)
        if table is None:
            continue
        known = table.loc[[patient for patient in table.index if patient in patients.index]]
        cohort = patients["cohort"].reindex(known.index).to_numpy(str)
        rows = known.to_numpy(np.float32)
        groups = batches_by_exact_values(rows)
        if groups.max(initial=-1) > 0:
            result.append(_described(modality, "exact values", groups, cohort, known.index, cohorts))
        apart = standardised_cohorts(rows, cohort.tolist())
        if len(apart) > 1:
            position = {name: i for i, name in enumerate(apart)}
            groups = np.array([position.get(name, -1) for name in cohort])
            result.append(_described(modality, "standardised", groups, cohort, known.index, cohorts))
    return result


def _described(
    modality: str, reason: str, groups: np.ndarray, cohort: np.ndarray, index: pd.Index, cohorts: Cohorts
) -> TableBatches:
    named = []
    for group in range(groups.max() + 1):
        names, counts = np.unique(cohort[groups == group], return_counts=True)
        named.append(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    inside = groups >= 0
    patients = cohorts.patients.set_index("patient").reindex(index[inside])
    tasks = [_task_of_batches(task, patients, groups[inside]) for task in cohorts.tasks]
    return TableBatches(modality, reason, tuple(named), tuple(task for task in tasks if task is not None))


def _task_of_batches(task: Task, patients: pd.DataFrame, groups: np.ndarray) -> TaskOfBatches | None:
    """``None`` where fewer than two groups or two different labels are left."""
    columns = [f"{task.name}.time", f"{task.name}.event"] if task.type == "survival" else [task.name]
    known = patients[columns].notna().all(axis=1).to_numpy()
    labels, groups = patients[columns].to_numpy(float)[known], groups[known]
    if len(np.unique(groups)) < 2 or len(np.unique(labels[:, -1])) < 2:
        return None
    if task.type == "survival":
        return _survival(task.name, labels[:, 0], labels[:, 1], groups)
    if task.type == "regression":
        return _regression(task.name, labels[:, 0], groups)
    return _classes(task.name, labels[:, 0], groups)


def _classes(name: str, labels: np.ndarray, groups: np.ndarray) -> TaskOfBatches:
    """Every group is called the class that is most over-represented in it."""
    from scipy.stats import chi2_contingency

    counts = _cross_counts(groups, labels)
    shares = counts / counts.sum(axis=0)
    accuracy = shares.max(axis=1).sum() / counts.shape[1]
    p = chi2_contingency(counts).pvalue
    return TaskOfBatches(name, "balanced accuracy", float(accuracy), 1 / counts.shape[1], float(p))


def _survival(name: str, days: np.ndarray, event: np.ndarray, groups: np.ndarray) -> TaskOfBatches:
    """Groups ranked by events per day of follow-up."""
    from equipoise.platform.evaluation.metrics import harrell_c
    from equipoise.platform.evaluation.survival import log_rank

    rates = np.bincount(groups, event) / np.maximum(np.bincount(groups, days), 1e-9)
    p = log_rank(days, event, groups).p
    return TaskOfBatches(
        name, "C-index", float(harrell_c(days, event, rates[groups])), 0.5, float(1 if np.isnan(p) else p)
    )


def _regression(name: str, values: np.ndarray, groups: np.ndarray) -> TaskOfBatches:
    """The group's mean as a prediction."""
    from scipy.stats import kruskal

    means = np.bincount(groups, values) / np.maximum(np.bincount(groups), 1)
    explained = 1 - ((values - means[groups]) ** 2).sum() / ((values - values.mean()) ** 2).sum()
    p = kruskal(*(values[groups == group] for group in np.unique(groups))).pvalue
    return TaskOfBatches(name, "explained variance", float(explained), 0.0, float(p))


def _cross_counts(first: Sequence[Any] | np.ndarray, second: np.ndarray) -> np.ndarray:
    """[groups, labels] counts of those that occur."""
    groups, i = np.unique(first, return_inverse=True)
    labels, j = np.unique(second, return_inverse=True)
    counts = np.zeros((len(groups), len(labels)))
    np.add.at(counts, (i, j), 1)
    return counts

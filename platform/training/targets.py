"""Target fitting: heads, class weights, scalers, table transforms, widths and sites, from training patients.

Everything is fitted once per fold, on training patients only, and stored beside the weights as ``targets.json``. It
is used in both directions: labels → training targets, and outputs → scores in the units of the table. The
transforms of omics and covariates (:mod:`equipoise.datasets.omics`) are part of it.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from equipoise.datasets.omics.fitting import (
    TableRows,
    TableTransform,
    columns_of,
    fit_tables,
    transform_from_json,
    transform_to_json,
)
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.targets import TargetScaler, interval_edges
from equipoise.datasets.tables.tasks import BINS
from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.losses import balanced_weights
from equipoise.platform.errors import DataError, DataWarning

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.tables.tasks import SurvivalTask, Task

#: A label as a case holds it: a number, or (days, event); NaN or None where it is missing.
Label = float | Sequence[float] | None


@dataclass(frozen=True)
class TaskTarget:
    """One task, fitted on its training labels.

    Parameters
    ----------
    head
        Description of the task for the model.
    classes
        Names of the classes with a row in the predictions table: the positive one for binary, all for
        multiclass.
    class_weights
        K weights of the classes in the loss, or None.
    scaler
        Scaling of a regression target, or None.
    """

    head: TaskHead
    classes: tuple[str, ...] = ()
    class_weights: tuple[float, ...] | None = None
    scaler: TargetScaler | None = None

    def encode(self, label: Label) -> float | tuple[float, float] | None:
        """The training target of a label; None if it is missing."""
        if is_missing(label):
            return None
        if self.head.kind == "survival":
            days, event = label  # type: ignore[misc]
            return float(days), float(event)
        return float(label if self.scaler is None else self.scaler.transform(label))  # type: ignore[arg-type]

    def decode(self, scores: np.ndarray) -> np.ndarray:
        """Model outputs of a regression task in the units of the table."""
        return scores if self.scaler is None else self.scaler.inverse(scores)


@dataclass(frozen=True)
class Targets:
    """All tasks of a fold, and the widths and sites that define the layout of a batch.

    Parameters
    ----------
    tasks
        In the order of the study.
    shape
        Widths of tile features and of the tables as models read them.
    sites
        Sites of the training patients, sorted; the site index of a batch refers to them.
    tables
        Modality → transform of its rows.
    """

    tasks: tuple[TaskTarget, ...]
    shape: CaseShape
    sites: tuple[str, ...] = field(default=())
    tables: Mapping[str, TableTransform] = field(default_factory=dict)

    @property
    def heads(self) -> tuple[TaskHead, ...]:
        """Heads of all tasks, from which a model and a balancer are built."""
        return tuple(task.head for task in self.tasks)

    @property
    def class_weights(self) -> dict[str, tuple[float, ...]]:
        """Weights of the tasks that have some."""
        return {task.head.name: task.class_weights for task in self.tasks if task.class_weights is not None}

    @property
    def main(self) -> TaskHead:
        """The task marked as main, else the first."""
        return next((head for head in self.heads if head.main), self.heads[0])

    def site_index(self, site: str) -> int:
        """Index of a training site, -1 for any other."""
        return self.sites.index(site) if site in self.sites else -1

    def to_json(self) -> dict[str, Any]:
        """Plain data for ``targets.json``."""
        return {
            "tasks": [
                {
                    "name": task.head.name,
                    "kind": task.head.kind,
                    "outputs": task.head.outputs,
                    "main": task.head.main,
                    "edges": None if task.head.edges is None else list(task.head.edges),
                    "classes": list(task.classes),
                    "class_weights": None if task.class_weights is None else list(task.class_weights),
                    "scaler": None if task.scaler is None else json.loads(task.scaler.to_json()),
                }
                for task in self.tasks
            ],
            "features": self.shape.features,
            "omics": dict(self.shape.omics),
            "sites": list(self.sites),
            "tables": {name: transform_to_json(table) for name, table in self.tables.items()},
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Targets:
        """The inverse of :meth:`to_json`."""
        tasks = []
        for row in data["tasks"]:
            weights, scaler, edges = row["class_weights"], row["scaler"], row.get("edges")
            edges = None if edges is None else tuple(edges)
            tasks.append(
                TaskTarget(
                    TaskHead(row["name"], row["kind"], row["outputs"], row["main"], edges),
                    tuple(row["classes"]),
                    None if weights is None else tuple(weights),
                    None if scaler is None else TargetScaler.from_json(json.dumps(scaler)),
                )
            )
        tables = {name: transform_from_json(table) for name, table in data["tables"].items()}
        return cls(tuple(tasks), CaseShape(data["features"], data["omics"]), tuple(data["sites"]), tables)


def is_missing(label: Label) -> bool:
    """Whether a case has no label: nothing, NaN, or a survival label with a part missing."""
    if label is None:
        return True
    if isinstance(label, Sequence | np.ndarray):
        return any(part is None or part != part for part in label)
    return bool(label != label)


def fit_targets(
    tasks: Sequence[Task],
    train: Iterable[Case],
    *,
    class_weights: Literal["balanced", "none"] = "balanced",
    scaling: Literal["minmax", "standard"] = "minmax",
    tables: TableParams | None = None,
) -> Targets:
    """Fit class weights, scalers, transforms of tables, widths and sites from training patients.

    Parameters
    ----------
    tasks
        Specifications of the study.
    train
        Training patients only; read once, one at a time.
    class_weights, scaling
        As in :class:`~equipoise.platform.training.params.TrainingParams`.
    tables
        Section ``tables`` of the study.

    Raises
    ------
    DataError
        If there is no training patient, bags differ in width, there is neither a tile nor a table, cohorts hold
        RNA on different scales, or the main task (the first, if none is marked) cannot be
        learned: no label, a single value, or no event.

    Warns
    -----
    DataWarning
        If another task cannot be learned, a class of a multiclass task has no training patient, or a table
        has nothing that differs.
    """
    labels: dict[str, list[Any]] = {task.name: [] for task in tasks}
    sites: set[str] = set()
    widths: set[int] = set()
    rows: dict[str, TableRows] = {}
    for case in train:
        sites.add(case.site)
        if len(case.bag):
            widths.add(case.bag.shape[1])
        for modality, values in case.omics.items():
            columns = columns_of(len(values), case.columns.get(modality))
            table = rows.setdefault(modality, TableRows(columns))
            table.values.append(values)
            table.cohorts.append(case.cohort)
        for task in tasks:
            if not is_missing(case.targets.get(task.name)):
                labels[task.name].append(case.targets[task.name])
    transforms = fit_tables(rows, tables or TableParams())
    if len(widths) > 1:
        seen = f"tiles of {' and '.join(map(str, sorted(widths)))} features"
        raise DataError(
            f"the training part has {seen}; one width is needed",
            fix="extract all slides with the same encoder",
        )
    if not widths and not transforms:
        raise DataError(
            "the training part has no tile and no table to learn from",
            fix="manifest/exclusions.csv says who is left out and why",
        )
    shape = CaseShape(widths.pop() if widths else 0, {name: len(t.names) for name, t in transforms.items()})
    leading = next((task for task in tasks if task.main), tasks[0])
    fitted = tuple(_fit(t, labels[t.name], class_weights, scaling, leads=t is leading) for t in tasks)
    return Targets(fitted, shape, tuple(sorted(sites)), transforms)


def _fit(
    task: Task, labels: list[Any], class_weights: str, scaling: Literal["minmax", "standard"], *, leads: bool
) -> TaskTarget:
    """The target of one task; if it cannot be learned, that is an error for the leading task, else a warning."""
    name, main = task.name, task.main
    lacking = _why_not_learnable(task, labels)
    if lacking and leads:
        raise DataError(lacking, where=f"task {name}", fix="use fewer folds or another split scheme")
    if lacking:
        warnings.warn(f"task {name}: {lacking}; nothing of it is learned here", DataWarning, stacklevel=3)
    if task.type == "survival":
        edges = _edges(task, labels)
        return TaskTarget(TaskHead(name, "survival", 1 + len(edges or ()), main, edges))
    if task.type == "regression":
        shift = float(labels[0]) if labels else 0.0
        scaler = (
            TargetScaler(scaling, shift, 1.0) if lacking else TargetScaler.fit(np.asarray(labels), scaling)
        )
        return TaskTarget(TaskHead(name, "regression", 1, main), scaler=scaler)
    classes = tuple(task.class_names)
    outputs = 2 if task.type == "binary" else len(classes)
    seen = Counter(int(label) for label in labels)
    counts = [seen[k] for k in range(outputs)]
    weights = None
    if class_weights == "balanced":
        known_weights = iter(balanced_weights([count for count in counts if count]))
        # The weight of an absent class does not matter: it never enters the loss.
        weights = tuple(next(known_weights) if count else 1.0 for count in counts)
    return TaskTarget(TaskHead(name, task.type, outputs, main), classes, weights)


def _edges(task: SurvivalTask, labels: list[Any]) -> tuple[float, ...] | None:
    """Edges of the intervals of a discrete-time task, None for Cox's model."""
    if task.likelihood == "cox":
        return None
    bins = task.bins or BINS
    days, event = np.asarray(labels, float).reshape(-1, 2).T
    edges = interval_edges(days, event, bins)
    if event.any() and len(edges) + 1 < bins:
        warnings.warn(
            f"task {task.name}: event times of the training patients give {len(edges) + 1} intervals, not {bins}",
            DataWarning,
            stacklevel=4,
        )
    return edges


def _why_not_learnable(task: Task, labels: list[Any]) -> str:
    """Why a task cannot be learned from these training labels; empty if it can."""
    if not labels:
        return "no training patient has a label"
    if task.type == "survival":
        return (
            ""
            if any(event for _, event in labels)
            else f"none of {len(labels)} training patients has an event"
        )
    if len(set(labels)) == 1:
        shown = {"binary": ("negative", "positive")}.get(task.type, task.class_names)
        value = f"{labels[0]:g}" if task.type == "regression" else shown[int(labels[0])]
        return f"all {len(labels)} labelled training patients are {value}"
    if task.type == "multiclass":
        absent = [
            name for k, name in enumerate(task.class_names) if k not in {int(label) for label in labels}
        ]
        if absent:
            warnings.warn(
                f"task {task.name}: no training patient is {', '.join(absent)}", DataWarning, stacklevel=4
            )
    return ""

"""Target fitting: heads, class weights, scalers, table transforms, widths, sites and cohorts, from training patients.

Everything is fitted once per fold, on training patients only, and stored beside the weights as ``targets.json``. It
is used in both directions: labels → training targets, and outputs → scores in the units of the table. The
transforms of omics and covariates (:mod:`equipoise.datasets.omics`) are part of it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from equipoise.datasets.omics.fitting import (
    TableTransform,
    columns_of,
    columns_of_sets,
    fit_tables,
    transform_from_json,
    transform_to_json,
    with_cohorts_of,
)
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.targets import TargetScaler
from equipoise.datasets.tables.tasks import BINS
from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.losses import balanced_weights
from equipoise.models.text.target import TextTarget
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.training.statistics import (
    Label,
    LabelSums,
    LocalStatistics,
    Statistics,
    TrainingRows,
    is_missing,
    label_sums,
    presence_of,
)
from equipoise.platform.training.text import class_target, load_text_encoder, survival_target

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.tables.tasks import SurvivalTask, Task
    from equipoise.models.text.params import TextParams


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
    cohorts
        Cohorts of the training patients, sorted; the cohort index of a batch refers to them.
    """

    tasks: tuple[TaskTarget, ...]
    shape: CaseShape
    sites: tuple[str, ...] = field(default=())
    tables: Mapping[str, TableTransform] = field(default_factory=dict)
    cohorts: tuple[str, ...] = field(default=())

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

    def with_cohorts_of(self, cases: Iterable[Case]) -> Targets:
        """Targets whose tables are prepared for the cohorts of these cases, too.

        Only a table that is standardised per cohort has anything to prepare: a cohort that training did not have is
        standardised on the patients given here. Their labels are not read.

        Raises
        ------
        DataError
            If such a cohort has fewer than ten patients here.
        """
        if not any(transform.per_cohort for transform in self.tables.values()):
            return self
        rows: dict[str, dict[str, list[tuple[tuple[str, ...], np.ndarray]]]] = {}
        for case in cases:
            for modality, values in case.omics.items():
                columns = columns_of(len(values), case.columns.get(modality))
                part = rows.setdefault(modality, {}).setdefault(case.cohort, [])
                part.append((columns, np.asarray(values, np.float32)))
        return replace(self, tables=with_cohorts_of(self.tables, rows))

    def cohort_index(self, cohort: str) -> int:
        """Index of a training cohort, -1 for any other."""
        return self.cohorts.index(cohort) if cohort in self.cohorts else -1

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
                    **({"stratified": True} if task.head.stratified else {}),
                    **({} if task.head.text is None else {"text": task.head.text.to_json()}),
                }
                for task in self.tasks
            ],
            "features": self.shape.features,
            "omics": dict(self.shape.omics),
            **(
                {"sets": {name: [list(s) for s in sets] for name, sets in self.shape.sets.items()}}
                if self.shape.sets
                else {}
            ),
            **(
                {"presence": {name: list(part) for name, part in self.shape.presence.items()}}
                if self.shape.presence
                else {}
            ),
            "sites": list(self.sites),
            "cohorts": list(self.cohorts),
            "tables": {name: transform_to_json(table) for name, table in self.tables.items()},
        }

    def training_json(self) -> dict[str, Any]:
        """The part of :meth:`to_json` that decides a training: cohorts only where they are strata."""
        known = self.to_json()
        if not any(head.stratified for head in self.heads):
            del known["cohorts"]
        return known

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Targets:
        """The inverse of :meth:`to_json`.

        Raises
        ------
        DataError
            If the embeddings of labels are not those that were stored.
        """
        tasks = []
        for row in data["tasks"]:
            weights, scaler, edges = row["class_weights"], row["scaler"], row.get("edges")
            edges = None if edges is None else tuple(edges)
            try:
                text = TextTarget.from_json(row["text"]) if "text" in row else None
            except ValueError as error:
                raise DataError(str(error), where=f"targets of task {row['name']}") from error
            tasks.append(
                TaskTarget(
                    TaskHead(
                        row["name"],
                        row["kind"],
                        row["outputs"],
                        row["main"],
                        edges,
                        row.get("stratified", False),
                        text,
                    ),
                    tuple(row["classes"]),
                    None if weights is None else tuple(weights),
                    None if scaler is None else TargetScaler.from_json(json.dumps(scaler)),
                )
            )
        tables = {name: transform_from_json(table) for name, table in data["tables"].items()}
        sets = {name: tuple(tuple(s) for s in rows) for name, rows in data.get("sets", {}).items()}
        presence = {name: tuple(part) for name, part in data.get("presence", {}).items()}
        shape = CaseShape(data["features"], data["omics"], sets, presence)
        return cls(tuple(tasks), shape, tuple(data["sites"]), tables, tuple(data.get("cohorts", ())))


def fit_targets(
    tasks: Sequence[Task],
    train: Iterable[Case],
    *,
    class_weights: Literal["balanced", "none"] = "balanced",
    scaling: Literal["minmax", "standard"] = "minmax",
    tables: TableParams | None = None,
    text: TextParams | None = None,
    presence: bool = False,
) -> Targets:
    """:func:`targets_from_statistics` of training patients that are at hand: read once, one at a time."""
    statistics = LocalStatistics(TrainingRows.of(train, tasks))
    return targets_from_statistics(
        tasks,
        statistics,
        class_weights=class_weights,
        scaling=scaling,
        tables=tables,
        text=text,
        presence=presence,
    )


def targets_from_statistics(
    tasks: Sequence[Task],
    statistics: Statistics,
    *,
    class_weights: Literal["balanced", "none"] = "balanced",
    scaling: Literal["minmax", "standard"] = "minmax",
    tables: TableParams | None = None,
    text: TextParams | None = None,
    presence: bool = False,
) -> Targets:
    """Fit class weights, scalers, transforms of tables, widths, sites and cohorts from sums over training patients.

    Parameters
    ----------
    tasks
        Specifications of the study.
    statistics
        Of the training patients only, wherever they are.
    class_weights, scaling
        As in :class:`~equipoise.platform.training.params.TrainingParams`.
    tables
        Section ``tables`` of the study.
    text
        Section ``training.text``: which tasks have a head on text; None for none.
    presence
        Whether the model asks what share of the patients of each class has a modality.

    Raises
    ------
    DataError
        If bags differ in width, there is neither a tile nor a table, cohorts or clients hold
        RNA on different scales, or the main task (the first, if none is marked) cannot be
        learned: no label, a single value, or no event.

    Warns
    -----
    DataWarning
        If another task cannot be learned, a class of a multiclass task has no training patient, events give fewer
        intervals than asked for, or a table has nothing that differs.
    """
    widths = sorted(statistics.widths)
    if len(widths) > 1:
        raise DataError(
            f"the training part has tiles of {' and '.join(map(str, widths))} features; one width is needed",
            fix="extract all slides with the same encoder",
        )
    transforms = fit_tables(statistics.tables, tables or TableParams())
    if not widths and not transforms:
        raise DataError(
            "the training part has no tile and no table to learn from",
            fix="manifest/exclusions.csv says who is left out and why",
        )
    leading = next((task for task in tasks if task.main), tasks[0])
    shape = CaseShape(
        widths[0] if widths else 0,
        {name: len(t.names) for name, t in transforms.items()},
        columns_of_sets(transforms, tables or TableParams()),
        _presence(statistics, leading, {*transforms, *(["wsi"] if widths else [])}) if presence else {},
    )
    sums = label_sums(statistics, tasks)
    fitted = []
    for task in tasks:
        reason = _why_not_learnable(task, sums[task.name])
        if reason and task is leading:
            raise DataError(reason, where=f"task {task.name}", fix="use fewer folds or another split scheme")
        if reason:
            warnings.warn(
                f"task {task.name}: {reason}; nothing of it is learned here", DataWarning, stacklevel=2
            )
        target = _fit(task, sums[task.name], statistics, class_weights, scaling, learnable=not reason)
        if text is not None and text.takes(task.name, task.type):
            target = _on_text(task, target, sums[task.name], statistics, text)
        fitted.append(target)
    sites, cohorts = (tuple(sorted(names)) for names in (statistics.sites, statistics.cohorts))
    return Targets(tuple(fitted), shape, sites, transforms, cohorts)


def _presence(statistics: Statistics, main: Task, modalities: set[str]) -> dict[str, tuple[float, ...]]:
    """Modality → share of the patients of each class that have it, of modalities that the model reads."""
    shares = presence_of(statistics)
    if not shares:
        raise DataError(
            "modality dropout is balanced over the classes of the main task, which has none",
            where=f"task {main.name}",
            fix="make a task with classes or events the main one, or write model: {class_balanced_dropout: false}",
        )
    names = main.class_names if main.type == "multiclass" else None
    nobody = (0.0,) * (len(names) if names else 2)
    shares = {name: shares.get(name, nobody) for name in sorted(modalities)}
    for name, of_classes in shares.items():
        never = [at for at, share in enumerate(of_classes) if not share]
        if never and any(of_classes):
            kinds = names or (
                ("no event", "an event") if main.type == "survival" else ("negative", "positive")
            )
            warnings.warn(
                f"task {main.name}: no training patient of {', '.join(kinds[at] for at in never)} has {name}, which "
                "no dropout can hide",
                DataWarning,
                stacklevel=3,
            )
    return shares


def _fit(
    task: Task,
    sums: LabelSums,
    statistics: Statistics,
    class_weights: str,
    scaling: Literal["minmax", "standard"],
    *,
    learnable: bool,
) -> TaskTarget:
    """The target of one task."""
    name, main = task.name, task.main
    if task.type == "survival":
        edges = _edges(task, sums, statistics)
        stratified = edges is None and task.strata == "cohort"
        return TaskTarget(TaskHead(name, "survival", 1 + len(edges or ()), main, edges, stratified))
    if task.type == "regression":
        shift, scale = sums.mean, sums.spread
        if not learnable:
            scale = 1.0
        elif scaling == "minmax":
            shift, scale = statistics.extent(name, sums.mean, sums.spread)
        return TaskTarget(TaskHead(name, "regression", 1, main), scaler=TargetScaler(scaling, shift, scale))
    weights = None
    if class_weights == "balanced":
        present = [count for count in sums.classes if count]
        known_weights = iter(balanced_weights(present) if present else ())
        # The weight of an absent class does not matter: it never enters the loss.
        weights = tuple(next(known_weights) if count else 1.0 for count in sums.classes)
    return TaskTarget(TaskHead(name, task.type, len(sums.classes), main), tuple(task.class_names), weights)


def _on_text(
    task: Task, target: TaskTarget, sums: LabelSums, statistics: Statistics, params: TextParams
) -> TaskTarget:
    """The same task with a head on text."""
    encoder = load_text_encoder(params)
    head = target.head
    if task.type != "survival":
        text = class_target(task, sums.classes, params, encoder)
        return replace(target, head=replace(head, text=text))
    edges, text = survival_target(task, statistics.life_table(task.name), params, encoder)
    new = TaskHead(head.name, "survival", 1 + len(edges), head.main, edges, text=text)
    return replace(target, head=new)


def _edges(task: SurvivalTask, sums: LabelSums, statistics: Statistics) -> tuple[float, ...] | None:
    """Edges of the intervals of a discrete-time task, None for Cox's model."""
    if task.likelihood == "cox":
        return None
    bins = task.bins or BINS
    edges = statistics.edges(task.name, bins)
    if sums.classes[1] and len(edges) + 1 < bins:
        warnings.warn(
            f"task {task.name}: event times of the training patients give {len(edges) + 1} intervals, not {bins}",
            DataWarning,
            stacklevel=4,
        )
    return edges


def _why_not_learnable(task: Task, sums: LabelSums) -> str:
    """Why a task cannot be learned from the training labels; empty if it can."""
    if not sums.n:
        return "no training patient has a label"
    if task.type == "survival":
        return "" if sums.classes[1] else f"none of {sums.n} training patients has an event"
    if task.type == "regression":
        # The mean of equal values may be off in its last digits, and so may be their distance from it.
        constant = sums.spread <= 1e-12 * abs(sums.mean)
        return f"all {sums.n} labelled training patients are {sums.mean:g}" if constant else ""
    shown = {"binary": ("negative", "positive")}.get(task.type, task.class_names)
    present = [name for name, count in zip(shown, sums.classes, strict=True) if count]
    if len(present) == 1:
        return f"all {sums.n} labelled training patients are {present[0]}"
    if len(present) < len(shown):
        absent = ", ".join(name for name in shown if name not in present)
        warnings.warn(f"task {task.name}: no training patient is {absent}", DataWarning, stacklevel=3)
    return ""

"""What is read of training patients to fit the targets of a fold, as sums that add up over groups of patients.

Training in one place has one group whose rows are at hand (:class:`LocalStatistics`); a federation has one group per
client (:mod:`equipoise.platform.federation.standardisation`). Both answer the same questions with the same functions
below; extremes of a target and quantiles of event times, which single patients determine, are the exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from equipoise.datasets.omics.fitting import columns_of
from equipoise.datasets.omics.statistics import LocalTable, Sums, TableSums
from equipoise.datasets.tables.targets import interval_edges

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.tables.tasks import Task

#: A label as a case holds it: a number, or (days, event); NaN or None where it is missing.
Label = float | Sequence[float] | None


def is_missing(label: Label) -> bool:
    """Whether a case has no label: nothing, NaN, or a survival label with a part missing."""
    if label is None:
        return True
    if isinstance(label, Sequence | np.ndarray):
        return any(part is None or part != part for part in label)
    return bool(label != label)


@dataclass
class TableRows:
    """Rows of one table, patient by patient.

    Attributes
    ----------
    columns
        Names of the columns of the first row.
    rows
        Names and [G] values of every patient that has the table.
    cohorts
        Their cohorts.
    """

    columns: tuple[str, ...]
    rows: list[tuple[tuple[str, ...], np.ndarray]] = field(default_factory=list)
    cohorts: list[str] = field(default_factory=list)

    def matrix(self, columns: tuple[str, ...]) -> np.ndarray:
        """``[n, G]`` float32 by name of column; NaN where a row lacks one."""
        return np.stack([_by_name(values, names, columns) for names, values in self.rows])


def _by_name(values: np.ndarray, names: tuple[str, ...], columns: tuple[str, ...]) -> np.ndarray:
    if names == columns:
        return np.asarray(values, np.float32)
    known = dict(zip(names, values.tolist(), strict=True))
    return np.array([known.get(name, np.nan) for name in columns], np.float32)


@dataclass
class TrainingRows:
    """Labels and tables of the training patients of one group, read in one pass; bags are not kept.

    Attributes
    ----------
    labels
        Task → labels of the patients that have one: numbers, or (days, event).
    tables
        Modality → rows.
    sites, cohorts
        Sites and cohorts of the patients.
    widths
        Features per tile that their bags have.
    presence
        Modality → ``[K]`` patients of each class of the main task that have it; ``""`` → all of them. Empty if the main
        task has no classes and no events.
    """

    labels: dict[str, list[Any]]
    tables: dict[str, TableRows] = field(default_factory=dict)
    sites: set[str] = field(default_factory=set)
    widths: set[int] = field(default_factory=set)
    cohorts: set[str] = field(default_factory=set)
    presence: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, cases: Iterable[Case], tasks: Sequence[Task]) -> TrainingRows:
        """Read every case once, one at a time."""
        result = cls({task.name: [] for task in tasks})
        main = next((task for task in tasks if task.main), tasks[0])
        for case in cases:
            result._count(case, main)
            result.sites.add(case.site)
            result.cohorts.add(case.cohort)
            if len(case.bag):
                result.widths.add(case.bag.shape[1])
            for modality, values in case.omics.items():
                columns = columns_of(len(values), case.columns.get(modality))
                table = result.tables.setdefault(modality, TableRows(columns))
                table.rows.append((columns, values))
                table.cohorts.append(case.cohort)
            for task in tasks:
                if not is_missing(case.targets.get(task.name)):
                    result.labels[task.name].append(case.targets[task.name])
        return result

    def _count(self, case: Case, main: Task) -> None:
        label = case.targets.get(main.name)
        if main.type == "regression" or is_missing(label):
            return
        at = int(np.asarray(label, float).reshape(-1)[-1] > 0 if main.type != "multiclass" else label)  # type: ignore[arg-type]
        classes = len(main.class_names) if main.type == "multiclass" else 2
        for name in ["", *(["wsi"] if len(case.bag) else []), *case.omics]:
            self.presence.setdefault(name, np.zeros(classes))[at] += 1


@dataclass(frozen=True)
class LifeTable:
    """Events of a survival task, day by day.

    Attributes
    ----------
    days
        [m] days on which there was an event, ascending.
    events, at_risk
        [m] events on each of them, and patients whose follow-up had not ended before.
    """

    days: np.ndarray
    events: np.ndarray
    at_risk: np.ndarray

    @classmethod
    def of(cls, days: np.ndarray, event: np.ndarray) -> LifeTable:
        """From [n] days and [n] events (1) or censorings (0)."""
        days, happened = np.asarray(days, float), np.asarray(event) > 0
        distinct, events = np.unique(days[happened], return_counts=True)
        at_risk = len(days) - np.searchsorted(np.sort(days), distinct)
        return cls(distinct, events.astype(float), at_risk.astype(float))

    @property
    def survival(self) -> np.ndarray:
        """[m] Kaplan-Meier estimate of the probability to survive each of the days."""
        return np.cumprod(1 - self.events / self.at_risk)


#: Rows of one group → its sums.
Query = Callable[[TrainingRows], Sums]


class Statistics(Protocol):
    """Training patients that answer with sums, in one group or several."""

    #: Sites and cohorts of all patients, and features per tile that occur.
    sites: set[str]
    cohorts: set[str]
    widths: set[int]

    @property
    def tables(self) -> Mapping[str, TableSums]:
        """Modality → its table."""

    def total(self, query: Query) -> Sums:
        """Sums over all groups."""

    def extent(self, task: str, mean: float, spread: float) -> tuple[float, float]:
        """Lower end and width of a regression target with this mean and standard deviation."""

    def edges(self, task: str, bins: int) -> tuple[float, ...]:
        """Days that cut follow-up into ``bins`` intervals with about equally many events each."""

    def life_table(self, task: str) -> LifeTable:
        """Events of a survival task, day by day."""


class LocalStatistics:
    """Training patients whose rows are at hand."""

    def __init__(self, rows: TrainingRows) -> None:
        self.rows = rows
        self.sites, self.widths, self.cohorts = rows.sites, rows.widths, rows.cohorts
        self.tables = {
            modality: LocalTable(table.matrix(table.columns), table.columns, table.cohorts)
            for modality, table in rows.tables.items()
        }

    def total(self, query: Query) -> Sums:
        """See :class:`Statistics`."""
        return query(self.rows)

    def extent(self, task: str, mean: float, spread: float) -> tuple[float, float]:
        """From the smallest to the largest label."""
        values = np.asarray(self.rows.labels[task], np.float64)
        return float(values.min()), float(values.max() - values.min())

    def edges(self, task: str, bins: int) -> tuple[float, ...]:
        """Quantiles of the event times (:func:`~equipoise.datasets.tables.targets.interval_edges`)."""
        days, event = survival_labels(self.rows, task)
        return interval_edges(days, event, bins)

    def life_table(self, task: str) -> LifeTable:
        """See :class:`Statistics`."""
        return LifeTable.of(*survival_labels(self.rows, task))


def survival_labels(rows: TrainingRows, task: str) -> tuple[np.ndarray, np.ndarray]:
    """[n] days and [n] events of a survival task."""
    days, event = np.asarray(rows.labels[task], np.float64).reshape(-1, 2).T
    return days, event


@dataclass(frozen=True)
class LabelSums:
    """Sums over the labels of one task, of all groups.

    Attributes
    ----------
    n
        Patients with a label.
    classes
        [K] patients per class; for a survival task, those without and with an event.
    mean, spread
        Of a regression target; its spread is the standard deviation of the whole, not of a sample.
    """

    n: int
    classes: tuple[int, ...] = ()
    mean: float = 0.0
    spread: float = 0.0


def label_sums(statistics: Statistics, tasks: Sequence[Task]) -> dict[str, LabelSums]:
    """Task → its sums, asked twice: squares are taken around the means."""
    zero = {task.name: 0.0 for task in tasks}
    first = statistics.total(lambda rows: _sums_of_labels(rows, tasks, zero))
    means = {
        task.name: float(first[f"{task.name}/sum"][0] / max(first[f"{task.name}/n"][0], 1))
        for task in tasks
        if task.type == "regression"
    }
    second = statistics.total(lambda rows: _sums_of_labels(rows, tasks, means)) if means else first
    result = {}
    for task in tasks:
        n = int(second[f"{task.name}/n"][0])
        if task.type == "regression":
            spread = float(np.sqrt(second[f"{task.name}/squares"][0] / max(n, 1)))
            result[task.name] = LabelSums(n, mean=means[task.name], spread=spread)
        else:
            counts = second[f"{task.name}/classes"]
            result[task.name] = LabelSums(n, classes=tuple(int(count) for count in counts))
    return result


def presence_of(statistics: Statistics) -> dict[str, tuple[float, ...]]:
    """Modality → share of the patients of each class of the main task that have it, 0 for a class without patients."""
    sums = statistics.total(lambda rows: dict(rows.presence))
    counts = sums.pop("", np.zeros(0))
    return {name: tuple((part / np.maximum(counts, 1)).tolist()) for name, part in sums.items()}


def _sums_of_labels(rows: TrainingRows, tasks: Sequence[Task], centres: Mapping[str, float]) -> Sums:
    sums: Sums = {}
    for task in tasks:
        values = np.asarray(rows.labels[task.name], np.float64)
        sums[f"{task.name}/n"] = np.array([float(len(values))])
        if task.type == "regression":
            deviation = values - centres[task.name]
            sums[f"{task.name}/sum"] = np.array([deviation.sum()])
            sums[f"{task.name}/squares"] = np.array([(deviation * deviation).sum()])
        else:
            survival = task.type == "survival"
            classes = (survival_labels(rows, task.name)[1] > 0 if survival else values).astype(int)
            count = len(task.class_names) if task.type == "multiclass" else 2
            sums[f"{task.name}/classes"] = np.bincount(classes, minlength=count).astype(np.float64)
    return sums

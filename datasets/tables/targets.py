"""Encodes columns of text as numbers: labels, cut-offs, measurements, survival times.

Every value that does not become a number has a reason; a value that the task does not name is an error that
shows the line to write. Nothing here assumes that ``MSI-L`` is MSS or that 1 means dead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import label_key
from equipoise.datasets.suggestions import nearest, value_counts
from equipoise.datasets.tables.plausibility import check_plausible
from equipoise.datasets.tables.reading import MISSING
from equipoise.datasets.tables.tasks import (
    DAYS,
    BinaryTask,
    MulticlassTask,
    RegressionTask,
    SurvivalTask,
    Task,
    TaskSpec,
    main_task,
)

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "BinaryTask",
    "EncodedTask",
    "MulticlassTask",
    "RegressionTask",
    "SurvivalTask",
    "TargetScaler",
    "Task",
    "TaskSpec",
    "encode",
    "interval_edges",
    "main_task",
]


@dataclass(frozen=True)
class EncodedTask:
    """A task's targets for n patients, in the order of the table.

    Attributes
    ----------
    value
        [n] float64: 0/1 (binary), class index (multiclass) or the number (regression); NaN = missing. Empty
        for survival.
    time, event
        [n] float64: days and 1 (happened) / 0 (censored); NaN = missing. Empty unless survival.
    reasons
        Patient → why there is no usable label.
    """

    name: str
    type: str
    patients: tuple[str, ...]
    value: np.ndarray
    time: np.ndarray
    event: np.ndarray
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def known(self) -> np.ndarray:
        """[n] bool: patients with a usable label."""
        return ~np.isnan(self.event if self.type == "survival" else self.value)

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of a patients table: ``NAME``, or ``NAME.time`` and ``NAME.event``."""
        if self.type == "survival":
            return {f"{self.name}.time": self.time, f"{self.name}.event": self.event}
        return {self.name: self.value}


def encode(task: Task, table: pd.DataFrame) -> EncodedTask:
    """Encode a task for all patients of a table.

    Parameters
    ----------
    task
        What to predict.
    table
        Text, indexed by patient, one row each, with the task's columns. Give all cohorts at once: which
        values a column has decides whether the label map is complete.

    Raises
    ------
    DataError
        If a column is missing, a value is neither mapped nor excluded, a mapped class never occurs, or
        numbers look as if they had lost their decimal point.
    """
    for column in task.columns:
        if column not in table.columns:
            raise DataError(
                f"no column {column!r}{nearest(column, table.columns)}",
                where=f"task {task.name!r}",
                fix="correct the task's column",
            )
    patients = tuple(str(patient) for patient in table.index)
    empty = np.empty(0)
    if isinstance(task, SurvivalTask):
        time, event, reasons = _encode_survival(task, table, patients)
        return EncodedTask(task.name, task.type, patients, empty, time, event, reasons)
    text = table[task.column].astype(str).tolist()
    where = f"task {task.name!r}, column {task.column!r}"
    if isinstance(task, RegressionTask):
        value, reasons = _numbers(text, patients, where, task.exclude)
        check_plausible(value, patients, where, allow=task.allow_wide_range)
    elif isinstance(task, MulticlassTask):
        index = {name: float(i) for i, name in enumerate(task.class_names)}
        mapping = {label: index[name] for label, name in task.classes.items()}
        _refuse_unmapped(text, mapping, task.exclude, where, _multiclass_remedy)
        _refuse_absent_classes(text, mapping, dict(enumerate(task.class_names)), where)
        value, reasons = _mapped(text, patients, mapping, task.exclude)
    elif task.cutoff is not None:
        value, reasons = _numbers(text, patients, where, task.exclude)
        check_plausible(value, patients, where, allow=task.allow_wide_range)
        value = np.where(np.isnan(value), np.nan, (value >= task.cutoff).astype(float))
    else:
        mapping = binary_mapping(
            text, task.positive, task.negative, task.exclude, where, ("positive", "negative")
        )
        value, reasons = _mapped(text, patients, mapping, task.exclude)
    return EncodedTask(task.name, task.type, patients, value, empty, empty, reasons)


def binary_mapping(
    text: list[str], one: list[str], zero: list[str], exclude: list[str], where: str, keys: tuple[str, str]
) -> dict[str, float]:
    """The map of labels to 1 and 0; where ``zero`` is empty and a single other value occurs, that value is 0.

    Parameters
    ----------
    keys
        Option names of ``one`` and ``zero``, for the messages.
    """
    mapping = dict.fromkeys(one, 1.0) | dict.fromkeys(zero, 0.0)
    if not zero:
        rest = sorted({label_key(v) for v in text if v not in MISSING} - set(one) - set(exclude))
        if len(rest) == 1:
            mapping[rest[0]] = 0.0
    _refuse_unmapped(
        text, mapping, exclude, where, lambda rest: f"{keys[1]}: [{', '.join(map(yaml_quoted, rest))}]"
    )
    classes = {1: f"{keys[0]}: {', '.join(one)}"}
    if keys[1] == "negative":  # a cohort in which everybody had the event can be analysed; one class cannot
        classes[0] = keys[1]
    _refuse_absent_classes(text, mapping, classes, where)
    return mapping


def _multiclass_remedy(rest: list[str]) -> str:
    return "classes: {…, " + ", ".join(f"{yaml_quoted(label)}: CLASS" for label in rest) + "}"


def _refuse_unmapped(
    text: list[str],
    mapping: dict[str, float],
    exclude: list[str],
    where: str,
    remedy: Callable[[list[str]], str],
) -> None:
    """A value that is no class and not excluded is an error that shows the line to write."""
    known = {*mapping, *exclude}
    rest = sorted({label_key(v) for v in text} - known - MISSING)
    if not rest:
        return
    near = nearest(rest[0], known)
    listed = ", ".join(map(yaml_quoted, rest))
    noun, verb = ("values", "are") if len(rest) > 1 else ("value", "is")
    raise DataError(
        f"{noun} {', '.join(map(repr, rest))} {verb} "
        f"neither a class nor excluded{near}. Values seen: {value_counts(map(label_key, text))}",
        where=where,
        fix=f"decide and write one of: {remedy(rest)} | exclude: [{listed}]",
    )


def _refuse_absent_classes(
    text: list[str], mapping: dict[str, float], names: dict[int, str], where: str
) -> None:
    """A class that no patient has cannot be learned: mostly a typing error."""
    seen = {mapping[key] for value in text if (key := label_key(value)) in mapping}
    for code, name in names.items():
        if float(code) not in seen:
            labels = [label for label, value in mapping.items() if value == code]
            near = nearest(labels[0], [v for v in map(label_key, text) if v not in mapping]) if labels else ""
            raise DataError(
                f"no patient has a value of class {name!r}{near}. "
                f"Values seen: {value_counts(map(label_key, text))}",
                where=where,
                fix="correct the label map, or drop the class or the task",
            )


def _mapped(
    text: list[str], patients: tuple[str, ...], mapping: dict[str, float], exclude: list[str]
) -> tuple[np.ndarray, dict[str, str]]:
    """Labels through a map; the map wins over what usually stands for missing."""
    value = np.full(len(text), np.nan)
    reasons = {}
    for i, (raw, patient) in enumerate(zip(text, patients, strict=True)):
        key = label_key(raw)
        if key in mapping:
            value[i] = mapping[key]
        else:
            reasons[patient] = f"label {key!r} is excluded" if key in exclude else _why_missing(raw)
    return value, reasons


def _why_missing(raw: str) -> str:
    return "no value" if raw == "" else f"{raw!r} counts as missing"


def _numbers(
    text: list[str], patients: tuple[str, ...], where: str, exclude: list[str]
) -> tuple[np.ndarray, dict[str, str]]:
    """Numbers of a column; what is no finite number is missing, with its reason."""
    value = np.full(len(text), np.nan)
    reasons, odd = {}, []
    for i, (raw, patient) in enumerate(zip(text, patients, strict=True)):
        if raw in MISSING:
            reasons[patient] = _why_missing(raw)
        elif label_key(raw) in exclude:
            reasons[patient] = f"value {raw!r} is excluded"
        elif (number := parse_number(raw)) is None:
            reasons[patient] = f"{raw!r} is not a number"
            odd.append(raw)
        else:
            value[i] = number
    if odd and len(odd) > np.count_nonzero(~np.isnan(value)):
        comma = any(re.fullmatch(r"[+-]?\d+,\d+", raw) for raw in odd)
        raise DataError(
            f"{len(odd)} of {len(text)} values are not numbers: {value_counts(odd, 5)}",
            where=where,
            fix="write decimal points instead of commas in the table"
            if comma
            else "name a numeric column, or a task of type binary or multiclass",
        )
    if np.isnan(value).all():
        raise DataError("no patient has a number", where=where, fix="name another column or drop the task")
    return value, reasons


def parse_number(text: str) -> float | None:
    """A finite number, or None. ``1_000`` and ``inf`` are no numbers in a table."""
    if "_" in text:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _encode_survival(
    task: SurvivalTask, table: pd.DataFrame, patients: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray, dict[str, str]]:
    """Time in days and event; a patient needs both, and a time after the start."""
    where = f"task {task.name!r}, column {task.time.column!r}"
    time, reasons = _numbers(table[task.time.column].astype(str).tolist(), patients, where, [])
    for i in np.flatnonzero(time <= 0):
        reasons[patients[i]] = f"time {time[i]:g} {task.time.unit} is not after the start of follow-up"
        time[i] = np.nan
    text = table[task.event.column].astype(str).tolist()
    where = f"task {task.name!r}, column {task.event.column!r}"
    spec = task.event
    mapping = binary_mapping(
        text, spec.event_value, spec.censored_value, spec.exclude, where, ("event_value", "censored_value")
    )
    event, event_reasons = _mapped(text, patients, mapping, spec.exclude)
    for patient, reason in event_reasons.items():
        reasons[patient] = (
            f"{reasons[patient]}; status: {reason}" if patient in reasons else f"status: {reason}"
        )
    missing = np.isnan(time) | np.isnan(event)
    time[missing] = event[missing] = np.nan
    return time * DAYS[task.time.unit], event, reasons


def interval_edges(time: np.ndarray, event: np.ndarray, bins: int) -> tuple[float, ...]:
    """Days that cut follow-up into intervals with about equally many events each, ascending.

    Edges are quantiles k / bins of the event times, taken as the next observed one, so that every interval
    ``[edge, next edge)`` has an event. Fit on training patients only.

    Parameters
    ----------
    time, event
        [n] days and 1 (happened) / 0 (censored), no value missing.
    bins
        Intervals asked for.

    Returns
    -------
    ``bins - 1`` edges; fewer where event times are tied or there are fewer of them than intervals.
    """
    times = np.asarray(time, float)[np.asarray(event) == 1]
    if len(times) == 0:
        return ()
    edges = np.unique(np.quantile(times, np.arange(1, bins) / bins, method="higher"))
    return tuple(edges[edges > times.min()].tolist())


@dataclass(frozen=True)
class TargetScaler:
    """Scale of a regression target, fitted on training values only: ``scaled = (value - shift) / scale``."""

    kind: Literal["standard", "minmax"]
    shift: float
    scale: float

    def transform(self, values: np.ndarray) -> np.ndarray:
        """Original units → scaled."""
        return (np.asarray(values, dtype=float) - self.shift) / self.scale

    def inverse(self, scaled: np.ndarray) -> np.ndarray:
        """Scaled → original units."""
        return np.asarray(scaled, dtype=float) * self.scale + self.shift

    def to_json(self) -> str:
        """JSON text; floats round-trip exactly."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TargetScaler:
        """The scaler that :meth:`to_json` wrote."""
        return cls(**json.loads(text))


def yaml_quoted(label: str) -> str:
    """A label as it must stand in YAML, which reads ``01`` as 1, ``010`` as 8 and ``no`` as false."""
    plain = re.fullmatch(r"[A-Za-z][\w+./-]*( [\w+./-]+)*", label)
    words = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
    number = re.fullmatch(r"0|[1-9][0-9]*", label)
    return label if number or (plain and label.lower() not in words) else json.dumps(label)

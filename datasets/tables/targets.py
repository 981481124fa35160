"""Encodes columns of text as numbers: labels, cut-offs, measurements, survival times.

Every value that does not become a number has a reason; a value that the task does not name is an error that
shows the line to write. Nothing here assumes that ``MSI-L`` is MSS or that 1 means dead.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import label_key
from equipoise.datasets.suggestions import nearest, value_counts
from equipoise.datasets.tables.label_maps import (
    binary_mapping,
    refuse_absent_classes,
    refuse_unmapped_classes,
)
from equipoise.datasets.tables.plausibility import check_plausible, sentinel_note
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
    "NoLabel",
    "RegressionTask",
    "SurvivalTask",
    "TargetScaler",
    "Task",
    "TaskSpec",
    "encode",
    "interval_edges",
    "main_task",
]


#: Kinds of :class:`NoLabel` that a study expects: nothing is there, or the study says what to leave out.
NO_VALUE, EXCLUDED = "no value", "excluded by the study"
#: Follow-up that nobody has lived through, in years.
MAX_YEARS = 150


class NoLabel(NamedTuple):
    """Why a patient has no usable label for a task.

    Attributes
    ----------
    kind
        The reason without the value, by which losses are counted.
    value
        What stands in the table.
    text
        The reason in full.
    expected
        Whether nothing is there, or the study leaves the value out; what else is lost deserves a look.
    """

    kind: str
    value: str
    text: str
    expected: bool = False


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
    notes
        Remarks on the values.
    """

    name: str
    type: str
    patients: tuple[str, ...]
    value: np.ndarray
    time: np.ndarray
    event: np.ndarray
    reasons: dict[str, NoLabel] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    notes: tuple[str, ...] = ()
    if isinstance(task, RegressionTask) or (isinstance(task, BinaryTask) and task.cutoff is not None):
        value, reasons = _numbers(text, patients, where, task.exclude)
        check_plausible(value, patients, where, allow=task.allow_wide_range)
        notes = tuple(filter(None, [sentinel_note(where, value)]))
        if isinstance(task, BinaryTask):
            value = np.where(np.isnan(value), np.nan, (value >= task.cutoff).astype(float))
    elif isinstance(task, MulticlassTask):
        index = {name: float(i) for i, name in enumerate(task.class_names)}
        mapping = {label: index[name] for label, name in task.classes.items()}
        refuse_unmapped_classes(text, task.classes, task.exclude, where)
        refuse_absent_classes(text, mapping, dict(enumerate(task.class_names)), where)
        value, reasons = _mapped(text, patients, mapping, task.exclude)
    else:
        mapping = binary_mapping(
            text, task.positive, task.negative, task.exclude, where, ("positive", "negative")
        )
        value, reasons = _mapped(text, patients, mapping, task.exclude)
    return EncodedTask(task.name, task.type, patients, value, empty, empty, reasons, notes)


def _mapped(
    text: list[str], patients: tuple[str, ...], mapping: dict[str, float], exclude: list[str]
) -> tuple[np.ndarray, dict[str, NoLabel]]:
    """Labels through a map; the map wins over what usually stands for missing."""
    value = np.full(len(text), np.nan)
    reasons = {}
    for i, (raw, patient) in enumerate(zip(text, patients, strict=True)):
        key = label_key(raw)
        if key in mapping:
            value[i] = mapping[key]
        elif key in exclude:
            reasons[patient] = NoLabel(EXCLUDED, raw, f"label {key!r} is excluded", expected=True)
        else:
            reasons[patient] = _missing(raw)
    return value, reasons


def _missing(raw: str) -> NoLabel:
    return NoLabel(NO_VALUE, raw, "no value" if raw == "" else f"{raw!r} counts as missing", expected=True)


def _no_number(raw: str) -> NoLabel:
    """Why text is no finite number."""
    if "_" not in raw and re.fullmatch(r"[+-]?(inf|infinity|[\d.]+e\d+)", raw, re.IGNORECASE):  # 1e999, too
        return NoLabel("infinite", raw, f"{raw!r} is infinite")
    if re.fullmatch(r"[+-]?\d+(,\d+)+(\.\d+)?", raw):
        kind = "a comma in the number"
        return NoLabel(kind, raw, f"{raw!r} is not a number: decimal comma or thousands separator?")
    return NoLabel("not a number", raw, f"{raw!r} is not a number")


def _numbers(
    text: list[str], patients: tuple[str, ...], where: str, exclude: list[str]
) -> tuple[np.ndarray, dict[str, NoLabel]]:
    """Numbers of a column; what is no finite number is missing, with its reason."""
    value = np.full(len(text), np.nan)
    reasons, odd = {}, []
    for i, (raw, patient) in enumerate(zip(text, patients, strict=True)):
        if raw in MISSING:
            reasons[patient] = _missing(raw)
        elif label_key(raw) in exclude:
            reasons[patient] = NoLabel(EXCLUDED, raw, f"value {raw!r} is excluded", expected=True)
        elif (number := parse_number(raw)) is None:
            reasons[patient] = _no_number(raw)
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
) -> tuple[np.ndarray, np.ndarray, dict[str, NoLabel]]:
    """Time in days and event; a patient needs both, and a time after the start that a person can live through."""
    where = f"task {task.name!r}, column {task.time.column!r}"
    unit = task.time.unit
    raw = table[task.time.column].astype(str).tolist()
    if task.time.otherwise is not None:
        second = table[task.time.otherwise].astype(str)
        raw = [other if first in MISSING else first for first, other in zip(raw, second, strict=True)]
    time, reasons = _numbers(raw, patients, where, [])
    days = time * DAYS[unit]
    too_long = days > MAX_YEARS * DAYS["years"]
    if 2 * np.count_nonzero(too_long) > np.count_nonzero(days > 0):
        raise DataError(
            f"{np.count_nonzero(too_long)} of {len(time)} times are longer than {MAX_YEARS} years, read in {unit} "
            f"({', '.join(raw[i] for i in np.flatnonzero(too_long)[:3])})",
            where=where,
            fix="correct the unit of the time (unit: days, months or years), or the column",
        )
    for i in np.flatnonzero(time <= 0):
        text = f"time {time[i]:g} {unit} is not after the start of follow-up"
        reasons[patients[i]] = NoLabel("a time that is not after the start of follow-up", raw[i], text)
    for i in np.flatnonzero(too_long):
        text = f"time {time[i]:g} {unit} is longer than {MAX_YEARS} years"
        reasons[patients[i]] = NoLabel(f"a time longer than {MAX_YEARS} years", raw[i], text)
    days[(days <= 0) | too_long] = np.nan
    where = f"task {task.name!r}, column {task.event.column!r}"
    spec, keys = task.event, ("event_value", "censored_value")
    text_of_event = table[spec.column].astype(str).tolist()
    mapping = binary_mapping(text_of_event, spec.event_value, spec.censored_value, spec.exclude, where, keys)
    event, of_event = _mapped(text_of_event, patients, mapping, spec.exclude)
    for patient, reason in of_event.items():
        status = reason._replace(kind=f"status: {reason.kind}", text=f"status: {reason.text}")
        first = reasons.get(patient)
        reasons[patient] = status if first is None else first._replace(text=f"{first.text}; {status.text}")
    missing = np.isnan(days) | np.isnan(event)
    days[missing] = event[missing] = np.nan
    return days, event, reasons


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

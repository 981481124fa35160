"""Prediction targets of a study: pydantic models of binary, multiclass, regression and survival tasks.

Light like :mod:`equipoise.datasets.params`. Label maps are explicit: no value of a table becomes a class
because of a default. :mod:`equipoise.datasets.tables.targets` turns tables into numbers.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from equipoise.datasets.params import Labels, StrictParams, as_labels

#: Columns that a patients table has besides the tasks.
RESERVED = ("patient", "cohort", "role", "site", "slide", "fold", "repeat")
DAYS = {"days": 1.0, "months": 365.25 / 12, "years": 365.25}


class TaskSpec(StrictParams):
    """Base of all tasks."""

    name: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9_+-]*$")
    """Name of the task in reports, predictions and search metrics."""
    main: bool = False
    """The task that folds are stratified on and the report opens with; at most one."""

    @model_validator(mode="after")
    def _name_is_free(self) -> Self:
        if self.name in RESERVED:
            raise ValueError(f"a task cannot be called {self.name!r}; taken: {', '.join(RESERVED)}")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the clinical table that the task reads."""
        return (self.column,)  # type: ignore[attr-defined]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes with a probability each: the positive one for binary, none for regression and survival."""
        return ()

    @property
    def frame_columns(self) -> tuple[str, ...]:
        """Columns of the encoded task in a table of patients."""
        return (self.name,)


class BinaryTask(TaskSpec):
    """Two classes, from labels (``positive``, ``negative``) or from a number (``cutoff``)."""

    type: Literal["binary"] = "binary"
    column: str
    """Column of the clinical table."""
    positive: Labels = Field(default=[])
    """Values that are the positive class."""
    negative: Labels = Field(default=[])
    """Values that are the negative class; may stay empty where only one other value occurs."""
    exclude: Labels = Field(default=[])
    """Values whose patients have no label for this task."""
    cutoff: float | None = None
    """Instead of labels: numbers greater than or equal to this are positive (an HRD score: 42)."""
    allow_wide_range: bool = False
    """With ``cutoff``: accept numbers that look as if they had lost their decimal point."""

    @model_validator(mode="after")
    def _labels_or_cutoff(self) -> Self:
        if self.cutoff is None and not self.positive:
            raise ValueError(
                "say which values are positive (positive: MSI-H), or give a cutoff for a numeric column"
            )
        if self.cutoff is not None and (self.positive or self.negative):
            raise ValueError("'cutoff' and 'positive'/'negative' exclude each other: keep one")
        _disjoint({"positive": self.positive, "negative": self.negative, "exclude": self.exclude})
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """The positive class."""
        return (self.positive[0] if self.cutoff is None else f">={self.cutoff:g}",)


def _as_classes(value: Any) -> Any:
    """``[a, b]`` is ``{a: a, b: b}``; keys and classes become text."""
    if isinstance(value, dict):
        return dict(zip(as_labels(list(value)), as_labels(list(value.values())), strict=True))
    if isinstance(value, list | tuple):
        labels = as_labels(value)
        if len(set(labels)) < len(labels):
            raise ValueError(f"a class stands twice in {', '.join(labels)}")
        return {label: label for label in labels}
    return value


class MulticlassTask(TaskSpec):
    """Several classes; a mapping may merge values into one class."""

    type: Literal["multiclass"] = "multiclass"
    column: str
    """Column of the clinical table."""
    classes: Annotated[
        dict[str, str],
        BeforeValidator(_as_classes, json_schema_input_type=list[str | float] | dict[str, str | float]),
    ]
    """Values that are classes: a list, or a mapping from value to class; in the order of the outputs."""
    exclude: Labels = Field(default=[])
    """Values whose patients have no label for this task."""

    @model_validator(mode="after")
    def _several_classes(self) -> Self:
        if len(self.class_names) < 2:
            raise ValueError(
                f"a multiclass task needs two or more classes, got {', '.join(self.class_names) or 'none'}"
            )
        _disjoint({"classes": list(self.classes), "exclude": self.exclude})
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes in the order of the model's outputs."""
        return tuple(dict.fromkeys(self.classes.values()))


class RegressionTask(TaskSpec):
    """A number."""

    type: Literal["regression"] = "regression"
    column: str
    """Column of the clinical table."""
    exclude: Labels = Field(default=[])
    """Values whose patients have no label for this task, for instance -9 where it stands for missing."""
    allow_wide_range: bool = False
    """Accept values over more than six orders of magnitude, or whole numbers of nine and more digits."""


class SurvivalTime(StrictParams):
    """Follow-up time."""

    column: str
    """Column with the time to event or to last contact."""
    otherwise: str | None = None
    """Column with the time of those who lack the first: ``days_to_last_follow_up`` beside ``days_to_death``."""
    unit: Literal["days", "months", "years"]
    """Unit of the column; times are kept in days."""


class SurvivalEvent(StrictParams):
    """Whether the event happened."""

    column: str
    """Column with the event status."""
    event_value: Labels = Field(min_length=1)
    """Values that mean the event HAPPENED. In a column called censorship, 1 is often censored: write 0."""
    censored_value: Labels = Field(default=[])
    """Values that mean censored; may stay empty where only one other value occurs."""
    exclude: Labels = Field(default=[])
    """Values whose patients have no label for this task."""

    @model_validator(mode="before")
    @classmethod
    def _explicit_event(cls, data: Any) -> Any:
        if isinstance(data, dict) and not as_labels(data.get("event_value")):
            column = str(data.get("column", ""))
            text = "say which value means that the event happened (event_value: 1)."
            if "censor" in column.casefold():
                text += (
                    f" {column!r} sounds as if 1 meant CENSORED, as in PORPOISE and SurvPath tables: then"
                    " write event_value: 0. Read the wrong way round, the censored count as deaths."
                )
            raise PydanticCustomError("missing_event_value", "{text}", {"text": text})
        return data

    @model_validator(mode="after")
    def _values_once(self) -> Self:
        groups = {
            "event_value": self.event_value,
            "censored_value": self.censored_value,
            "exclude": self.exclude,
        }
        _disjoint(groups)
        return self


#: Intervals of a discrete-time survival task that does not say how many.
BINS = 4


class SurvivalTask(TaskSpec):
    """Time to an event, with censoring."""

    type: Literal["survival"] = "survival"
    time: SurvivalTime
    """Follow-up time."""
    event: SurvivalEvent
    """Whether the event happened."""
    likelihood: Literal["cox", "discrete_hazard"] = "cox"
    """What the model learns from: Cox's partial likelihood (a log risk, from comparing patients), or the
    probability of the event in each of a few intervals of time."""
    bins: int | None = Field(default=None, ge=2)
    """Intervals of ``discrete_hazard``, cut at quantiles of the event times of training patients; 4 if not
    given."""

    strata: Literal["cohort", "none"] = "cohort"
    """Strata of Cox's partial likelihood. ``cohort``: patients are compared with those of their own cohort, so that a
    difference in survival between cohorts is not something to learn; ``none``: all patients are compared."""

    @model_validator(mode="after")
    def _bins_of_hazards(self) -> Self:
        if self.bins is not None and self.likelihood != "discrete_hazard":
            raise ValueError("'bins' belongs to likelihood: discrete_hazard; Cox's model cuts no time")
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of time and event."""
        otherwise = () if self.time.otherwise is None else (self.time.otherwise,)
        return (self.time.column, *otherwise, self.event.column)

    @property
    def frame_columns(self) -> tuple[str, ...]:
        """``NAME.time`` (days) and ``NAME.event`` (1 happened, 0 censored)."""
        return (f"{self.name}.time", f"{self.name}.event")


Task = Annotated[
    BinaryTask | MulticlassTask | RegressionTask | SurvivalTask,
    Field(discriminator="type"),
]
"""One prediction target, chosen by ``type``."""


def main_task(tasks: Iterable[Task]) -> Task:
    """The task marked ``main``, else the first one."""
    tasks = list(tasks)
    return next((task for task in tasks if task.main), tasks[0])


def _disjoint(groups: dict[str, list[str]]) -> None:
    seen: dict[str, str] = {}
    for group, labels in groups.items():
        for label in labels:
            if seen.setdefault(label, group) != group:
                raise ValueError(f"value {label!r} stands under both {seen[label]!r} and {group!r}: keep one")

"""The ``search:`` section of a study. Light: pydantic only."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from equipoise.datasets.params import StrictParams

if TYPE_CHECKING:
    from equipoise.datasets.tables.tasks import Task

#: Kind of task → metrics of inner validation, the one that stands for the task first.
SCORES: dict[str, tuple[str, ...]] = {
    "binary": ("auroc", "auprc"),
    "multiclass": ("auroc", "auprc"),
    "regression": ("pearson", "r2"),
    "survival": ("c_index",),
}

#: Mean over tasks of their first metric, each between 0 and 1.
MEAN = "val/mean"

#: Names of patients whose results a search must not see.
_UNSEEN = ("test", "external", "holdout", "hold-out", "hold_out")

Searcher = Literal["random", "grid", "optuna", "nsga2", "bohb"]
Scheduler = Literal["none", "asha", "hyperband", "median", "pbt", "pb2"]


class Range(StrictParams):
    """A range of numbers: ``{uniform: [a, b]}`` or ``{loguniform: [a, b]}``; whole numbers stay whole."""

    uniform: tuple[float, float] | None = None
    """Every value has the same probability."""
    loguniform: tuple[float, float] | None = None
    """Every order of magnitude has the same probability; for positive numbers."""

    @model_validator(mode="after")
    def _one_ascending_range(self) -> Self:
        if (self.uniform is None) == (self.loguniform is None):
            raise ValueError("write either uniform: [a, b] or loguniform: [a, b]")
        low, high = self.bounds
        if not low < high:
            raise ValueError(f"the range [{low:g}, {high:g}] is empty; the smaller number comes first")
        if self.log and low <= 0:
            raise ValueError(f"loguniform needs positive numbers, not {low:g}")
        return self

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        result = self.uniform if self.loguniform is None else self.loguniform
        assert result is not None
        return result

    @property
    def log(self) -> bool:
        """Whether values are drawn on a logarithmic scale."""
        return self.loguniform is not None


def _number_in_text(value: Any) -> Any:
    """PyYAML reads ``1e-5`` (no dot) as text."""
    if isinstance(value, str) and value[-1:].isdigit():
        try:
            return float(value)
        except ValueError:
            return value
    return [_number_in_text(item) for item in value] if isinstance(value, list) else value


Scalar = bool | int | float | str | None
Narrowed = Annotated[Range | list[Scalar] | Scalar, BeforeValidator(_number_in_text)]


class SearchParams(StrictParams):
    """Settings of a search: space, searcher, budget and metric. None of them can name test or external patients."""

    searcher: Searcher = "random"
    """``random``; ``grid``; ``optuna`` (tree-structured Parzen estimator, multivariate); ``nsga2`` (evolution over the
    metrics of all tasks at once); ``bohb`` (the estimator of ``optuna`` under ``scheduler: hyperband``)."""
    scheduler: Scheduler = "none"
    """Stops poor trials after some folds: ``asha``, ``hyperband`` (three asynchronous brackets), ``median``,
    ``none``. ``pbt`` and ``pb2`` change learning rate and loss weights while a population trains."""
    trials: int = Field(default=32, ge=1)
    """Trials in all; the first is the study as written. For ``pbt`` and ``pb2`` the size of the population."""
    metric: str = MEAN
    """Metric of inner validation that is maximised: ``val/<task>/<metric>``, for instance ``val/MSI/auroc``, or
    ``val/mean``: the mean over tasks of AUROC, C-index and (Pearson's r + 1) / 2."""
    select: Literal["best", "one_standard_error"] = "best"
    """``best`` mean over folds; or the simplest trial within one standard error of the best: fewest parameters, then
    the cheapest balancing."""
    space: dict[str, Narrowed] = Field(default_factory=dict)
    """Narrows the generated space: dotted key → list of values, ``{uniform: [a, b]}``, ``{loguniform: [a, b]}`` or one
    fixed value. ``balancing: [equal, uncertainty+pcgrad]`` names whole methods; ``loss_weights: simplex`` searches
    explicit weights that sum to one, alone where nothing else of balancing is named."""
    track: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ("tensorboard",)
    """Dashboards that record every trial, inside the run folder; mlflow and wandb are extras."""
    folds: int = Field(default=3, ge=2, le=20)
    """Inner folds of a trial, drawn from the search patients by the scheme of ``splits``; they run one after the other,
    and each is reported."""
    seeds: int = Field(default=1, ge=1, le=20)
    """How often every inner fold is trained, each time with another seed: all folds with the first, then with the
    next, each training reported. The value of a fold is the mean over its seeds."""
    holdout: float = Field(default=0.2, ge=0, lt=0.9)
    """Share of development patients that no trial ever sees, whole sites under ``splits.scheme: site_preserved``. They
    measure the winner once. 0: only external cohorts measure it."""
    levels: int = Field(default=3, ge=2, le=20)
    """Grid search: number of evenly spaced values of a range."""
    max_concurrent: int | None = Field(default=None, ge=1)
    """Most trials at a time; as many as the resources of Ray allow if not given."""
    trial_time_limit_s: float | None = Field(default=None, gt=0)
    """Seconds after which a trial is ended and recorded as failed."""
    max_fail: float = Field(default=0.2, ge=0, le=1)
    """Share of trials that may fail before the search exits with 5; it always runs to its end."""
    seed: int | None = Field(default=None, ge=0)
    """Seed of drawn configurations, hold-out and inner folds; that of the study if not given."""
    cpus: float | None = Field(default=None, gt=0)
    """CPUs of a trial; ``training.threads`` if not given."""
    gpus: float | None = Field(default=None, ge=0)
    """GPUs of a trial, also fractions; 0.25 where Ray has a GPU and ``training.device`` allows it."""

    @field_validator("metric")
    @classmethod
    def _of_inner_validation(cls, metric: str) -> str:
        if metric == MEAN:
            return metric
        parts = metric.split("/")
        checked = parts[:1] + parts[2:]  # a task may have any name
        if any(word in part.lower() for part in checked for word in _UNSEEN):
            raise ValueError(
                f"{metric!r} would choose a model by test, hold-out or external patients, who could then no longer "
                "measure it; a search uses inner validation only: write val/<task>/<metric> or val/mean"
            )
        if parts[0] != "val" or len(parts) != 3 or not all(parts):
            raise ValueError(
                f"{metric!r} is not of inner validation: write val/<task>/<metric>, for instance val/MSI/auroc, "
                "or val/mean"
            )
        return metric

    @field_validator("space")
    @classmethod
    def _nothing_empty(cls, space: dict[str, Any]) -> dict[str, Any]:
        if empty := [name for name, wish in space.items() if wish == []]:
            raise ValueError(
                f"{', '.join(empty)}: an empty list has nothing to search; name values, or leave it out"
            )
        return space

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.searcher == "bohb" and self.scheduler != "hyperband":
            raise ValueError("searcher bohb works with hyperband only: write scheduler: hyperband")
        if self.searcher == "nsga2" and self.scheduler != "none":
            raise ValueError(
                "nsga2 optimises the metrics of all tasks, but a scheduler would stop trials by one of them: write "
                "scheduler: none"
            )
        if self.population and self.searcher != "random":
            raise ValueError(
                f"scheduler {self.scheduler} moves its population itself: write searcher: random"
            )
        if self.population and self.trials < 4:
            raise ValueError(f"scheduler {self.scheduler} needs a population: write trials: 4 or more")
        return self

    @property
    def population(self) -> bool:
        """Whether settings change while trials train."""
        return self.scheduler in ("pbt", "pb2")


def metric_problem(metric: str, tasks: Sequence[Task]) -> str | None:
    """Why the tasks of the study have no such metric; None if they have it."""
    if metric == MEAN:
        return None
    _, name, score = metric.split("/")
    kinds = {task.name: task.type for task in tasks}
    if name not in kinds:
        return f"{metric!r}: there is no task {name!r}; tasks are {', '.join(kinds)}{_close(name, kinds)}"
    known = SCORES[kinds[name]]
    if score not in known:
        return f"{metric!r}: task {name} is {kinds[name]} and has {', '.join(known)}{_close(score, known)}"
    return None


def _close(word: str, known: Any) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f". Did you mean {close[0]!r}?" if close else ""

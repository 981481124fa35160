"""Parameters of ``model:``, ``balancing:`` and ``training:`` in a study. Light: pydantic only."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import InitErrorDetails

from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.params import StrictParams
from equipoise.models.text.params import TextParams
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import Entry, entries, get, nearest

if TYPE_CHECKING:
    from equipoise.datasets.tables.tasks import Task
    from equipoise.models.batch import TaskHead


def entry_params(kind: str, name: str, values: dict[str, Any], key: str | None = None) -> BaseModel:
    """The validated parameters of a registry entry.

    Parameters
    ----------
    kind, name, values
        Kind and name of the entry, its parameters as written.
    key
        Key of the study that names the entry, where its parameters stand under ``{key}_params``. Errors then name
        the key that is wrong; without it they name the parameter as if it stood beside the entry's name.

    Raises
    ------
    ValueError
        If the name is unknown (the message suggests the nearest one) or a parameter is invalid; pydantic
        collects it with other errors.
    """
    try:
        entry = get(kind, name)
    except StudyError as unknown:
        if key is None:
            raise ValueError(str(unknown)) from unknown
        raise ValidationError.from_exception_data(kind, [_problem((key,), name, str(unknown))]) from unknown
    if key is None:
        return with_components(entry, entry.params.model_validate(values))
    try:
        return entry.params.model_validate(values)
    except ValidationError as error:
        problems = []
        for item in error.errors(include_url=False):
            loc = (f"{key}_params", *item["loc"])
            if item["type"] == "extra_forbidden":
                known = list(entry.params.model_fields)
                text = f"unknown parameter of {name}" + (
                    f"; known: {', '.join(known)}" if known else ", which has none"
                )
                problems.append(_problem(loc, item["input"], text + nearest(str(item["loc"][-1]), known)))
            else:
                problems.append(
                    InitErrorDetails(type=item["type"], loc=loc, input=item["input"], ctx=item.get("ctx", {}))
                )
        raise ValidationError.from_exception_data(kind, problems) from error


def with_components(entry: Entry, params: BaseModel) -> BaseModel:
    """Parameters of an entry, those of the entries that it names
    (:attr:`~equipoise.models.entries.ModelParams.components`) validated and complete with their defaults.

    Raises
    ------
    ValueError
        If one of them is unknown, cannot take that part, or has an invalid parameter.
    """
    complete: dict[str, Any] = {}
    components = getattr(entry.params, "components", {})
    for field, kind in components.items():
        name, own = getattr(params, field), f"{field}_params"
        inner = entry_params(kind, name, getattr(params, own), field)
        if kind == "models" and get(kind, name).attribute("reads") != {"wsi"}:
            reads = ", ".join(sorted(get(kind, name).attribute("reads")))
            text = f"{name} is no model of slides: it reads {reads}"
            raise ValidationError.from_exception_data(kind, [_problem((field,), name, text)])
        complete[own] = inner.model_dump()
    return params.model_copy(update=complete) if complete else params


def adds_tasks(model: BaseModel) -> bool:
    """Whether losses of branches of the model of a study are tasks of the balancing method."""
    components = getattr(model, "components", {})
    return any(
        getattr(
            entry_params(kind, getattr(model, field), getattr(model, f"{field}_params")), "adds_tasks", False
        )
        for field, kind in components.items()
    )


def _problem(loc: tuple[str | int, ...], given: Any, text: str) -> InitErrorDetails:
    return InitErrorDetails(type="value_error", loc=loc, input=given, ctx={"error": ValueError(text)})


def refusal(weighting: str, aggregation: str, *, at: str = "parameters", every: int = 1) -> str | None:
    """Why a loss weighting and a gradient aggregator cannot be combined; None if they can.

    Parameters
    ----------
    weighting, aggregation
        Names of the entries.
    at, every
        As in :class:`BalancingParams`.

    Raises
    ------
    StudyError
        If one of the names is unknown.
    """
    first, second = get("weightings", weighting), get("aggregators", aggregation)
    reasons = [entry.attribute("needs_parameters") for entry in (first, second)]
    if at == "representation" and any(reasons):
        return f"{' and '.join(filter(None, reasons))}: write at: parameters"
    if every > 1 and second.attribute("kind") == "jacobian":
        return f"{aggregation} works coordinate by coordinate and has no coefficients to keep: write every: 1"
    if second.attribute("kind") == "none":
        return None
    if reason := first.attribute("whole_objective"):
        plain = [name for name, entry in entries("aggregators").items() if entry.attribute("kind") == "none"]
        return f"{reason}: use aggregation {' or '.join(plain)}, not {aggregation}"
    allowed = second.attribute("takes_weightings")
    if allowed is None or first.attribute("neutral") or weighting in allowed:
        return None
    neutral = [name for name, entry in entries("weightings").items() if entry.attribute("neutral")]
    return f"{second.attribute('reason')}: use weighting {' or '.join([*neutral, *allowed])}, not {weighting}"


def compares_gradients(weighting: str, aggregation: str) -> bool:
    """Whether a method compares gradients of tasks, and so needs parameters that they share.

    Raises
    ------
    StudyError
        If one of the names is unknown.
    """
    needs = get("weightings", weighting).attribute("needs")
    return get("aggregators", aggregation).attribute("kind") != "none" or "gram" in needs


def model_refusal(
    model: BaseModel, kind: str, weighting: str, aggregation: str, *, at: str = "parameters"
) -> str | None:
    """Why a method cannot balance the tasks of a model with these parameters; None if it can.

    Parameters
    ----------
    model, kind
        Parameters of the model, and its entry.
    weighting, aggregation, at
        As in :class:`BalancingParams`.

    Raises
    ------
    StudyError
        If one of the names is unknown.
    """
    plain = get("aggregators", aggregation).attribute("kind") == "none"
    if get("models", kind).attribute("fit") == "exact":
        if plain and get("weightings", weighting).attribute("neutral"):
            return None
        return f"{kind!r} is fitted by a solver, task by task: write balancing: equal"
    if not compares_gradients(weighting, aggregation):
        return None
    if not getattr(model, "shares_parameters", True):
        return (
            f"tasks share no parameter of {kind!r} with these settings, so that no gradients can be compared: write a "
            "weighting that looks at losses, with aggregation none, or a model that tasks share"
        )
    if at == "representation" and not getattr(model, "shares_representation", True):
        return f"tasks share no representation of {kind!r} with these settings: write at: parameters"
    return None


class BalancingParams(StrictParams):
    """How several tasks share one model; ``balancing: uncertainty+pcgrad`` is short for both slots."""

    weighting: str = "equal"
    """Loss weighting: ``equipoise ls weightings``."""
    aggregation: str = "none"
    """Gradient aggregator: ``equipoise ls aggregators``."""
    weighting_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the loss weighting."""
    aggregation_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the gradient aggregator."""
    rescale: Literal["none", "sum_norm"] = "none"
    """``sum_norm`` gives every aggregator's direction the norm of the summed gradients: their own norms differ
    by up to 400 times, so that one learning rate would not suit all."""
    at: Literal["parameters", "representation"] = "parameters"
    """Where the gradients of tasks are compared. ``representation``: at what the tasks share, by one short pass per
    task and one whole pass; costs little more with many tasks than with two."""
    every: int = Field(default=1, ge=1)
    """Steps for which an aggregator's coefficients are kept, with a single pass per step in between; weightings that
    learn from gradients learn when they are taken."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        weighting, _, aggregation = value.partition("+")
        return {"weighting": weighting.strip(), "aggregation": aggregation.strip() or "none"}

    @model_validator(mode="after")
    def _known(self) -> Self:
        entry_params("weightings", self.weighting, self.weighting_params)
        entry_params("aggregators", self.aggregation, self.aggregation_params)
        if reason := refusal(self.weighting, self.aggregation, at=self.at, every=self.every):
            raise ValueError(f"{self.name} makes no sense: {reason}")
        return self

    @property
    def name(self) -> str:
        """``uncertainty+pcgrad``."""
        return f"{self.weighting}+{self.aggregation}"


class TaskSamplingParams(StrictParams):
    """How often an epoch sees patients of each task and cohort."""

    temperature: float = Field(default=2.0, ge=1, json_schema_extra={"search": {"choice": [1.0, 2.0, 5.0]}})
    """A patient is drawn from a task in a cohort with a probability proportional to n^(1/temperature), n the training
    patients with a label there: 1 by size, larger lets small ones come more often, 1000 all nearly equally often."""


class PretrainParams(StrictParams):
    """``pretrain:`` of a study: one model for many cohorts and tasks, as a start for other studies."""

    cohorts: list[str] | None = Field(default=None, min_length=1)
    """Development cohorts to train on, with all their patients; all of them if not given."""
    sampling: TaskSamplingParams | None = TaskSamplingParams()
    """How often an epoch sees patients of each task and cohort; null: every patient once."""
    inner_val: float = Field(default=0.1, gt=0, lt=1)
    """Share of the patients of every cohort on which training stops; the model learns from the others."""
    plain_ids: bool = False
    """Record the patients that the model has seen by name. Otherwise they are salted hashes, which hide a list of
    patients from whoever opens the file, but not a patient from somebody who has candidates to try."""

    def training(self, params: "TrainingParams") -> "TrainingParams":
        """Settings of the pre-training: those of the study with this sampling, and one model.

        Raises
        ------
        ValueError
            If they cannot be combined.
        """
        return TrainingParams.model_validate(
            params.model_dump() | {"task_sampling": self.sampling, "members": 1}
        )


class TrainingParams(StrictParams):
    """How a model is fitted on one fold; defaults are those of the published joint model where it has one."""

    epochs: int = Field(default=32, ge=1)
    """Epochs at most; also the length of the learning rate schedule."""
    min_epochs: int = Field(default=1, ge=1)
    """Epochs before early stopping may end training."""
    patience: int = Field(default=7, ge=1)
    """Epochs without improvement on inner validation after which training stops."""
    monitor: Literal["mean_metric", "mean_loss", "val_loss", "main_loss", "main_metric", "added_loss"] = (
        "mean_metric"
    )
    """What inner validation watches. ``mean_metric``: the mean over tasks of AUROC, C-index and (Pearson's r + 1) / 2
    within cohorts; ``mean_loss``: the mean over tasks of the loss relative to that of a constant prediction (also where
    validation lacks a class); ``val_loss``: the sum of all losses, whatever their units, as other multi-task code does;
    ``main_loss``, ``main_metric``: the main task alone; ``added_loss``: as ``val_loss``, but Cox's likelihood of
    training and validation patients together minus that of training patients, which holds more pairs than that of a
    handful of events among themselves (Verweij and van Houwelingen 1993). Equal values are told apart by ``mean_loss``.
    A federation watches ``val_loss`` in place of metrics of several tasks and of ``mean_loss``: sites send sums."""
    lr: float = Field(default=1e-4, gt=0, json_schema_extra={"search": {"loguniform": [1e-5, 1e-3]}})
    """Learning rate of AdamW at the start."""
    weight_decay: float = Field(
        default=0.01, ge=0, json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}}
    )
    """Decoupled weight decay of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over epochs: half a cosine down to 0, or constant."""
    batch: int | Literal["auto", "full"] = "auto"
    """Patients per step. ``auto``: 1, as published, and 8 where Cox's model needs patients to compare; ``full``: all
    training patients, so that an epoch is one step on the exact likelihood."""
    risk_sets: Literal["batch", "memory"] = "batch"
    """Whom Cox's likelihood compares a patient with. ``batch``: the patients of the same step; ``memory``: all training
    patients, those outside the step by their last known score, so that a step on few patients follows the gradient of
    the full likelihood. Nothing else changes: tasks without Cox's model, ``batch: full``. Not in federations."""
    order: Literal["shuffled", "stratified"] = "shuffled"
    """Order of training patients. ``stratified``: shuffled such that every batch holds its share of each cohort and,
    within it, of the events or classes of the main task."""
    task_sampling: TaskSamplingParams | None = None
    """Draw the patients of an epoch by task and cohort, so that large ones do not drown small ones; without it every
    patient comes once. An epoch has as many draws as there are training patients; one drawn counts for all its labels.
    Not with ``batch: full``, ``order: stratified`` or ``risk_sets: memory``, and not in federations."""
    bag_tiles: int | None = Field(default=None, ge=1)
    """Tiles drawn from a bag, again in every training epoch; all if not given. Evaluation uses all tiles."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; no clipping if not given."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """``balanced``: classes have equal weight in the loss, from counts of training patients. Ours; arXiv 2403.03891 has
    no class weights."""
    target_scaling: Literal["minmax", "standard"] = "minmax"
    """How regression targets are scaled, fitted on training patients; predictions are in original units."""
    ties: Literal["efron", "breslow"] = "efron"
    """Treatment of tied event times in Cox losses."""
    start: str | None = None
    """Folder of ``equipoise pretrain`` (``runs/<study>/pretrain/model``) whose weights training starts from; heads and
    whatever else belongs to single tasks are new. It takes the same model on the same tile features."""
    text: TextParams | None = None
    """Heads on the text of labels, and for which tasks; all heads are direct if not given."""
    probe: bool = True
    """Log the cosines between task gradients once an epoch, also for methods that do not compute them."""
    members: int = Field(default=1, ge=1)
    """Models per fold. With more than one, training and inner validation patients of the fold are split anew into that
    many parts, with equal shares of events or classes of the main task; every member stops on another part and learns
    from the rest, and predictions are averaged. Trials of a search and federations train one model."""
    workers: int = Field(default=1, ge=1)
    """Workers that train one fold together, each on its share of every batch."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of torch. Results are the same for the same number of threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU where one is visible."""
    amp: Literal["auto", "off", "bf16"] = "auto"
    """Mixed precision of training steps. ``auto``: bfloat16 on a GPU that has it, else off."""

    @field_validator("amp", mode="before")
    @classmethod
    def _off_is_a_word(cls, amp: object) -> object:
        return "off" if amp is False else amp  # YAML reads off, without quotes, as false

    @model_validator(mode="after")
    def _batch_is_positive(self) -> Self:
        if isinstance(self.batch, int) and self.batch < 1:
            raise ValueError(f"batch is a number of patients of 1 or more, auto or full, not {self.batch}")
        if self.text is not None:
            entry_params("text_encoders", self.text.encoder, self.text.encoder_params)
        if self.min_epochs > self.epochs:
            raise ValueError(f"min_epochs {self.min_epochs} is more than epochs {self.epochs}")
        return self

    @model_validator(mode="after")
    def _sampling_has_steps_to_fill(self) -> Self:
        if self.task_sampling is None:
            return self
        reasons = {
            "batch: full sees every patient in every step; write a number": self.batch == "full",
            "order: stratified sees every patient once; leave it out": self.order == "stratified",
            "risk_sets: memory needs every patient once an epoch; write batch": self.risk_sets == "memory",
        }
        if against := [reason for reason, holds in reasons.items() if holds]:
            raise ValueError(f"task_sampling draws the patients of a step: {'; '.join(against)}")
        return self

    def batch_for(self, heads: "Iterable[TaskHead]", patients: int) -> int:
        """Patients per step for these tasks and this many training patients.

        Raises
        ------
        StudyError
            For a survival task under Cox's model in batches of one: its likelihood is then constant and
            nothing is learned.
        """
        compared = any(head.compares_patients for head in heads)
        if self.batch == "auto":
            return 8 if compared else 1
        if self.batch == "full":
            return max(patients, 1)
        if self.batch == 1 and compared:
            raise StudyError(
                "a survival task cannot learn from batches of one patient: Cox's likelihood compares them",
                where="training.batch",
                fix="write batch: 8 or more, leave it at auto, or give the task likelihood: discrete_hazard",
            )
        return self.batch


class Recipe(StrictParams):
    """Everything that decides the result of training on given patients: model, balancing, training, seed."""

    model: str = "joint"
    """Model: ``equipoise ls models``."""
    model_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the model."""
    balancing: BalancingParams = BalancingParams()
    """Loss weighting and gradient aggregation."""
    training: TrainingParams = TrainingParams()
    """The training loop."""
    tables: TableParams = TableParams()
    """How tables become input."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, order of patients, dropout and drawn tiles, together with repeat and fold."""

    @property
    def needs_presence(self) -> bool:
        """Whether the model is told what share of the patients of each class has a modality."""
        return bool(getattr(entry_params("models", self.model, self.model_params), "needs_presence", False))

    @model_validator(mode="after")
    def _known_model(self) -> Self:
        entry_params("models", self.model, self.model_params)
        return self


def balancing_problems(
    model: BaseModel, kind: str, balancing: BalancingParams, tasks: "Sequence[Task]"
) -> list[str]:
    """Problems of a method that cannot balance the tasks of a study's model, one line each."""
    exact = get("models", kind).attribute("fit") == "exact"
    if len(tasks) < 2 and not adds_tasks(model) and not exact:
        return []  # of one task, no gradients are compared
    reason = model_refusal(model, kind, balancing.weighting, balancing.aggregation, at=balancing.at)
    return [f"balancing: {reason}"] if reason else []


def batch_problems(training: TrainingParams, tasks: "Sequence[Task]", *, convex: bool) -> list[str]:
    """Problems of batches that are too small: for Cox's likelihood, or for the workers that share them.

    Parameters
    ----------
    training, tasks
        Of the study.
    convex
        Whether the model is linear: a solver, which knows no batches, may fit it.
    """
    if not isinstance(training.batch, int) or convex:
        return []
    problems = []
    text = training.text
    compared = [
        task.name
        for task in tasks
        if task.type == "survival"
        and task.likelihood == "cox"
        and (text is None or not text.takes(task.name, task.type))
    ]
    if training.batch == 1 and compared:
        problems.append(
            f"training.batch: {', '.join(compared)} cannot be learned from batches of one patient, because Cox's "
            "likelihood compares patients: write 8 or more, or likelihood: discrete_hazard"
        )
    if training.batch < training.workers:
        problems.append(
            f"training.workers: {training.workers} workers share batches of {training.batch} patients: write fewer "
            "workers or larger batches"
        )
    return problems

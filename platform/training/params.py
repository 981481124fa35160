"""Parameters of ``model:``, ``balancing:`` and ``training:`` in a study. Light: pydantic only."""

from typing import Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from equipoise.datasets.specs import Spec
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import get


def entry_params(kind: str, name: str, values: dict[str, Any]) -> BaseModel:
    """The validated parameters of a registry entry.

    Raises
    ------
    ValueError
        If the name is unknown (with the nearest one) or a parameter does not fit; pydantic collects it with
        others.
    """
    try:
        entry = get(kind, name)
    except StudyError as unknown:
        raise ValueError(str(unknown)) from unknown
    return entry.params.model_validate(values)


class BalancingParams(Spec):
    """How several tasks share one model."""

    weighting: str = "equal"
    """Loss weighting: ``equipoise ls weightings``."""
    aggregation: str = "none"
    """Gradient aggregator: ``equipoise ls aggregators``."""
    weighting_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the loss weighting."""
    aggregation_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the gradient aggregator."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        entry_params("weightings", self.weighting, self.weighting_params)
        entry_params("aggregators", self.aggregation, self.aggregation_params)
        return self


class TrainingParams(Spec):
    """How a model is fitted on one fold; defaults are those of the published joint model where it has one."""

    epochs: int = Field(default=32, ge=1)
    """Epochs at most; also the length of the learning rate schedule."""
    min_epochs: int = Field(default=1, ge=1)
    """Epochs before early stopping may end training."""
    patience: int = Field(default=7, ge=1)
    """Epochs without improvement on inner validation after which training stops."""
    monitor: Literal["val_loss", "main_loss", "main_metric"] = "val_loss"
    """What inner validation watches: the sum of all task losses, the main task's loss, or its AUROC, Pearson
    r or C-index (coarse where validation has few positives)."""
    lr: float = Field(default=1e-4, gt=0, json_schema_extra={"search": {"loguniform": [1e-5, 1e-3]}})
    """Learning rate of AdamW at the start."""
    weight_decay: float = Field(
        default=0.01, ge=0, json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}}
    )
    """Decoupled weight decay of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate over epochs: half a cosine down to 0, or constant."""
    batch: int | Literal["auto"] = "auto"
    """Patients per step. ``auto``: 1, as published, and 8 where a survival task needs patients to compare."""
    bag_tiles: int | None = Field(default=None, ge=1)
    """Tiles drawn anew from a bag in every training epoch; all if not given. Evaluation uses all tiles."""
    grad_clip: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient; no clipping if not given."""
    class_weights: Literal["balanced", "none"] = "balanced"
    """``balanced``: classes weigh alike in the loss, from counts of training patients."""
    target_scaling: Literal["minmax", "standard"] = "minmax"
    """How regression targets are scaled, fitted on training patients; predictions are in original units."""
    ties: Literal["efron", "breslow"] = "efron"
    """Treatment of tied event times in Cox losses."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of torch. Results are the same for the same number of threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto``: a GPU where one is visible."""
    amp: Literal["auto", "off", "bf16"] = "auto"
    """Mixed precision of training steps. ``auto``: bfloat16 on a GPU that has it, else off."""

    @model_validator(mode="after")
    def _batch_is_positive(self) -> Self:
        if self.batch != "auto" and self.batch < 1:
            raise ValueError(f"batch is a number of patients of 1 or more, or auto, not {self.batch}")
        if self.min_epochs > self.epochs:
            raise ValueError(f"min_epochs {self.min_epochs} is more than epochs {self.epochs}")
        return self

    def batch_for(self, kinds: "set[str]") -> int:
        """Patients per step for these kinds of task.

        Raises
        ------
        StudyError
            For a survival task in batches of one, in which Cox's likelihood is constant and nothing would be
            learned.
        """
        if self.batch == "auto":
            return 8 if "survival" in kinds else 1
        if self.batch == 1 and "survival" in kinds:
            raise StudyError(
                "a survival task cannot learn from batches of one patient: Cox's likelihood compares them",
                where="training.batch",
                fix="write batch: 8 or more, or leave it at auto",
            )
        return self.batch


class Recipe(Spec):
    """All that decides what comes out of training on given patients: model, balancing, training, seed."""

    model: str = "joint"
    """Model: ``equipoise ls models``."""
    model_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the model."""
    balancing: BalancingParams = BalancingParams()
    """Loss weighting and gradient aggregation."""
    training: TrainingParams = TrainingParams()
    """The training loop."""
    seed: int = Field(default=0, ge=0)
    """Seed of initial weights, order of patients, dropout and drawn tiles, together with repeat and fold."""

    @model_validator(mode="after")
    def _known_model(self) -> Self:
        entry_params("models", self.model, self.model_params)
        return self

"""What inner validation watches to choose an epoch, and the metrics by which a search compares configurations.

Losses of different tasks have different units, so that their sum is led by the task with the largest numbers. The
default therefore watches the mean over tasks of a metric on a common scale, on which 1 is perfect, 1/2 a predictor
without information and 0 a reversed order: AUROC (mean over classes), C-index, and (r + 1) / 2 of Pearson's r. AUROC
and C are the probability that a pair of patients is in the right order; for two patients of a bivariate normal
distribution (r + 1) / 2 is that probability to within .11. R² has no such scale: it has no lower bound and punishes a
shift that leaves the order as it is. Epochs that are equal in the monitored value are told apart by ``mean_loss``:
metrics of few validation patients have few values.

Metrics compare patients **within their cohort**: pairs of the same cohort only, all of which count the same, and values
relative to the mean of the cohort for r and R². A score that knows nothing but the cohort is worth 1/2. Unlike in the
report, where the cohorts' values are averaged, a cohort of three validation patients does not get the weight of one of
three hundred.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.hazards import interval_of
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.metrics import (
    auroc,
    average_precision,
    harrell_c,
    normalised,
    pearson,
    r2,
)
from equipoise.platform.training.predict import Outputs, task_scores
from equipoise.platform.training.targets import Targets, TaskTarget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from equipoise.models.batch import TaskHead

log = logging.getLogger("equipoise")

Floats = NDArray[np.float64]

#: Kind of task → its metric that stands for it.
LEADING = {"binary": "auroc", "multiclass": "auroc", "regression": "pearson", "survival": "c_index"}
#: Monitors in the order in which one takes the place of another that validation cannot give.
MEAN_METRIC, MEAN_LOSS, VAL_LOSS = "mean_metric", "mean_loss", "val_loss"
#: Loss of a constant below which a task has nothing to explain.
_NOTHING = 1e-9


def task_metrics(
    task: TaskTarget, target: Floats, score: Floats, cohort: NDArray[np.int64]
) -> dict[str, float]:
    """Metrics of a task over patients with a label, by name, the leading one first; larger is better.

    A metric is NaN where the labels do not allow it within any cohort, which is the same for all models. Where the
    scores do not allow it (all equal, so no correlation), it has the value of a predictor without information.

    Parameters
    ----------
    task
        Kind, classes, scaler.
    target
        ``[V]`` as in a batch, or ``[V, 2]`` days and events.
    score
        ``[V, K]`` of :func:`~equipoise.platform.training.predict.task_scores`.
    cohort
        ``[V]`` index of each patient's cohort.
    """
    kind = task.head.kind
    if kind == "survival":
        times = target.reshape(-1, 2)
        return {"c_index": float(harrell_c(times[:, 0], times[:, 1], score[:, 0], strata=cohort))}
    if kind == "regression":
        truth = np.asarray(task.decode(target), float)
        correlation = float(pearson(truth, score[:, 0], strata=cohort))
        explained = float(r2(truth, score[:, 0], strata=cohort))
        if math.isnan(correlation) and not math.isnan(explained):
            correlation = 0.0
        known = len(truth) >= 3
        return {"pearson": correlation if known else math.nan, "r2": explained if known else math.nan}
    first = 1 if kind == "binary" else 0
    classes = [(target == k + first, score[:, k]) for k in range(score.shape[1])]
    return {
        "auroc": _mean_of_known([float(auroc(y, s, strata=cohort)) for y, s in classes]),
        "auprc": _mean_of_known([float(average_precision(y, s, strata=cohort)) for y, s in classes]),
    }


def metrics_of(targets: Targets, result: Outputs) -> dict[str, dict[str, float]]:
    """Task → :func:`task_metrics` over the patients of ``result`` with a label."""
    values = {}
    for task in targets.tasks:
        name = task.head.name
        mask = result.label_mask[name]
        target = result.targets[name][mask].double().numpy()
        score = task_scores(task, result.outputs[name][mask])
        values[name] = task_metrics(task, target, score, result.cohort[mask].numpy())
    return values


def mean_metric(targets: Targets, metrics: dict[str, dict[str, float]]) -> float:
    """Mean over tasks of the leading metrics between 0 and 1; NaN if there is none."""
    return _mean_of_known([_leading(head, metrics) for head in targets.heads])


class ValidationMonitor:
    """The monitored value of an epoch; smaller is better.

    ``mean_metric`` is 1 minus the mean over tasks of their metrics between 0 and 1, ``main_metric`` 1 minus that of the
    main task; ``mean_loss`` is the mean over tasks of the loss relative to that of the best constant prediction
    (:func:`constant_losses`), ``val_loss`` the sum of the mean losses of all tasks, ``main_loss`` the mean loss of the
    main task.

    Parameters
    ----------
    name
        ``training.monitor``.
    targets
        Tasks of the fold.
    losses
        Their losses, on the CPU.
    """

    def __init__(self, name: str, targets: Targets, losses: TaskLosses) -> None:
        self.name, self.targets, self.losses = name, targets, losses
        self.constant: LossSums | None = None

    def losses_of(self, result: Outputs) -> LossSums:
        """Loss sums and counts of validation patients."""
        return self.losses(result.outputs, result.targets, result.label_mask, result.cohort)

    def row(
        self, losses: LossSums, result: Outputs, *, first: bool, added: float | None = None
    ) -> dict[str, float]:
        """Columns of the history: ``monitor``, the value that is monitored, and ``monitor/<name>`` of all
        monitors that validation can give.

        Parameters
        ----------
        losses, result
            Losses and outputs of the validation patients.
        first
            Whether this is the first epoch, after which a fall-back is logged.
        added
            The value of ``added_loss`` (:mod:`equipoise.platform.training.added_loss`), for which training patients
            are needed, too; without it ``val_loss`` stands for it.

        Raises
        ------
        DataError
            If validation lacks the labels, events or classes that the monitor needs.
        """
        if self.constant is None:
            self.constant = constant_losses(self.losses, result)
        values = self._values(losses, result)
        if self.name == "added_loss":
            values["added_loss"] = values[VAL_LOSS] if added is None else added
        chosen = self._chosen(values, first=first)
        known = {f"monitor/{name}": value for name, value in values.items() if not math.isnan(value)}
        return {"monitor": values[chosen]} | known

    def _values(self, losses: LossSums, result: Outputs) -> dict[str, float]:
        assert self.constant is not None
        metrics = metrics_of(self.targets, result)
        means = torch.where(losses.counts > 0, losses.means(), math.nan).tolist()
        known = [value for value, count in zip(means, losses.counts.tolist(), strict=True) if count]
        return {
            MEAN_METRIC: 1 - mean_metric(self.targets, metrics),
            MEAN_LOSS: relative_loss(losses, self.constant),
            VAL_LOSS: sum(known) if known else math.nan,
            "main_loss": means[self.targets.heads.index(self.targets.main)],
            "main_metric": 1 - _leading(self.targets.main, metrics),
        }

    def _chosen(self, values: dict[str, float], *, first: bool) -> str:
        """The name of the monitor, or of the one that takes the place of ``mean_metric``."""
        if math.isnan(values[VAL_LOSS]):
            raise DataError("no validation patient has a label", fix="raise splits.inner_val")
        if not math.isnan(values[self.name]):
            return self.name
        if self.name != MEAN_METRIC:
            of_main = self.name.startswith("main")
            raise DataError(
                f"training.monitor: {self.name} cannot be computed: validation lacks labels, events or a class",
                where=f"task {self.targets.main.name}" if of_main else None,
                fix="raise splits.inner_val or write training.monitor: val_loss",
            )
        instead = VAL_LOSS if math.isnan(values[MEAN_LOSS]) else MEAN_LOSS
        if first:
            log.warning(
                "validation has no task with two classes, an event or differing values within a cohort: "
                "training.monitor is %s instead of %s",
                instead,
                MEAN_METRIC,
            )
        return instead


def relative_loss(losses: LossSums, constant: LossSums) -> float:
    """Mean over tasks of the loss relative to that of a constant; NaN if no task has something to explain.

    Both are sums over the same patients, so that sums of several sites can be added first.
    """
    known = (losses.counts > 0) & (constant.sums > _NOTHING * constant.counts.clamp(min=1))
    if not bool(known.any()):
        return math.nan
    return float((losses.sums[known].double() / constant.sums[known].double()).mean())


@torch.inference_mode()
def constant_losses(losses: TaskLosses, result: Outputs) -> LossSums:
    """Losses of the best prediction that is the same for all patients of ``result``: shares of classes, the mean, no
    difference in risk, the hazards of all patients together."""
    outputs = {}
    for index, head in enumerate(losses.heads):
        mask = result.label_mask[head.name]
        best_K = _best_constant(head, losses, index, result.targets[head.name][mask])
        outputs[head.name] = best_K.expand(len(mask), -1)
    return losses(outputs, result.targets, result.label_mask, result.cohort)


def _best_constant(head: TaskHead, losses: TaskLosses, index: int, target: Tensor) -> Tensor:
    """``[K]`` float64 outputs."""
    if not len(target) or head.compares_patients:
        return torch.zeros(head.outputs, dtype=torch.float64)
    target = target.double()
    if head.text is not None:
        return losses.best_constant_text(index, target)
    if head.kind == "regression":
        return target.mean()[None]
    if head.kind == "survival":
        interval = interval_of(target[:, 0], getattr(losses, f"edges_{index}"))
        ended = torch.bincount(interval, minlength=head.outputs).double()
        events = torch.bincount(interval, weights=target[:, 1], minlength=head.outputs)
        at_risk = ended.flip(0).cumsum(0).flip(0).clamp(min=1)
        return (events / at_risk).clamp(1e-9, 1 - 1e-9).logit()
    weight = getattr(losses, f"class_weight_{index}")
    share = torch.bincount(target.long(), minlength=head.outputs).double()
    return (share if weight is None else share * weight.double()).clamp(min=1e-9).log()


def _leading(head: TaskHead, metrics: dict[str, dict[str, float]]) -> float:
    metric = LEADING[head.kind]
    return normalised(metric, metrics[head.name][metric])


def _mean_of_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan

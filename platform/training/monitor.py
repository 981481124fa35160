"""What inner validation watches to choose an epoch."""

from __future__ import annotations

import math

from torch import Tensor

from equipoise.models.losses import LossSums
from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.metrics import auroc, harrell_c, pearson
from equipoise.platform.training.predict import Outputs, task_scores
from equipoise.platform.training.targets import Targets


def badness(monitor: str, targets: Targets, losses: LossSums, result: Outputs) -> float:
    """The number that a better epoch makes smaller.

    Parameters
    ----------
    monitor
        ``val_loss`` sums the mean losses of all tasks with a validation label, ``main_loss`` takes the main
        task's, ``main_metric`` is minus its AUROC (mean over classes for multiclass), Pearson r or C-index.
    targets, losses, result
        Tasks, and losses and outputs of the validation patients.

    Raises
    ------
    DataError
        If validation has no labels, events or classes to work it out from.
    """
    means, counted = losses.means().tolist(), (losses.counts > 0).tolist()
    if monitor == "val_loss":
        if not any(counted):
            raise DataError("no validation patient has a label", fix="raise splits.inner_val")
        return sum(mean for mean, has in zip(means, counted, strict=True) if has)
    main = targets.main
    index = targets.heads.index(main)
    if monitor == "main_loss":
        value = means[index] if counted[index] else math.nan
    else:
        value = -main_metric(targets, result)
    if math.isnan(value):
        raise DataError(
            f"training.monitor: {monitor} cannot be worked out: validation lacks labels, events or a class",
            where=f"task {main.name}",
            fix="raise splits.inner_val or write training.monitor: val_loss",
        )
    return value


def main_metric(targets: Targets, result: Outputs) -> float:
    """AUROC, Pearson r or C-index of the main task over cases with a label; NaN where it does not exist."""
    task = next(task for task in targets.tasks if task.head == targets.main)
    mask = result.label_mask[task.head.name]
    target = _numpy(result.targets[task.head.name][mask])
    score = task_scores(task, result.outputs[task.head.name][mask])
    if task.head.kind == "survival":
        return float(harrell_c(target[:, 0], target[:, 1], score[:, 0]))
    if task.head.kind == "regression":
        return float(pearson(target, score[:, 0]))
    first = 1 if task.head.kind == "binary" else 0
    each = [float(auroc(target == k + first, score[:, k])) for k in range(score.shape[1])]
    known = [value for value in each if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _numpy(values: Tensor):
    return values.double().numpy()

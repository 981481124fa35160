"""Metrics of one inner fold, larger is better, by the names that ``search.metric`` can take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from equipoise.platform.search.params import MEAN

if TYPE_CHECKING:
    from equipoise.platform.training.predict import Outputs
    from equipoise.platform.training.targets import Targets


def fold_scores(targets: Targets, result: Outputs) -> dict[str, float]:
    """``val/<task>/<metric>`` and ``val/mean`` over the patients of ``result`` with a label, within their cohorts.

    See :func:`~equipoise.platform.training.monitor.task_metrics`.
    """
    from equipoise.platform.training.monitor import mean_metric, metrics_of

    metrics = metrics_of(targets, result)
    values = {
        f"val/{task}/{metric}": value
        for task, of_task in metrics.items()
        for metric, value in of_task.items()
    }
    return values | {MEAN: mean_metric(targets, metrics)}

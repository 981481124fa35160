"""From the predictions table to one tidy table of metrics with intervals.

Cross-validation: the metric per fold, then the mean of the folds; raw scores of different folds are not pooled. ``low``
and ``high`` are bounds for these models on new patients, ``low_procedure`` and ``high_procedure`` for the procedure
that trained them; ``estimand`` says so in each row. Both come from influence values (:mod:`~.influence`,
:mod:`~.intervals`).

External cohorts, predictor ``model``: the mean score of the fold models (log risks scaled by the validation patients
of each fold, :func:`~equipoise.platform.evaluation.thresholds.standardise_risks`), then the metric. Predictor ``fold
models``: every fold model on the whole cohort and the mean of their metrics, as other work reports it; the influence
of a patient is the mean over the models, so that the interval reflects the patients and not the spread of five
numbers. Both intervals are for this ensemble and these models: no patient of the cohort trained them, and the cohort
says nothing about other trainings. Trivial baselines are rows of the same table.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.estimates import MetricResult, metric_results, positives
from equipoise.platform.evaluation.intervals import ConfidenceInterval
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.params import EvaluationParams, too_few_events
from equipoise.platform.evaluation.predictions import ROLES, validate
from equipoise.platform.evaluation.samples import (
    ALL,
    FOLD_MODELS,
    MODEL,
    POOLED,
    Sample,
    ScoredPatients,
    samples,
    strata_of,
)

#: Columns of the metrics table. ``class`` is empty for the task as a whole; ``predictor`` is ``model``,
#: ``fold models`` (external cohorts) or a baseline; ``fold`` is ``all``, or ``<repeat>-<fold>`` for a fold's
#: own value; ``n_pos`` counts positives or events. ``cohort`` is ``all`` for the mean of the values within cohorts (or
#: what ``evaluation.within`` names), ``pooled`` for the value over the patients of all cohorts together, and the
#: name of a cohort. With a single cohort ``all`` is that cohort, and there is no ``pooled``.
METRIC_COLUMNS = (
    "role", "cohort", "site", "task", "kind", "class", "predictor", "metric", "fold",
    "value", "low", "high", "low_procedure", "high_procedure", "n", "n_pos", "estimand", "method", "note",
)  # fmt: skip
#: Columns of numbers that are not counts.
NUMBERS = ("value", "low", "high", "low_procedure", "high_procedure")


def evaluate(
    predictions: pd.DataFrame,
    params: EvaluationParams | None = None,
    seed: int = 0,
    latents: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """All metrics of a predictions table.

    Parameters
    ----------
    predictions
        The predictions table (see :mod:`equipoise.platform.evaluation.predictions`).
    params
        Bootstrap, confidence, threshold rule, smallest site.
    seed
        Study seed, see :func:`~equipoise.platform.evaluation.estimates.metric_results`.
    latents
        The latents table of the same folds (:mod:`equipoise.platform.evaluation.latents`); without it there
        are no silhouettes.

    Returns
    -------
    One row per (role, cohort, site, task, class, predictor, metric, fold), columns ``METRIC_COLUMNS``. A
    value or bound that is not estimable is NaN and ``note`` says why.
    """
    params = params or EvaluationParams()
    rows: list[dict] = []
    for sample in all_samples(predictions, params, latents):
        rows += _evaluate_sample(sample, params, seed)
    metrics = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
    return metrics.astype({"n": "Int64", "n_pos": "Int64"} | dict.fromkeys(NUMBERS, float))


def all_samples(
    predictions: pd.DataFrame, params: EvaluationParams, latents: pd.DataFrame | None = None
) -> Iterator[Sample]:
    """Samples of every role and task; parameters as in :func:`evaluate`."""
    table = validate(predictions)
    for role in ROLES:
        for task, of_task in table.groupby("task", sort=True):
            task_latents = None if latents is None else latents[latents["task"] == task]
            strata = strata_of(table, params.within, str(task))
            yield from samples(of_task, role, params, task_latents, strata)


def _evaluate_sample(sample: Sample, params: EvaluationParams, seed: int) -> list[dict]:
    only = None
    if sample.site != ALL:
        primary = PRIMARY[sample.kind]
        only = [primary]
        if len(sample.strata) < params.min_site:
            reason = f"{len(sample.strata)} labelled patients; sites below {params.min_site} get no metric"
            return [_row(sample, metric=primary, note=reason, counts=_counts(sample, 0))]
        if few := too_few_events(params, sample.kind, _counts(sample, 0).n_pos, len(sample.strata)):
            return [_row(sample, metric=primary, note=few, counts=_counts(sample, 0))]
    rows = []
    for result in metric_results(sample, params, seed, only):
        rows.append(
            _row(
                sample,
                metric=result.metric,
                predictor=result.predictor,
                class_name=result.class_name,
                value=result.estimate.value,
                interval=result.interval,
                note=result.note,
                counts=_counts(sample, result.column),
            )
        )
        rows += _fold_rows(sample, result)
    return rows


def _fold_rows(sample: Sample, result: MetricResult) -> list[dict]:
    """The value of each fold, without interval, to show the spread."""
    definition = result.definition
    everyone = sample.cohort in (ALL, POOLED) or sample.predictor == FOLD_MODELS
    if definition is None or not everyone or sample.is_ensemble or definition.predictor != MODEL:
        return []
    rows = []
    for fold, cells in _by_fold(sample).items():
        reasons = [definition.undefined(cell) for cell in cells]
        values = [
            float(definition.value(cell, None))
            for cell, reason in zip(cells, reasons, strict=True)
            if not reason
        ]
        rows.append(
            _row(
                sample,
                metric=definition.metric,
                predictor=result.predictor,
                class_name=definition.class_name,
                fold=fold,
                value=float(np.mean(values)) if values else float("nan"),
                interval=ConfidenceInterval(float("nan"), float("nan"), "one fold"),
                note="" if values else f"not estimable: {reasons[0]}",
                counts=_fold_counts(sample, cells, definition.column),
            )
        )
    return rows


def _by_fold(sample: Sample) -> dict[str, list[ScoredPatients]]:
    """The groups of each fold: one, or one per stratum."""
    folds: dict[str, list[ScoredPatients]] = {}
    for group in sample.groups:
        folds.setdefault(group.fold_name, []).append(group)
    return folds


def _fold_counts(sample: Sample, cells: list[ScoredPatients], column: int | None) -> "Counts":
    counts = [positives(sample, cell, column) for cell in cells]
    known = [count for count in counts if count is not None]
    return Counts(sum(len(cell.patient) for cell in cells), sum(known) if known else None)


def _row(
    sample: Sample,
    *,
    metric: str,
    counts: "Counts",
    predictor: str = MODEL,
    class_name: str = "",
    fold: str = ALL,
    value: float = float("nan"),
    interval: ConfidenceInterval | None = None,
    note: str = "",
) -> dict:
    interval = interval or ConfidenceInterval(float("nan"), float("nan"), "")
    return {
        "role": sample.role, "cohort": sample.cohort, "site": sample.site, "task": sample.task,
        "kind": sample.kind, "class": class_name, "predictor": predictor, "metric": metric, "fold": fold,
        "value": value, "low": interval.low, "high": interval.high, "low_procedure": interval.low_procedure,
        "high_procedure": interval.high_procedure, "n": counts.n, "n_pos": counts.n_pos,
        "estimand": interval.estimand, "method": interval.method, "note": note,
    }  # fmt: skip


class Counts(NamedTuple):
    """Number of patients with a label, and of positives or events among them (None if not applicable)."""

    n: int
    n_pos: int | None


def _counts(sample: Sample, column: int | None) -> Counts:
    """Distinct labelled patients, and positives or events among them (None for the task as a whole)."""
    if column is None or sample.kind == "regression":
        return Counts(len(sample.strata), None)
    known: set[int] = set()
    for group in sample.groups:
        truth = group.event if sample.kind == "survival" else group.target[:, column]
        known |= set(group.patient[np.asarray(truth) == 1].tolist())
    return Counts(len(sample.strata), len(known))

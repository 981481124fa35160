"""From the predictions table to one tidy table of metrics with intervals.

Cross-validation: the metric per fold, then the mean of the folds; raw scores of different folds are not
pooled. The interval is a patient bootstrap stratified within fold. With several repeats only the folds of the
first can be strata, so a replicate may leave a fold of another repeat without a class: it then takes that
repeat's other folds, and is undefined only where a whole repeat is. External cohorts: the mean score of the
fold models, then the metric; DeLong for an AUROC, the patient bootstrap for the rest. Trivial baselines stand
in the same table.

Of these intervals the one of the average precision is the least reliable: with few positives in a fold,
patients drawn twice form ties that flatter it, so that it covers less often than it says.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from equipoise.platform.evaluation.intervals import (
    Interval,
    bootstrap_weights,
    delong_interval,
    percentile_interval,
)
from equipoise.platform.evaluation.measures import PRIMARY, Measure, macro_metrics, measures
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import ROLES, validate
from equipoise.platform.evaluation.samples import ALL, Group, Sample, samples

Floats = NDArray[np.float64]

#: Columns of the metrics table. ``class`` is empty for the task as a whole; ``predictor`` is ``model`` or a
#: baseline; ``fold`` is ``all``, or ``<repeat>-<fold>`` for a fold's own value; ``n_pos`` counts positives or
#: events.
METRIC_COLUMNS = (
    "role", "cohort", "site", "task", "kind", "class", "predictor", "metric", "fold",
    "value", "low", "high", "n", "n_pos", "method", "note",
)  # fmt: skip

#: Positives or events per fold below which intervals are known to be too narrow.
FEW = 5
_BLOCK = 2_000_000  # weights held as float64 at once


@dataclass(frozen=True)
class Estimate:
    """Mean over groups with its bootstrap replicates (None where no interval is asked for)."""

    value: float
    replicates: Floats | None
    note: str


def evaluate(
    predictions: pd.DataFrame, params: EvaluationParams | None = None, seed: int = 0
) -> pd.DataFrame:
    """All metrics of a predictions table.

    Parameters
    ----------
    predictions
        The predictions table (see :mod:`equipoise.platform.evaluation.predictions`).
    params
        Bootstrap, confidence, threshold rule, smallest site.
    seed
        Study seed. Every (role, cohort, site, task) has its own stream, so that an interval does not change
        when another task or cohort joins the study.

    Returns
    -------
    One row per (role, cohort, site, task, class, predictor, metric, fold), columns ``METRIC_COLUMNS``. A
    value or bound that is not estimable is NaN and ``note`` says why.
    """
    params = params or EvaluationParams()
    table = validate(predictions)
    rows: list[dict] = []
    for role in ROLES:
        for _, of_task in table.groupby("task", sort=True):
            for sample in samples(of_task, role, params):
                rows += _evaluate_sample(sample, params, seed)
    metrics = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
    return metrics.astype({"n": "Int64", "n_pos": "Int64", "value": float, "low": float, "high": float})


def _evaluate_sample(sample: Sample, params: EvaluationParams, seed: int) -> list[dict]:
    found = measures(sample)
    primary = PRIMARY[sample.kind]
    if sample.site != ALL:
        found = [m for m in found if m.metric == primary and m.predictor == "model"]
        if len(sample.strata) < params.min_site:
            reason = f"{len(sample.strata)} labelled patients; sites below {params.min_site} get no metric"
            return [_row(sample, metric=primary, note=reason, counts=_counts(sample, 0))]
    unit = zlib.crc32("\x1f".join([sample.role, sample.cohort, sample.site, sample.task]).encode())
    weights = bootstrap_weights(
        sample.strata, params.bootstrap, np.random.SeedSequence(seed, spawn_key=(unit,))
    )
    estimates = [_estimate(sample, m, weights) for m in found]
    rows = _macro_rows(sample, found, estimates, params)
    for measure, estimate in zip(found, estimates, strict=True):
        interval = _interval(sample, measure, estimate, params)
        rows.append(
            _row(
                sample,
                metric=measure.metric,
                predictor=measure.predictor,
                class_name=measure.class_name,
                value=estimate.value,
                interval=interval,
                note=_join(estimate.note, _few(sample, measure), *_cautions(sample, measure), interval.note),
                counts=_counts(sample, measure.column),
            )
        )
        if sample.cohort == ALL and measure.predictor == "model" and not sample.is_ensemble:
            rows += _fold_rows(sample, measure)
    return rows


def _estimate(sample: Sample, measure: Measure, weights: NDArray[np.uint16]) -> Estimate:
    """Mean of the groups in which the measure is defined."""
    reasons = {g.name: measure.undefined(g) for g in sample.groups}
    used = [g for g in sample.groups if reasons[g.name] is None]
    failed = {name: reason for name, reason in reasons.items() if reason}
    if not used:
        reason = next(iter(failed.values()), "no labelled patient")
        where = f" in any of {len(failed)} folds, for example" if len(failed) > 1 else ""
        return Estimate(float("nan"), None, f"not estimable{where}: {reason}")
    note = ""
    if failed:
        example, reason = next(iter(failed.items()))
        note = (
            f"mean of {len(used)} of {len(sample.groups)} folds; not estimable in {', '.join(failed)} "
            f"({example}: {reason})"
        )
    value = float(np.mean([float(measure.value(g, None)) for g in used]))
    if not measure.interval:
        return Estimate(value, None, note)
    replicates, gaps = _mean_of_folds(used, [_replicates(measure, g, weights) for g in used])
    if gaps:
        note = _join(note, f"{gaps:.1%} of the folds' bootstrap values are not estimable and left out")
    return Estimate(value, replicates, note)


def _mean_of_folds(groups: list[Group], values: list[Floats]) -> tuple[Floats, float]:
    """Each replicate's mean over the folds, and the share of fold values that it had to do without.

    Parameters
    ----------
    groups
        The folds, of one or several repeats.
    values
        ``[replicates]`` of each fold, NaN where a replicate leaves the fold without a class or event.

    Notes
    -----
    Repeats weigh as many folds as they have, so that a replicate in which every fold is defined is the mean
    of all folds. Splits drawn anew (one test part per repeat) are taken together: none of them is a whole
    pass over the patients.
    """
    repeats = [group.repeat for group in groups]
    if len(set(repeats)) == 1:
        return np.mean(values, axis=0), 0.0
    blocks = np.zeros(len(groups), int) if len(set(repeats)) == len(repeats) else np.asarray(repeats)
    every = np.stack(values)
    total = np.zeros(every.shape[1])
    for block in np.unique(blocks):
        part = every[blocks == block]
        defined = (~np.isnan(part)).sum(0)
        with np.errstate(invalid="ignore"):  # no fold defined: NaN
            total += len(part) * (np.nansum(part, axis=0) / defined)
    mean = total / len(groups)
    usable = ~np.isnan(mean)
    return mean, float(np.isnan(every[:, usable]).mean()) if usable.any() else 0.0


def _replicates(measure: Measure, group: Group, weights: NDArray[np.uint16]) -> Floats:
    own = weights[:, group.patient]
    step = max(1, _BLOCK // max(1, own.shape[1]))
    blocks = [measure.value(group, own[start : start + step]) for start in range(0, len(own), step)]
    return np.concatenate(blocks)


def _interval(sample: Sample, measure: Measure, estimate: Estimate, params: EvaluationParams) -> Interval:
    base = _method(sample, params)
    nothing = float("nan")
    if measure.predictor != "model":
        return Interval(nothing, nothing, "baseline")
    if not measure.interval:
        return Interval(nothing, nothing, f"{base[0]}; {_rule(params)}")
    if estimate.replicates is None:
        return Interval(nothing, nothing, base[0])
    if measure.metric == "auroc" and sample.is_ensemble:
        group, k = sample.groups[0], measure.column
        interval = delong_interval(group.target[:, k], group.score[:, k], params.confidence)
        return interval._replace(method=f"{base[0]}; {interval.method}")
    return percentile_interval(estimate.replicates, params.confidence, "; ".join(base))


def _macro_rows(
    sample: Sample, found: list[Measure], estimates: list[Estimate], params: EvaluationParams
) -> list[dict]:
    """Means over the classes of a multiclass task; NaN as soon as one class is not estimable."""
    rows = []
    for (metric, predictor), name in macro_metrics(sample.kind).items():
        parts = [
            (m, e)
            for m, e in zip(found, estimates, strict=True)
            if (m.metric, m.predictor) == (metric, predictor) and m.class_name
        ]
        if not parts:  # a site's row has the primary metric only
            continue
        value, interval, note = _macro(sample, parts, params)
        rows.append(
            _row(
                sample,
                metric=name,
                predictor=predictor,
                value=value,
                interval=interval,
                note=note,
                counts=_counts(sample, None),
            )
        )
    return rows


def _macro(
    sample: Sample, parts: list[tuple[Measure, Estimate]], params: EvaluationParams
) -> tuple[float, Interval, str]:
    """Mean over the classes with its interval and note."""
    nothing = float("nan")
    method = "mean over classes; " + "; ".join(_method(sample, params))
    for measure, estimate in parts:
        if np.isnan(estimate.value):
            note = f"class {measure.class_name}: {estimate.note}"
            return nothing, Interval(nothing, nothing, method), note
    value = float(np.mean([e.value for _, e in parts]))
    replicates = [e.replicates for _, e in parts if e.replicates is not None]
    if len(replicates) < len(parts):
        return value, Interval(nothing, nothing, "baseline"), ""
    interval = percentile_interval(np.mean(replicates, axis=0), params.confidence, method)
    return value, interval, _join(*sorted({e.note for _, e in parts}), interval.note)


def _fold_rows(sample: Sample, measure: Measure) -> list[dict]:
    """Each fold's own value, without interval, to show the spread."""
    rows = []
    for group in sample.groups:
        reason = measure.undefined(group)
        rows.append(
            _row(
                sample,
                metric=measure.metric,
                class_name=measure.class_name,
                fold=group.name,
                value=float("nan") if reason else float(measure.value(group, None)),
                interval=Interval(float("nan"), float("nan"), "one fold"),
                note=f"not estimable: {reason}" if reason else "",
                counts=Counts(
                    len(group.patient), _positives(sample, group.target[:, measure.column], group.event)
                ),
            )
        )
    return rows


def _row(
    sample: Sample,
    *,
    metric: str,
    counts: "Counts",
    predictor: str = "model",
    class_name: str = "",
    fold: str = ALL,
    value: float = float("nan"),
    interval: Interval | None = None,
    note: str = "",
) -> dict:
    interval = interval or Interval(float("nan"), float("nan"), "")
    return {
        "role": sample.role, "cohort": sample.cohort, "site": sample.site, "task": sample.task,
        "kind": sample.kind, "class": class_name, "predictor": predictor, "metric": metric, "fold": fold,
        "value": value, "low": interval.low, "high": interval.high, "n": counts.n, "n_pos": counts.n_pos,
        "method": interval.method, "note": note,
    }  # fmt: skip


class Counts(NamedTuple):
    """Patients with a label, and positives or events among them (None where there is no such thing)."""

    n: int
    n_pos: int | None


def _counts(sample: Sample, column: int | None) -> Counts:
    """Distinct labelled patients, and positives or events among them (None for means over classes)."""
    positives: set[int] = set()
    for group in sample.groups if column is not None and sample.kind != "regression" else ():
        truth = group.event if sample.kind == "survival" else group.target[:, column]
        positives |= set(group.patient[truth == 1].tolist())
    counted = column is not None and sample.kind != "regression"
    return Counts(len(sample.strata), len(positives) if counted else None)


def _positives(sample: Sample, target: Floats, event: Floats) -> int | None:
    if sample.kind == "regression":
        return None
    return int(((event if sample.kind == "survival" else target) == 1).sum())


def _few(sample: Sample, measure: Measure) -> str:
    """A caution where a fold has too few positives or events for its interval to be trusted."""
    if sample.kind == "regression" or not measure.interval or sample.site != ALL:
        return ""
    counts = [_positives(sample, g.target[:, measure.column], g.event) or 0 for g in sample.groups]
    small = [g.name for g, c in zip(sample.groups, counts, strict=True) if c < FEW]
    what = "events" if sample.kind == "survival" else "positives"
    return f"fewer than {FEW} {what} in {', '.join(small)}: interval likely too narrow" if small else ""


def _cautions(sample: Sample, measure: Measure) -> list[str]:
    return sorted({measure.caution(g) for g in sample.groups})


def _method(sample: Sample, params: EvaluationParams) -> tuple[str, str]:
    if sample.is_ensemble:
        return "mean score of the fold models", f"bootstrap {params.bootstrap}"
    return f"mean of {len(sample.groups)} folds", f"bootstrap {params.bootstrap}, stratified within fold"


def _rule(params: EvaluationParams) -> str:
    rule = params.threshold
    name = "Youden" if rule.metric == "youden" else f"sensitivity >= {rule.value:g}"
    return f"{name}, chosen on validation data"


def _join(*notes: str) -> str:
    return "; ".join(n for n in notes if n)

"""From a sample to its metrics: value, bootstrap replicates, interval, and what to know about them.

The metrics table writes these down (:mod:`~equipoise.platform.evaluation.evaluate`); comparisons of runs
subtract their replicates (:mod:`~equipoise.platform.evaluation.paired`), which belong together because the
draws are a function of the seed and of the patients, not of the scores.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.evaluation.intervals import (
    Interval,
    bootstrap_weights,
    delong_interval,
    percentile_interval,
)
from equipoise.platform.evaluation.measures import Measure, macro_metrics, measures
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, Group, Sample

Floats = NDArray[np.float64]

#: Positives or events per fold below which intervals are known to be too narrow.
FEW = 5
_BLOCK = 2_000_000  # weights held as float64 at once


@dataclass(frozen=True)
class Estimate:
    """Mean over groups with its bootstrap replicates (None where no interval is asked for)."""

    value: float
    replicates: Floats | None
    note: str


@dataclass(frozen=True)
class Result:
    """One metric of a sample. ``measure`` is None for a mean over classes, ``column`` for the task as a whole."""

    metric: str
    predictor: str
    estimate: Estimate
    interval: Interval
    note: str
    class_name: str = ""
    column: int | None = None
    measure: Measure | None = None


def results_of(
    sample: Sample, params: EvaluationParams, seed: int, only: Sequence[str] | None = None
) -> list[Result]:
    """All metrics of a sample: means over classes first, then the measures in their order.

    Parameters
    ----------
    sample
        See :mod:`equipoise.platform.evaluation.samples`.
    params
        Replicates and confidence.
    seed
        Study seed. Every (role, cohort, site, task) has its own stream, so that an interval does not change when
        another task or cohort joins the study.
    only
        Names of the metrics wanted of the model; all metrics and baselines if None.
    """
    found = measures(sample)
    if only is not None:
        found = [m for m in found if m.metric in only and m.predictor == MODEL]
    unit = zlib.crc32("\x1f".join([sample.role, sample.cohort, sample.site, sample.task]).encode())
    stream = np.random.SeedSequence(seed, spawn_key=(unit,))
    weights = bootstrap_weights(sample.strata, params.bootstrap, stream)
    estimates = [_estimate(sample, m, weights) for m in found]
    results = _macro_results(sample, found, estimates, params)
    for measure, estimate in zip(found, estimates, strict=True):
        interval = _interval(sample, measure, estimate, params)
        results.append(
            Result(
                measure.metric,
                _predictor(sample, measure),
                estimate,
                interval,
                joined(estimate.note, _few(sample, measure), *_cautions(sample, measure), interval.note),
                measure.class_name,
                measure.column,
                measure,
            )
        )
    return results


def _predictor(sample: Sample, measure: Measure) -> str:
    """Latents of fold models have no ensemble: the mean over the fold models is the model's value."""
    return (
        MODEL if measure.of_latents else sample.predictor if measure.predictor == MODEL else measure.predictor
    )


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
    replicates, gaps = mean_of_folds(used, [_replicates(measure, g, weights) for g in used])
    if gaps:
        note = joined(note, f"{gaps:.1%} of the folds' bootstrap values are not estimable and left out")
    return Estimate(value, replicates, note)


def mean_of_folds(groups: list[Group], values: list[Floats]) -> tuple[Floats, float]:
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
    if measure.predictor != MODEL:
        return Interval(nothing, nothing, "baseline")
    if not measure.interval:
        return Interval(nothing, nothing, f"{base[0]}; {_rule(params)}")
    if estimate.replicates is None:
        return Interval(nothing, nothing, base[0])
    if measure.metric == "auroc" and sample.is_ensemble and measure.column is not None:
        group, k = sample.groups[0], measure.column
        interval = delong_interval(group.target[:, k], group.score[:, k], params.confidence)
        return interval._replace(method=f"{base[0]}; {interval.method}")
    return percentile_interval(estimate.replicates, params.confidence, "; ".join(base))


def _macro_results(
    sample: Sample, found: list[Measure], estimates: list[Estimate], params: EvaluationParams
) -> list[Result]:
    """Means over the classes of a multiclass task; NaN as soon as one class is not estimable."""
    results = []
    for (metric, predictor), name in macro_metrics(sample.kind).items():
        parts = [
            (m, e)
            for m, e in zip(found, estimates, strict=True)
            if (m.metric, m.predictor) == (metric, predictor) and m.class_name
        ]
        if parts:  # a site's row has the primary metric only
            shown = sample.predictor if predictor == MODEL else predictor
            results.append(Result(name, shown, *_macro(sample, parts, params)))
    return results


def _macro(
    sample: Sample, parts: list[tuple[Measure, Estimate]], params: EvaluationParams
) -> tuple[Estimate, Interval, str]:
    """Mean over the classes with its interval and note."""
    nothing = float("nan")
    method = "mean over classes; " + "; ".join(_method(sample, params))
    for measure, estimate in parts:
        if np.isnan(estimate.value):
            note = f"class {measure.class_name}: {estimate.note}"
            return Estimate(nothing, None, note), Interval(nothing, nothing, method), note
    value = float(np.mean([e.value for _, e in parts]))
    replicates = [e.replicates for _, e in parts if e.replicates is not None]
    if len(replicates) < len(parts):
        return Estimate(value, None, ""), Interval(nothing, nothing, "baseline"), ""
    mean = np.mean(replicates, axis=0)
    interval = percentile_interval(mean, params.confidence, method)
    note = joined(*sorted({e.note for _, e in parts}), interval.note)
    return Estimate(value, mean, note), interval, note


def positives(sample: Sample, group: Group, column: int | None) -> int | None:
    """Positives or events of a group; None where there is no such thing."""
    if sample.kind == "regression" or column is None:
        return None
    return int(((group.event if sample.kind == "survival" else group.target[:, column]) == 1).sum())


def _few(sample: Sample, measure: Measure) -> str:
    """A caution where a fold has too few positives or events for its interval to be trusted."""
    if sample.kind == "regression" or not measure.interval or sample.site != ALL or measure.column is None:
        return ""
    counts = [positives(sample, g, measure.column) or 0 for g in sample.groups]
    small = [g.name for g, c in zip(sample.groups, counts, strict=True) if c < FEW]
    what = "events" if sample.kind == "survival" else "positives"
    return f"fewer than {FEW} {what} in {', '.join(small)}: interval likely too narrow" if small else ""


def _cautions(sample: Sample, measure: Measure) -> list[str]:
    return sorted({measure.caution(g) for g in sample.groups})


def _method(sample: Sample, params: EvaluationParams) -> tuple[str, str]:
    if sample.is_ensemble:
        what = "standardised log risk" if sample.kind == "survival" else "score"
        return f"mean {what} of the fold models", f"bootstrap {params.bootstrap}"
    if sample.predictor == FOLD_MODELS:
        models = "fold model" if len(sample.groups) == 1 else "fold models"
        words = f"mean of {len(sample.groups)} {models}, each on every patient"
        return words, f"bootstrap {params.bootstrap}"
    return f"mean of {len(sample.groups)} folds", f"bootstrap {params.bootstrap}, stratified within fold"


def _rule(params: EvaluationParams) -> str:
    rule = params.threshold
    name = "Youden" if rule.metric == "youden" else f"sensitivity >= {rule.value:g}"
    return f"{name}, chosen on validation data"


def joined(*notes: str) -> str:
    """Notes as one, empty ones left out."""
    return "; ".join(n for n in notes if n)

"""From a sample to its metrics: value, influence of every patient, interval and notes.

The metrics table is made of them (:mod:`~equipoise.platform.evaluation.evaluate`); comparisons of runs subtract their
influences patient by patient (:mod:`~equipoise.platform.evaluation.paired`). Silhouettes alone have bootstrap
replicates; those of two runs match, because the draws are a function of the seed and of the patients, not of the
scores.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.evaluation.influence import Cell, CellMean
from equipoise.platform.evaluation.intervals import (
    ConfidenceInterval,
    bootstrap_weights,
    influence_interval,
    percentile_interval,
)
from equipoise.platform.evaluation.metric_definitions import (
    MetricDefinition,
    macro_metrics,
    metric_definitions,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, POOLED, Sample, ScoredPatients

Floats = NDArray[np.float64]

#: Positives or events per fold below which the factors on the variance were not measured.
FEW = 5
#: Parts that a note names.
_SHOWN = 10
#: Number of weights that are held as float64 at once.
_BLOCK = 2_000_000


@dataclass(frozen=True)
class Estimate:
    """Mean over groups; ``mean`` has the influence of the patients, ``replicates`` those of a bootstrap.

    Both are None where no interval is asked for or possible; ``no_interval`` gives the reason.
    """

    value: float
    note: str
    mean: CellMean | None = None
    replicates: Floats | None = None
    no_interval: str = ""


@dataclass(frozen=True)
class MetricResult:
    """One metric of a sample. ``definition`` is None for a mean over classes, ``column`` for the task as a whole."""

    metric: str
    predictor: str
    estimate: Estimate
    interval: ConfidenceInterval
    note: str
    class_name: str = ""
    column: int | None = None
    definition: MetricDefinition | None = None


def metric_results(
    sample: Sample, params: EvaluationParams, seed: int, only: Sequence[str] | None = None
) -> list[MetricResult]:
    """All metrics of a sample: means over classes first, then the metrics in the order of their definitions.

    Parameters
    ----------
    sample
        See :mod:`equipoise.platform.evaluation.samples`.
    params
        Replicates and confidence.
    seed
        Study seed, of the bootstrap of silhouettes. Every (role, cohort, site, task) has its own stream, so that an
        interval does not change when another task or cohort joins the study.
    only
        Names of the metrics to compute for the model; all metrics and baselines if None.
    """
    definitions = metric_definitions(sample)
    if only is not None:
        definitions = [d for d in definitions if d.metric in only and d.predictor == MODEL]
    estimates = [_estimate(sample, d, params, seed) for d in definitions]
    results = _macro_results(sample, definitions, estimates, params)
    for definition, estimate in zip(definitions, estimates, strict=True):
        interval = _interval(sample, definition, estimate, params)
        results.append(
            MetricResult(
                definition.metric,
                _predictor(sample, definition),
                estimate,
                interval,
                join_notes(
                    estimate.note, _few(sample, definition), *_cautions(sample, definition), interval.note
                ),
                definition.class_name,
                definition.column,
                definition,
            )
        )
    return results


def _predictor(sample: Sample, definition: MetricDefinition) -> str:
    """Latents of fold models have no ensemble: the mean over the fold models is the value of the model."""
    if definition.of_latents:
        return MODEL
    return sample.predictor if definition.predictor == MODEL else definition.predictor


def _estimate(sample: Sample, definition: MetricDefinition, params: EvaluationParams, seed: int) -> Estimate:
    """Mean over the groups in which the metric is defined."""
    reasons = {g.name: definition.undefined(g) for g in sample.groups}
    used = [g for g in sample.groups if reasons[g.name] is None]
    failed = {name: reason for name, reason in reasons.items() if reason}
    if not used:
        reason = next(iter(failed.values()), "no labelled patient")
        where = f" in any of {len(failed)} folds, for example" if len(failed) > 1 else ""
        return Estimate(float("nan"), f"not estimable{where}: {reason}")
    note = ""
    if failed:
        example, reason = next(iter(failed.items()))
        parts = f"parts (fold and {' and '.join(sample.within)})" if sample.within else "folds"
        shown = ", ".join(list(failed)[:_SHOWN]) + (
            f" and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        )
        note = f"mean of {len(used)} of {len(sample.groups)} {parts}; not estimable in {shown} ({example}: {reason})"
    values = [float(definition.value(g, None)) for g in used]
    value = float(np.mean(values))
    if not definition.interval:
        return Estimate(value, note)
    if definition.of_latents:
        weights = _bootstrap(sample, params, seed)
        replicates, gaps = mean_of_folds(used, [_replicates(definition, g, weights) for g in used])
        if gaps:
            note = join_notes(
                note, f"{gaps:.1%} of the folds' bootstrap values are not estimable and left out"
            )
        return Estimate(value, note, replicates=replicates)
    cells = [
        # Every model tests all patients of an external cohort: they are one repeat, whatever their number.
        Cell(v, definition.influence_of(g), g.patient, 0 if sample.is_fixed else g.repeat, g.fold)
        for v, g in zip(values, used, strict=True)
    ]
    mean = CellMean.of(cells, len(sample.strata))
    lonely = sorted({g.name for c, g in zip(cells, used, strict=True) if np.isnan(c.influence).any()})
    if mean is None:
        what = "two events" if sample.kind == "survival" else "two patients of each class"
        return Estimate(value, note, no_interval=f"interval not estimable: it needs {what}")
    if lonely:
        note = join_notes(note, f"a single {_case(sample)} in {', '.join(lonely)}")
    return Estimate(value, note, mean)


def _bootstrap(sample: Sample, params: EvaluationParams, seed: int) -> NDArray[np.uint16]:
    unit = zlib.crc32("\x1f".join([sample.role, sample.cohort, sample.site, sample.task]).encode())
    stream = np.random.SeedSequence(seed, spawn_key=(unit,))
    return bootstrap_weights(sample.strata, params.bootstrap, stream)


def mean_of_folds(groups: list[ScoredPatients], values: list[Floats]) -> tuple[Floats, float]:
    """Mean over the folds of each replicate, and the share of fold values that are undefined.

    Parameters
    ----------
    groups
        The folds, of one or several repeats.
    values
        ``[replicates]`` of each fold, NaN where a replicate leaves the fold without a class or event.

    Notes
    -----
    Repeats are weighted by their number of folds, so that a replicate in which every fold is defined is the mean of all
    folds. Independent random splits (one test part per repeat) form one block: none of them covers all patients.
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


def _replicates(definition: MetricDefinition, group: ScoredPatients, weights: NDArray[np.uint16]) -> Floats:
    drawn = weights[:, group.patient]
    step = max(1, _BLOCK // max(1, drawn.shape[1]))
    blocks = [definition.value(group, drawn[start : start + step]) for start in range(0, len(drawn), step)]
    return np.concatenate(blocks)


def _interval(
    sample: Sample, definition: MetricDefinition, estimate: Estimate, params: EvaluationParams
) -> ConfidenceInterval:
    how, models = _how(sample), _estimand(sample)
    nan = float("nan")
    if definition.predictor != MODEL:
        return ConfidenceInterval(nan, nan, "baseline")
    if not definition.interval:
        return ConfidenceInterval(nan, nan, f"{how}; {_threshold_text(params)}")
    if estimate.replicates is not None:
        method = join_notes(
            how, f"bootstrap {params.bootstrap}", "" if sample.is_fixed else "stratified within fold"
        )
        return percentile_interval(estimate.replicates, params.confidence, method)._replace(estimand=models)
    if estimate.mean is None:
        return ConfidenceInterval(nan, nan, how, estimate.no_interval, estimand=models)
    return _of_influence(
        sample, estimate.mean, params, how, definition, bool(_small_folds(sample, definition.column))
    )


def _of_influence(
    sample: Sample,
    mean: CellMean,
    params: EvaluationParams,
    how: str,
    definition: MetricDefinition,
    few: bool,
) -> ConfidenceInterval:
    interval = influence_interval(
        mean, params.confidence, definition.scale, definition.inflation, fixed=sample.is_fixed, few=few
    )
    return interval._replace(method=f"{how}; {interval.method}", estimand=_estimand(sample, mean))


def _macro_results(
    sample: Sample, definitions: list[MetricDefinition], estimates: list[Estimate], params: EvaluationParams
) -> list[MetricResult]:
    """Means over the classes of a multiclass task; NaN if any class is not estimable."""
    results = []
    for (metric, predictor), name in macro_metrics(sample.kind).items():
        parts = [
            (d, e)
            for d, e in zip(definitions, estimates, strict=True)
            if (d.metric, d.predictor) == (metric, predictor) and d.class_name
        ]
        if parts:  # the rows of a site have the primary metric only
            shown = sample.predictor if predictor == MODEL else predictor
            results.append(MetricResult(name, shown, *_macro(sample, parts, params)))
    return results


def _macro(
    sample: Sample, parts: list[tuple[MetricDefinition, Estimate]], params: EvaluationParams
) -> tuple[Estimate, ConfidenceInterval, str]:
    """Mean over the classes with its interval and note."""
    nan = float("nan")
    how = f"mean over classes; {_how(sample)}"
    for definition, estimate in parts:
        if np.isnan(estimate.value):
            note = f"class {definition.class_name}: {estimate.note}"
            return Estimate(nan, note), ConfidenceInterval(nan, nan, how, estimand=_estimand(sample)), note
    value = float(np.mean([e.value for _, e in parts]))
    first = parts[0][0]
    if not first.interval:
        return Estimate(value, ""), ConfidenceInterval(nan, nan, "baseline"), ""
    means = [e.mean for _, e in parts if e.mean is not None]
    mean = CellMean.average(means) if len(means) == len(parts) else None
    note = join_notes(*sorted({e.note for _, e in parts}))
    if mean is None:
        reasons = sorted({e.no_interval for _, e in parts} - {""})
        reason = (reasons or ["interval not estimable: the classes are missing in different folds"])[0]
        empty = ConfidenceInterval(nan, nan, how, reason, estimand=_estimand(sample))
        return Estimate(value, note, no_interval=reason), empty, join_notes(note, reason)
    few = any(_small_folds(sample, d.column) for d, _ in parts)
    interval = _of_influence(sample, mean, params, how, first, few)
    return Estimate(value, note, mean), interval, join_notes(note, interval.note)


def positives(sample: Sample, group: ScoredPatients, column: int | None) -> int | None:
    """Number of positives or events of a group; None for a regression or the task as a whole."""
    if sample.kind == "regression" or column is None:
        return None
    return int(((group.event if sample.kind == "survival" else group.target[:, column]) == 1).sum())


def _case(sample: Sample) -> str:
    return {"survival": "event", "regression": "patient"}.get(sample.kind, "patient of a class")


def _small_folds(sample: Sample, column: int | None) -> list[str]:
    """Folds with too few positives or events for the factors on the variance; names as in ``<repeat>-<fold>``."""
    if sample.kind == "regression" or column is None:
        return []
    counts: dict[tuple[int, int], int] = {}
    names: dict[tuple[int, int], str] = {}
    for group in sample.groups:
        fold = (group.repeat, group.fold)
        counts[fold] = counts.get(fold, 0) + (positives(sample, group, column) or 0)
        names.setdefault(fold, "ensemble" if sample.is_ensemble else group.fold_name)
    return [names[fold] for fold, count in counts.items() if count < FEW]


def _few(sample: Sample, definition: MetricDefinition) -> str:
    """A caution if a fold has too few positives or events for a reliable interval."""
    if sample.site != ALL or not definition.interval:
        return ""
    small = _small_folds(sample, definition.column)
    what = "events" if sample.kind == "survival" else "positives"
    return f"fewer than {FEW} {what} in {', '.join(small)}: interval uncertain" if small else ""


def _cautions(sample: Sample, definition: MetricDefinition) -> list[str]:
    return [*sorted({definition.caution(g) for g in sample.groups}), definition.remark(sample.groups)]


def _how(sample: Sample) -> str:
    """How the value is made."""
    within = f"; within {' and '.join(sample.within)}, then the mean" if sample.within else ""
    within = "; pooled over cohorts" if sample.cohort == POOLED else within
    count = len({g.fold_name for g in sample.groups})
    if sample.is_ensemble:
        what = "standardised log risk" if sample.kind == "survival" else "score"
        return f"mean {what} of the fold models{within}"
    if sample.predictor == FOLD_MODELS:
        models = "fold model" if count == 1 else "fold models"
        return f"mean of {count} {models}, each on every patient{within}"
    return f"mean of {count} folds{within}"


def _estimand(sample: Sample, mean: CellMean | None = None) -> str:
    """What ``low`` and ``high`` are for, and which procedure the other bounds are for."""
    if sample.is_ensemble:
        return "this ensemble"
    count = len({(g.repeat, g.fold) for g in sample.groups})
    models = "this model" if count == 1 else f"these {count} models"
    if sample.is_fixed or mean is None or count == 1:
        return models
    if mean.folds == 1:
        return f"{models}; procedure trained on the training part of a split"
    share = round(100 * (1 - 1 / mean.folds))
    return f"{models}; procedure trained on {share} % of the patients"


def _threshold_text(params: EvaluationParams) -> str:
    rule = params.threshold
    return rule.label if rule.metric == "fixed" else f"{rule.label}, chosen on validation data"


def join_notes(*notes: str) -> str:
    """All notes in one string, empty ones left out."""
    return "; ".join(n for n in notes if n)

"""Paired differences between runs on the same patients: influence values, the corrected resampled t over repeats.

A pair of runs is compared patient by patient: same test patients, same folds, same labels, which
:func:`require_comparable` checks. The variance of a difference comes from the differences of the patients' influences
(:mod:`~equipoise.platform.evaluation.intervals`, :func:`~equipoise.platform.evaluation.intervals.paired_test`), times
1.5 in a cross-validation, whose patients also trained the other folds. Silhouettes are compared by the paired
bootstrap: draws are a function of the seed and the patients, so that the replicates of two runs match.

With more than two runs every pair is corrected for all of them
(:mod:`~equipoise.platform.evaluation.multiple_comparisons`), whichever of them is chosen afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import t as student

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.estimates import MetricResult, metric_results
from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.influence import ENOUGH_REPEATS, CellMean
from equipoise.platform.evaluation.intervals import (
    PairedTest,
    pair_factor,
    paired_test,
    percentile_interval,
)
from equipoise.platform.evaluation.metric_definitions import LOWER_IS_BETTER
from equipoise.platform.evaluation.multiple_comparisons import AllPairs, Contrasts, compare_all
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, Sample

Floats = NDArray[np.float64]

#: (role, cohort, task, class, metric, predictor) of an estimate.
MetricKey = tuple[str, str, str, str, str, str]

DIFFERENCE_COLUMNS = (
    "run", "reference", "role", "cohort", "task", "class", "metric", "predictor",
    "difference", "low", "high", "p", "p_pairs", "p_joint", "n", "method", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A run, a trial or any other set of predictions that is compared with others on the same patients.

    ``latents`` are optional; ``metadata`` are columns for the table (model, balancing, seed).
    """

    name: str
    predictions: pd.DataFrame = field(repr=False)
    latents: pd.DataFrame | None = field(default=None, repr=False)
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluatedMetric:
    """A metric with the sample it was computed from."""

    sample: Sample
    result: MetricResult


def evaluate_candidate(
    candidate: Candidate, params: EvaluationParams, seed: int
) -> dict[MetricKey, EvaluatedMetric]:
    """Every test and external estimate of the model over all sites, by its key."""
    evaluated = {}
    for sample in all_samples(candidate.predictions, params, candidate.latents):
        if sample.role == "val" or sample.site != ALL:
            continue
        for result in metric_results(sample, params, seed):
            if result.predictor not in (MODEL, FOLD_MODELS):
                continue
            key = (
                sample.role,
                sample.cohort,
                sample.task,
                result.class_name,
                result.metric,
                result.predictor,
            )
            evaluated[key] = EvaluatedMetric(sample, result)
    return evaluated


def require_comparable(candidates: Sequence[Candidate]) -> list[str]:
    """Tasks that all candidates have, on the same labelled patients in the same folds with the same labels.

    Raises
    ------
    DataError
        Naming, for each task, the patients, folds or labels that differ and between which two candidates.
    """
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise DataError(f"two runs have the same name: {', '.join(sorted(names))}")
    tasks = [list(dict.fromkeys(c.predictions["task"])) for c in candidates]
    shared = [task for task in tasks[0] if all(task in other for other in tasks)]
    if not shared:
        raise DataError(
            "the runs have no task in common: "
            + "; ".join(f"{name} has {', '.join(has)}" for name, has in zip(names, tasks, strict=True))
        )
    problems = []
    for task in shared:
        first, *others = [_labels(c.predictions, task) for c in candidates]
        for other, name in zip(others, names[1:], strict=True):
            problems += [f"task {task}, {line}" for line in _label_differences(first, other, names[0], name)]
    if problems:
        more = f"\n  and {len(problems) - 12} further differences" if len(problems) > 12 else ""
        raise DataError(
            "the runs cannot be compared pairwise\n"
            + "\n".join(f"  {line}" for line in problems[:12])
            + more,
            fix="compare runs over the same cohorts, tables, splits and seed of the study",
        )
    return shared


def difference(
    first: EvaluatedMetric, second: EvaluatedMetric, confidence: float
) -> tuple[PairedTest, float, float, str, str]:
    """Difference first - second with test, bounds, method and note.

    See :func:`~equipoise.platform.evaluation.intervals.paired_test`. Silhouettes: the paired bootstrap, percentile
    bounds, and p is twice the smaller share of replicates on the other side of 0 (with one added to each count, so
    that it is never 0).
    """
    a, b = first.result.estimate, second.result.estimate
    value, nan = a.value - b.value, float("nan")
    if a.replicates is not None and b.replicates is not None:
        return _bootstrap_difference(value, a.replicates - b.replicates, confidence)
    nothing = PairedTest(value, nan, nan, nan)
    method = "paired influence values"
    if a.mean is None or b.mean is None:
        of = first.result if np.isnan(a.value) or a.mean is None else second.result
        return nothing, nan, nan, method, of.note
    apart = a.mean.minus(b.mean)
    if apart is None:
        return nothing, nan, nan, method, "the two are not estimable in the same folds"
    fixed = first.sample.is_fixed
    test = paired_test(apart, fixed=fixed)
    if np.isnan(test.p):
        return test, nan, nan, method, f"every patient says {test.difference:.4g}: no variance to test with"
    quantile = float(ndtri(0.5 + confidence / 2))
    if not fixed and apart.folds > 1 and apart.repeats >= ENOUGH_REPEATS:
        count = len(apart.fold_means)
        method = f"corrected resampled t over {count} folds of {apart.repeats} repeats"
        quantile = float(student.ppf(0.5 + confidence / 2, count - 1))
    elif (factor := pair_factor(apart, fixed=fixed)) != 1:
        method = f"{method}, variance x {factor:g}"
    half = quantile * test.se
    return test, test.difference - half, test.difference + half, method, ""


def _bootstrap_difference(
    value: float, drawn: Floats, confidence: float
) -> tuple[PairedTest, float, float, str, str]:
    nan = float("nan")
    method = "paired bootstrap"
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return PairedTest(value, nan, nan, nan), nan, nan, method, "no replicate is defined"
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (float(smaller) + 1) / (len(known) + 1))
    bounds = percentile_interval(drawn, confidence, method)
    se = float(known.std(ddof=1)) if len(known) > 1 else nan
    return PairedTest(value, se, nan, p), bounds.low, bounds.high, method, bounds.note


def pairwise(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]], alpha: float = 0.05, seed: int = 0
) -> dict[MetricKey, AllPairs]:
    """Every pair of runs in every metric, corrected for all pairs of a task and for all tasks of the metric jointly.

    Parameters
    ----------
    evaluated
        Run → its estimates (:func:`evaluate_candidate`, the same seed and parameters for all).
    alpha
        Family-wise level.
    seed
        Of the draws.

    Returns
    -------
    Metric key → comparison of the runs that have it with the same folds; none where fewer than two have.
    """
    families: dict[tuple[object, ...], dict[MetricKey, tuple[tuple[str, ...], Contrasts]]] = {}
    for key in dict.fromkeys(key for metrics in evaluated.values() for key in metrics):
        of_runs = {name: metrics[key] for name, metrics in evaluated.items() if key in metrics}
        if (made := _contrasts(key, of_runs)) is not None:
            role, cohort, _, cls, metric, predictor = key
            family = (role, cohort, cls == "", metric, predictor, made[0])
            families.setdefault(family, {})[key] = made
    result: dict[MetricKey, AllPairs] = {}
    for members in families.values():
        names = next(iter(members.values()))[0]
        tasks = {"\x1f".join(key): contrasts for key, (_, contrasts) in members.items()}
        compared = compare_all(names, tasks, alpha, seed)
        result |= {key: compared["\x1f".join(key)] for key in members}
    return result


def contrasts_of(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]], key: MetricKey
) -> tuple[tuple[str, ...], Contrasts] | None:
    """Names and contrasts of the runs that have a metric with the same folds; None for fewer than two."""
    return _contrasts(key, {name: metrics[key] for name, metrics in evaluated.items() if key in metrics})


def _contrasts(
    key: MetricKey, of_runs: Mapping[str, EvaluatedMetric]
) -> tuple[tuple[str, ...], Contrasts] | None:
    means: dict[str, CellMean] = {}
    for name, one in of_runs.items():
        mean = one.result.estimate.mean
        if mean is not None and (not means or mean.minus(next(iter(means.values()))) is not None):
            means[name] = mean
    if len(means) < 2:
        return None
    sample = next(iter(of_runs.values())).sample
    first = next(iter(means.values()))
    factor = np.sqrt(pair_factor(first, fixed=sample.is_fixed))
    sign = -1.0 if key[4] in LOWER_IS_BETTER else 1.0
    directions = np.stack([sign * factor * mean.directions for mean in means.values()])
    values = np.array([sign * mean.value for mean in means.values()])
    return tuple(means), Contrasts(values, directions, _units(sample, first, key), _degrees(sample, first))


def _units(sample: Sample, mean: CellMean, key: MetricKey) -> tuple[object, ...]:
    """What the directions belong to: patients, then repeats, which no other task shares."""
    size = mean.directions.shape[0]
    patients = sample.patients
    if size == len(patients) * mean.repeats:
        return tuple((s, patient) for s in range(mean.repeats) for patient in patients)
    return (*((0, patient) for patient in patients), *((key, s) for s in range(size - len(patients))))


def _degrees(sample: Sample, mean: CellMean) -> float:
    """Patients of the rarest class (events; all patients of a regression) less the cells, at least 1."""
    if sample.kind == "regression":
        return float(max(1, len(sample.strata) - mean.cells))
    truth: dict[int, int] = {}
    for group in sample.groups:
        if sample.kind == "survival":
            label = group.event.astype(int)
        else:
            label = group.target.argmax(1) if sample.kind == "multiclass" else group.target[:, 0].astype(int)
        truth.update(zip(group.patient.tolist(), label.tolist(), strict=True))
    counts = np.unique(list(truth.values()), return_counts=True)[1]
    rarest = sum(truth.values()) if sample.kind == "survival" else int(counts.min())
    return float(max(1, rarest - (1 if sample.is_fixed else mean.cells)))


def paired_differences(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]],
    reference: str,
    confidence: float,
    pairs: Mapping[MetricKey, AllPairs] | None = None,
) -> pd.DataFrame:
    """Differences of every run to a reference run, columns ``DIFFERENCE_COLUMNS``.

    Parameters
    ----------
    evaluated
        Run → its estimates (:func:`evaluate_candidate`, the same seed and parameters for all).
    reference
        Name of the run that the others are compared with.
    confidence
        Level of the intervals.
    pairs
        :func:`pairwise` of the same runs; computed if None.

    Notes
    -----
    ``p`` is that of the pair alone; ``p_pairs`` is corrected for all pairs of runs in the task, ``p_joint`` for all
    pairs in all tasks of the metric. They hold for any reference, also for one that was chosen by the same results.
    NaN for silhouettes.
    """
    pairs = pairwise(evaluated, 1 - confidence) if pairs is None else pairs
    rows = []
    for name, metrics in evaluated.items():
        if name == reference:
            continue
        for key, mine in metrics.items():
            theirs = evaluated[reference].get(key)
            if theirs is None or not _is_estimate(mine):
                continue
            if not np.array_equal(mine.sample.strata, theirs.sample.strata):
                raise DataError(
                    f"{name} and {reference} were not evaluated on the same patients", where=str(key)
                )
            test, low, high, method, note = difference(mine, theirs, confidence)
            row: dict[str, object] = dict(
                zip(("role", "cohort", "task", "class", "metric", "predictor"), key, strict=True)
            )
            row |= {"run": name, "reference": reference, "difference": test.difference, "low": low}
            row |= {"high": high, "p": test.p, "n": len(mine.sample.strata), "method": method, "note": note}
            rows.append(row | _corrected(pairs.get(key), name, reference, test.p))
    table = pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))
    return table.astype(dict.fromkeys(("difference", "low", "high", "p", "p_pairs", "p_joint"), float))


def _corrected(pairs: AllPairs | None, name: str, reference: str, p: float) -> dict[str, float]:
    """Corrected p of a pair, not below its own."""
    if pairs is None or name not in pairs.names or reference not in pairs.names or np.isnan(p):
        return {"p_pairs": float("nan"), "p_joint": float("nan")}
    i, j = pairs.names.index(name), pairs.names.index(reference)
    corrected, joint = float(pairs.p[i, j]), float(pairs.p_joint[i, j])
    if len(pairs.names) == 2:  # a single pair needs no correction, nor does it in a single task
        corrected, joint = p, p if joint == corrected else joint
    return {"p_pairs": max(p, corrected), "p_joint": max(p, corrected, joint)}


def _is_estimate(metric: EvaluatedMetric) -> bool:
    """Whether the metric is estimated; thresholds are settings."""
    return metric.result.definition is None or metric.result.definition.interval


def _labels(predictions: pd.DataFrame, task: str) -> pd.DataFrame:
    """Labelled rows of a task, by role, patient, fold and class."""
    rows = predictions[predictions["task"] == task]
    rows = rows[labelled(rows)]
    keys = ["role", "patient", "repeat", "fold", "class"]
    return rows.set_index(keys)[["target", "time", "event"]].sort_index()


def _label_differences(one: pd.DataFrame, other: pd.DataFrame, first: str, second: str) -> list[str]:
    """Differences between the labelled rows of two runs, as sentences."""
    lines = []
    for role in ("val", "test", "external"):
        a, b = (t[t.index.get_level_values("role") == role] for t in (one, other))
        mine, theirs = (set(t.index.get_level_values("patient")) for t in (a, b))
        if only := [
            f"{len(who)} only in {name} ({_some(who)})"
            for who, name in ((mine - theirs, first), (theirs - mine, second))
            if who
        ]:
            lines.append(f"{role} patients: {', '.join(only)}")
            continue
        if not a.index.equals(b.index):
            differing = a.index.symmetric_difference(b.index)
            patients = {str(p) for p in differing.get_level_values("patient")}
            classes = set(a.index.get_level_values("class")) ^ set(b.index.get_level_values("class"))
            what = f"classes {', '.join(sorted(classes))}" if classes else "folds"
            lines.append(
                f"{what} of {len(patients)} {role} patients differ ({_some(patients)}) in {first} and {second}"
            )
            continue
        apart = ~((a == b) | (a.isna() & b.isna())).all(axis=1)
        if apart.any():
            patients = {str(p) for p in a.index[apart].get_level_values("patient")}
            lines.append(
                f"labels of {len(patients)} {role} patients differ ({_some(patients)}) in {first} and {second}"
            )
    return lines


def _some(patients: set[str]) -> str:
    shown = sorted(patients)[:3]
    return ", ".join(shown) + (", …" if len(patients) > 3 else "")

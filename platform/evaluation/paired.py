"""Paired differences between runs on the same patients: DeLong for an AUROC, the paired bootstrap otherwise.

A pair of runs is compared patient by patient: same test patients, same folds, same labels, which
:func:`require_comparable` checks. Bootstrap draws are a function of the seed and the patients, so the
replicates of two runs match and their difference belongs to one draw of patients.

The intervals cover the choice of patients. Training the same method again with another seed would change the
numbers too; only runs with several seeds show by how much.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri
from scipy.stats import norm

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import holm
from equipoise.platform.evaluation.estimates import MetricResult, metric_results
from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.intervals import PairedTest, delong_test, percentile_interval
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, Sample

Floats = NDArray[np.float64]

#: (role, cohort, task, class, metric, predictor) of an estimate.
MetricKey = tuple[str, str, str, str, str, str]

DIFFERENCE_COLUMNS = (
    "run", "reference", "role", "cohort", "task", "class", "metric", "predictor",
    "difference", "low", "high", "p", "p_holm", "n", "method", "note",
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

    DeLong's test is used for an AUROC if each patient has one score, from one model (test folds of one repeat) or from
    the ensemble (external cohorts): folds hold different patients, so their variances add. For all other metrics, and
    if a fold is too small for DeLong, the paired bootstrap is used: percentile bounds, and p is twice the smaller share
    of replicates on the other side of 0 (with one added to each count, so that it is never 0).
    """
    if (exact := _delong(first, second)) is not None:
        half = float(ndtri(0.5 + confidence / 2)) * exact.se
        folds = len(first.sample.groups)
        method = "DeLong" if first.sample.is_ensemble else f"DeLong, mean of {folds} folds"
        return exact, exact.difference - half, exact.difference + half, method, ""
    a, b = first.result.estimate, second.result.estimate
    value = a.value - b.value
    nan = float("nan")
    method = "paired bootstrap"
    if np.isnan(value) or a.replicates is None or b.replicates is None:
        reason = first.result.note if np.isnan(a.value) else second.result.note
        return PairedTest(value, nan, nan, nan), nan, nan, method, reason
    drawn = a.replicates - b.replicates
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return PairedTest(value, nan, nan, nan), nan, nan, method, "no replicate is defined"
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (float(smaller) + 1) / (len(known) + 1))
    bounds = percentile_interval(drawn, confidence, method)
    se = float(known.std(ddof=1)) if len(known) > 1 else nan
    return PairedTest(value, se, nan, p), bounds.low, bounds.high, method, bounds.note


def paired_differences(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]], reference: str, confidence: float
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

    Notes
    -----
    Holm's correction covers the runs and tasks of one metric within one role, cohort and predictor.
    """
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
            rows.append(row)
    table = pd.DataFrame(rows, columns=list(DIFFERENCE_COLUMNS))
    families = table.groupby(["role", "cohort", "metric", "predictor", table["class"] == ""], sort=False)["p"]
    return table.assign(p_holm=families.transform(holm).astype(float))


def _is_estimate(metric: EvaluatedMetric) -> bool:
    """Whether the metric is estimated; thresholds are settings."""
    return metric.result.definition is None or metric.result.definition.interval


def _delong(first: EvaluatedMetric, second: EvaluatedMetric) -> PairedTest | None:
    """DeLong's test if it applies, else None."""
    sample, result = first.sample, first.result
    repeated = len({group.repeat for group in sample.groups}) > 1
    if result.metric != "auroc" or result.column is None or sample.predictor == FOLD_MODELS or repeated:
        return None
    tests = []
    for mine, theirs in zip(sample.groups, second.sample.groups, strict=True):
        column = result.column
        tests.append(delong_test(mine.target[:, column], mine.score[:, column], theirs.score[:, column]))
    if not tests or any(np.isnan(t.se) or np.isnan(t.p) for t in tests):
        return None
    mean = float(np.mean([t.difference for t in tests]))
    se = float(np.sqrt(np.sum([t.se**2 for t in tests]))) / len(tests)
    if se <= 1e-12:
        return PairedTest(mean, 0.0, 0.0, 1.0) if abs(mean) < 1e-12 else None
    return PairedTest(mean, se, mean / se, float(2 * norm.sf(abs(mean / se))))


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

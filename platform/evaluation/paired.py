"""Paired differences between runs on the same patients: DeLong for an AUROC, the paired bootstrap otherwise.

A pair of runs is compared patient by patient: same test patients, same folds, same labels, which
:func:`require_comparable` holds. Bootstrap draws are a function of the seed and the patients, so the
replicates of two runs belong together and their difference is that of one draw of patients.

The uncertainty is that of the patients. Training the same method again with another seed would move the
numbers too; only several seeds show by how much.
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
from equipoise.platform.evaluation.estimates import Result, results_of
from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.intervals import PairedTest, delong_test, percentile_interval
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, Sample

Floats = NDArray[np.float64]

#: (role, cohort, task, class, metric, predictor) of an estimate.
Key = tuple[str, str, str, str, str, str]

DIFFERENCE_COLUMNS = (
    "run", "reference", "role", "cohort", "task", "class", "metric", "predictor",
    "difference", "low", "high", "p", "p_holm", "n", "method", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A run, a trial or whatever else predicted the patients that the others predicted.

    ``latents`` are optional; ``facts`` are words about it for the table.
    """

    name: str
    predictions: pd.DataFrame = field(repr=False)
    latents: pd.DataFrame | None = field(default=None, repr=False)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Judged:
    """An estimate with the sample it was computed from."""

    sample: Sample
    result: Result


def judge(contender: Contender, params: EvaluationParams, seed: int) -> dict[Key, Judged]:
    """Every test and external estimate of the model over all sites, by its key."""
    found = {}
    for sample in all_samples(contender.predictions, params, contender.latents):
        if sample.role == "val" or sample.site != ALL:
            continue
        for result in results_of(sample, params, seed):
            if result.predictor not in (MODEL, FOLD_MODELS):
                continue
            place = (sample.role, sample.cohort, sample.task)
            found[(*place, result.class_name, result.metric, result.predictor)] = Judged(sample, result)
    return found


def require_comparable(contenders: Sequence[Contender]) -> list[str]:
    """Tasks that all have, on the same labelled patients in the same folds with the same labels.

    Raises
    ------
    DataError
        Naming, for each task, which patients, folds or labels differ between which two.
    """
    names = [c.name for c in contenders]
    if len(set(names)) < len(names):
        raise DataError(f"two runs have the same name: {', '.join(sorted(names))}")
    tasks = [list(dict.fromkeys(c.predictions["task"])) for c in contenders]
    shared = [task for task in tasks[0] if all(task in other for other in tasks)]
    if not shared:
        raise DataError(
            "the runs have no task in common: "
            + "; ".join(f"{name} has {', '.join(own)}" for name, own in zip(names, tasks, strict=True))
        )
    problems = []
    for task in shared:
        first, *others = [_labels(c.predictions, task) for c in contenders]
        for other, name in zip(others, names[1:], strict=True):
            problems += [f"task {task}, {line}" for line in _unlike(first, other, names[0], name)]
    if problems:
        more = f"\n  and {len(problems) - 12} further differences" if len(problems) > 12 else ""
        raise DataError(
            "the runs cannot be compared pairwise\n"
            + "\n".join(f"  {line}" for line in problems[:12])
            + more,
            fix="compare runs over the same cohorts, tables, splits and seed of the study",
        )
    return shared


def difference(first: Judged, second: Judged, confidence: float) -> tuple[PairedTest, float, float, str, str]:
    """Difference first - second with test, bounds, method and note.

    An AUROC over patients that each one model judges (test folds of one repeat) or one ensemble (external cohorts)
    is DeLong's: folds hold different patients, so their variances add. Anything else, and a fold too small for
    DeLong, is the paired bootstrap: percentile bounds, and p twice the smaller share of replicates on the other
    side of 0 (with one added to each count, so that it is never 0).
    """
    if (exact := _delong(first, second)) is not None:
        half = float(ndtri(0.5 + confidence / 2)) * exact.se
        folds = len(first.sample.groups)
        method = "DeLong" if first.sample.is_ensemble else f"DeLong, mean of {folds} folds"
        return exact, exact.difference - half, exact.difference + half, method, ""
    a, b = first.result.estimate, second.result.estimate
    value = a.value - b.value
    nothing = float("nan")
    method = "paired bootstrap"
    if np.isnan(value) or a.replicates is None or b.replicates is None:
        reason = first.result.note if np.isnan(a.value) else second.result.note
        return PairedTest(value, nothing, nothing, nothing), nothing, nothing, method, reason
    drawn = a.replicates - b.replicates
    known = drawn[~np.isnan(drawn)]
    if not len(known):
        return (
            PairedTest(value, nothing, nothing, nothing),
            nothing,
            nothing,
            method,
            "no replicate is defined",
        )
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    p = min(1.0, 2 * (float(smaller) + 1) / (len(known) + 1))
    bounds = percentile_interval(drawn, confidence, method)
    se = float(known.std(ddof=1)) if len(known) > 1 else nothing
    return PairedTest(value, se, nothing, p), bounds.low, bounds.high, method, bounds.note


def paired_differences(
    judged: Mapping[str, Mapping[Key, Judged]], reference: str, confidence: float
) -> pd.DataFrame:
    """Every run against one of them, columns ``DIFFERENCE_COLUMNS``.

    Parameters
    ----------
    judged
        Run → its estimates (:func:`judge`, the same seed and parameters for all).
    reference
        Name of the run that the others are compared with.
    confidence
        Level of the intervals.

    Notes
    -----
    Holm's correction runs over the runs and tasks of one metric in one place (role, cohort, predictor).
    """
    rows = []
    for name, own in judged.items():
        if name == reference:
            continue
        for key, mine in own.items():
            theirs = judged[reference].get(key)
            if theirs is None or not _measurable(mine):
                continue
            if not np.array_equal(mine.sample.strata, theirs.sample.strata):
                raise DataError(
                    f"{name} and {reference} were not judged on the same patients", where=str(key)
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


def _measurable(judged: Judged) -> bool:
    """Thresholds are settings, not results."""
    return judged.result.measure is None or judged.result.measure.interval


def _delong(first: Judged, second: Judged) -> PairedTest | None:
    """DeLong's test where it applies, else None."""
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
    """Labelled rows of a task, by who was what in which fold."""
    rows = predictions[predictions["task"] == task]
    rows = rows[labelled(rows)]
    keys = ["role", "patient", "repeat", "fold", "class"]
    return rows.set_index(keys)[["target", "time", "event"]].sort_index()


def _unlike(one: pd.DataFrame, other: pd.DataFrame, first: str, second: str) -> list[str]:
    """What differs between the labelled rows of two runs, in words."""
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
            odd = a.index.symmetric_difference(b.index)
            patients = {str(p) for p in odd.get_level_values("patient")}
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

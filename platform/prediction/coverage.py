"""How often prediction sets hold the truth, measured on patients that neither trained nor calibrated.

Inside a cross-validation: the sets of fold k are calibrated on its inner validation patients and measured on its test
patients, with one and the same model. This is nested and costs no training. On an external cohort: the sets that a new
patient would get, of all fold models together.

Two ranges stand beside the measured coverage. The *interval* is Clopper and Pearson's (1934) for the share of patients
whose set holds the truth. The *expected* range is where the coverage lies in 95 % of studies if patients are
exchangeable: given m calibrating patients, the misses among n others are beta-binomial with parameters
:math:`l = \\lfloor (1 - level)(m + 1) \\rfloor` and m + 1 - l (Vovk, Asian Conference on Machine Learning 2012;
Angelopoulos and Bates, arXiv 2107.07511, section 3.2), and the misses of folds and classes add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.conformal import (
    LEVEL,
    ClassScore,
    Conformal,
)
from equipoise.platform.prediction.conformal_task import TaskConformal, check_level
from equipoise.platform.prediction.nonconformity import (
    Floats,
    class_names,
    class_nonconformity,
    labelled_folds,
)

if TYPE_CHECKING:
    import pandas as pd

#: ``class`` is empty for all patients of the task; ``n`` counts patients; ``size`` is the mean number of labels in a
#: set, the mean width of an interval, or the mean lower bound in days; ``single`` the share of sets with exactly one
#: label, and ``single_right`` how many of these hold the truth; ``expected_low`` and ``expected_high`` are NaN where
#: several models made a set.
COVERAGE_COLUMNS = (
    "task", "kind", "class", "level", "n", "coverage", "low", "high", "expected_low", "expected_high", "size", "single",
    "single_right",
)  # fmt: skip
#: ``decided`` is the share of patients whose set has exactly one label; accuracy, sensitivity and specificity are of
#: these alone (the latter two NaN unless binary); ``coverage`` is of all sets.
TRADE_OFF_COLUMNS = (
    "task", "level", "n", "decided", "accuracy", "sensitivity", "specificity", "coverage",
)  # fmt: skip
#: Levels of the trade-off table.
LEVELS = (0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.99)


class Calibrated(NamedTuple):
    """Patients of one fold and class: how many calibrate, how many are measured."""

    calibrating: int
    measured: int


def nested_coverage(
    predictions: pd.DataFrame,
    *,
    level: float = LEVEL,
    score: ClassScore = "lac",
    class_conditional: bool = True,
    negatives: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Coverage on the test patients of the folds, calibrated on their inner validation patients.

    Parameters
    ----------
    predictions
        The predictions table of a run.
    level, score, class_conditional, negatives
        As in :meth:`~equipoise.platform.prediction.conformal.Conformal.fit`.

    Returns
    -------
    Columns ``COVERAGE_COLUMNS``; a row per task, and one per class. Patients that were tested in several repeats count
    once, with the mean of their repeats.
    """
    import pandas as pd

    check_level(level)
    options: dict[str, Any] = {"level": level, "score": score, "class_conditional": class_conditional}
    options["negatives"] = negatives
    parts, cells = [], []
    for (repeat, fold), rows in predictions.groupby(["repeat", "fold"], sort=True):
        if not (rows["role"] == "val").any():
            continue
        try:
            fitted = Conformal.fit(rows, role="val", **options)
        except DataError:  # no labelled validation patient in this fold
            continue
        for name, task in fitted.tasks.items():
            of_task = rows[(rows["task"] == name) & (rows["role"] == "test")]
            measured = covered(task, of_task)
            parts.append(measured.assign(repeat=repeat, fold=fold))
            if repeat == predictions["repeat"].min():
                cells += _cells(task, measured)
    if not parts:
        return pd.DataFrame(columns=list(COVERAGE_COLUMNS))
    return _summary(pd.concat(parts, ignore_index=True), cells)


def external_coverage(conformal: Conformal, predictions: pd.DataFrame) -> pd.DataFrame:
    """Coverage of the sets of new patients on the labelled patients of the external cohorts.

    Returns
    -------
    Columns ``cohort`` and ``COVERAGE_COLUMNS``. There is no expected range: folds share training patients.
    """
    import pandas as pd

    external = predictions[predictions["role"] == "external"]
    tables = []
    for cohort, rows in external.groupby("cohort", sort=True):
        parts = [
            covered(task, rows[rows["task"] == name]).assign(repeat=0, fold=0)
            for name, task in conformal.tasks.items()
            if (rows["task"] == name).any()
        ]
        if parts and len(joined := pd.concat(parts, ignore_index=True)):
            table = _summary(joined, ())
            table.insert(0, "cohort", cohort)
            tables.append(table)
    columns = ["cohort", *COVERAGE_COLUMNS]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def covered(task: TaskConformal, rows: pd.DataFrame) -> pd.DataFrame:
    """Whether the set of each labelled patient holds the truth.

    Parameters
    ----------
    rows
        Rows of the predictions table of this task: scores of every fold model of the calibration.

    Returns
    -------
    One row per labelled patient: ``patient task kind level class`` (the true one), ``covered size single``. A survival
    time counts as covered if death or censoring came after the bound.
    """
    import pandas as pd

    truth = "time" if task.kind == "survival" else "target"
    rows = rows[rows[truth].notna()]
    if task.kind == "multiclass":
        rows = rows[rows.groupby("patient")["target"].transform("sum") > 0]
    columns = ["patient", "task", "kind", "level", "class", "covered", "size", "single"]
    if rows.empty:
        return pd.DataFrame(columns=columns)
    table = task.apply(rows)
    if task.classes:
        positive = rows[rows["target"] == 1].drop_duplicates("patient").set_index("patient")["class"]
        table["class"] = table["patient"].map(positive).fillna(task.classes[0]).astype(str)
        table["covered"] = [
            label in labels for label, labels in zip(table["class"], table["labels"], strict=True)
        ]
        table["size"] = table["labels"].map(len).astype(float)
        table["single"] = table["size"] == 1
    else:
        value = table["patient"].map(rows.drop_duplicates("patient").set_index("patient")[truth])
        table["class"], table["single"] = "", np.nan
        # the bound is the exponential of a logarithm: an equal time may lie a rounding below it
        slack = 1e-9 * (1 + value.abs())
        table["covered"] = (value >= table["low"] - slack) & (value <= table["high"] + slack)
        table["size"] = table["low"] if task.kind == "survival" else table["high"] - table["low"]
    return table[columns]


def clopper_pearson(covered: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact binomial interval of a share.

    Parameters
    ----------
    covered
        Number of successes; a mean over repeats need not be whole.
    n
        Number of patients.

    >>> [round(bound, 4) for bound in clopper_pearson(8, 10)]
    [0.4439, 0.9748]
    """
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, covered, n - covered + 1)) if covered > 0 else 0.0
    high = float(beta.ppf(1 - tail, covered + 1, n - covered)) if covered < n else 1.0
    return low, high


def expected_range(
    cells: Sequence[Calibrated], level: float, confidence: float = 0.95
) -> tuple[float, float]:
    """Where the coverage of exchangeable patients lies, see the module; NaN without patients.

    Parameters
    ----------
    cells
        Folds and classes that are calibrated on their own.
    level
        Level of the sets.
    confidence
        Probability of the range.
    """
    from scipy.stats import betabinom

    n = sum(cell.measured for cell in cells)
    if n == 0:
        return float("nan"), float("nan")
    missed = np.ones(1)
    for cell in cells:
        rank = int(np.floor((1 - level) * (cell.calibrating + 1) + 1e-9))
        if cell.measured and rank:  # with a rank of 0 nobody is ever missed
            counts = np.arange(cell.measured + 1)
            missed = np.convolve(
                missed, betabinom.pmf(counts, cell.measured, rank, cell.calibrating + 1 - rank)
            )
    reached = np.cumsum(missed)
    tail = (1 - confidence) / 2
    low, high = (int(np.searchsorted(reached, p - 1e-12)) for p in (tail, 1 - tail))
    return 1 - high / n, 1 - low / n


def trade_off(
    predictions: pd.DataFrame,
    *,
    levels: Iterable[float] = LEVELS,
    score: ClassScore = "lac",
    class_conditional: bool = True,
) -> pd.DataFrame:
    """What abstaining gains: accuracy among the patients whose set has one label, by level.

    From the inner validation patients alone, so that a level can be chosen by it and the test patients stay untouched.
    Each of them is compared with the other validation patients of the fold.

    Returns
    -------
    Columns ``TRADE_OFF_COLUMNS``; a row per classification task and level. ``n`` counts patients once per fold.
    """
    import pandas as pd

    from equipoise.platform.evaluation.predictions import kind_of

    records = []
    for task, rows in predictions.groupby("task", sort=True):
        kind = kind_of(rows)
        classes = class_names(rows, kind)
        if not classes:
            continue
        parts = [
            _others(table, len(classes), score, class_conditional)
            for _, table in labelled_folds(rows, kind, "val")
        ]
        parts = [part for part in parts if len(part[1])]
        if not parts:
            continue
        p, label = (np.concatenate(part) for part in zip(*parts, strict=True))
        for level in levels:
            inside = p > 1 - level + 1e-9
            single = inside.sum(axis=1) == 1
            right = inside[np.arange(len(label)), label]
            record = {"task": task, "level": level, "n": len(label), "decided": single.mean()}
            record["accuracy"] = right[single].mean() if single.any() else np.nan
            for name, c in (("sensitivity", 1), ("specificity", 0)):
                of_class = single & (label == c) & (kind == "binary")
                record[name] = right[of_class].mean() if of_class.any() else np.nan
            records.append(record | {"coverage": right.mean()})
    return pd.DataFrame(records, columns=list(TRADE_OFF_COLUMNS))


def _others(
    table: pd.DataFrame, classes: int, score: str, class_conditional: bool
) -> tuple[Floats, np.ndarray]:
    """``[n, C]`` p values of a fold's patients, each compared with the others, and their labels."""
    label = table["label"].to_numpy(int)
    values = class_nonconformity(table[[f"score_{c}" for c in range(classes)]].to_numpy(), score)
    own = values[np.arange(len(label)), label]
    p = np.zeros_like(values)
    for c in range(classes):
        reference = np.sort(own[label == c] if class_conditional else own)
        n = len(reference)
        above = n - np.searchsorted(reference, values[:, c], side="left")
        inside = label == c if class_conditional else np.ones(len(label), bool)  # is one of the reference
        above = above - (inside & (own >= values[:, c]))
        p[:, c] = (1 + above) / (n - inside + 1)
    return p, label


def _cells(task: TaskConformal, measured: pd.DataFrame) -> list[tuple[str, str, Calibrated]]:
    """Task, class and numbers of patients of a fold."""
    cells = []
    for group in task.groups:
        n = int((measured["class"] == group).sum()) if group else len(measured)
        cells.append((task.task, group, Calibrated(round(task.patients(group)), n)))
    return cells


def _summary(measured: pd.DataFrame, cells: Sequence[tuple[str, str, Calibrated]]) -> pd.DataFrame:
    """Rows of the coverage table."""
    import pandas as pd

    records = []
    for task, of_task in measured.groupby("task", sort=True):
        names = sorted(set(of_task["class"]))
        for name in ["", *(n for n in names if n)]:
            part = of_task[of_task["class"] == name] if name else of_task
            per_patient = part.groupby("patient")[["covered", "size", "single"]].mean()
            n, coverage = len(per_patient), float(per_patient["covered"].mean())
            low, high = clopper_pearson(coverage * n, n)
            own = [c for t, group, c in cells if t == task and (not name or group == name)]
            together = not own or sum(c.measured for c in own) != n
            level = float(part["level"].iloc[0])
            expected = (np.nan, np.nan) if together else expected_range(own, level)
            single = part[part["single"] == 1]
            records.append(
                {
                    "task": task,
                    "kind": part["kind"].iloc[0],
                    "class": name,
                    "level": level,
                    "n": n,
                    "coverage": coverage,
                    "low": low,
                    "high": high,
                    "expected_low": expected[0],
                    "expected_high": expected[1],
                    "size": float(per_patient["size"].mean()),
                    "single": float(per_patient["single"].mean()),
                    "single_right": float(single["covered"].mean()) if len(single) else np.nan,
                }
            )
    return pd.DataFrame(records, columns=list(COVERAGE_COLUMNS))

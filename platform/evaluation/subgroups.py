"""The main metric in subgroups of patients: by sex, stage, age, or any column of the clinical table.

Subgroups are small. Their patients are therefore compared in pairs within a fold and cohort, and all pairs count the
same, in place of a mean over folds that hold a few of them each. A group below ``evaluation.min_site`` labelled
patients (or ``min_site_events`` events, or as many of either class) gets no metric.

Whether a subgroup *differs* is another question than whether its interval contains something: ``p`` tests, on the scale
of the intervals, that all groups of a column have the same value (Cochran's Q, for the groups are different patients).
It is one test per column, task and data set, corrected for none of the others.

Sources: Cochran (1954) for Q; Wang et al. (2007), NEJM 357, for what reports of subgroups must say.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation import influence as influences
from equipoise.platform.evaluation import metrics
from equipoise.platform.evaluation.influence import Cell, CellMean, Influence
from equipoise.platform.evaluation.intervals import (
    AUROC_INFLATION,
    CONCORDANCE_INFLATION,
    FISHER,
    LOGIT,
    PEARSON_INFLATION,
    Inflation,
    Scale,
    influence_interval,
    wilson,
)
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.operating_points import decisions
from equipoise.platform.evaluation.params import EvaluationParams, split_comparison
from equipoise.platform.evaluation.pooled import identity, variance_factor
from equipoise.platform.evaluation.samples import Sample

Floats = NDArray[np.float64]

#: ``subgroup`` is the column or comparison, ``group`` its value; ``all`` patients stand first for comparison.
#: ``n_pos`` counts positives or events; of sensitivity and specificity, the patients who are decided right.
SUBGROUP_COLUMNS = (
    "role", "cohort", "task", "kind", "subgroup", "group", "metric", "value", "low", "high", "n", "n_pos", "p", "note",
)  # fmt: skip
EVERYBODY = "all"
MISSING = "not known"
#: Distinct numbers from which a column is cut at its median, and most values of a column of text.
MANY_NUMBERS, MOST_VALUES = 8, 20


def subgroup_values(columns: pd.DataFrame, subgroups: Sequence[str]) -> pd.DataFrame:
    """The group of every patient in every subgroup.

    Parameters
    ----------
    columns
        Text (NaN where it is not known) of the columns that subgroups name, indexed by patient.
    subgroups
        Columns, or comparisons such as ``AGE >= 70``.

    Returns
    -------
    A column of text per subgroup. A column of more than eight numbers is cut at its median.

    Raises
    ------
    DataError
        If a size is compared with text, or a column of text has more than twenty values.
    """
    return pd.DataFrame({text: _groups_of(columns, text) for text in subgroups}, index=columns.index)


def _groups_of(columns: pd.DataFrame, text: str) -> pd.Series:
    column, sign, value = split_comparison(text)
    values = columns[column]
    known = values.notna()
    numbers = pd.to_numeric(values.where(known), errors="coerce")
    where, groups = f"evaluation.subgroups, {text!r}", values.astype(object).where(known, MISSING)
    if sign in ("==", "!="):
        equal = values.astype(str) == value
        return _named(
            equal if sign == "==" else ~equal,
            known,
            f"{column} {sign} {value}",
            f"not {column} {sign} {value}",
        )
    if sign:
        if wrong := sorted(set(values[known & numbers.isna()]))[:3]:
            raise DataError(
                f"{column} is compared with {value}, but holds {', '.join(map(repr, wrong))}",
                where=where,
                fix=f"compare text with == or !=, for example '{column} == {wrong[0]}'",
            )
        compare = {">=": numbers.ge, "<=": numbers.le, ">": numbers.gt, "<": numbers.lt}[sign]
        others = {">=": "<", "<=": ">", ">": "<=", "<": ">="}[sign]
        return _named(compare(float(value)), known, f"{column} {sign} {value}", f"{column} {others} {value}")
    distinct = values[known].nunique()
    if numbers[known].notna().all() and distinct > MANY_NUMBERS:
        middle = float(numbers[known].median())
        return _named(numbers >= middle, known, f"{column} >= {middle:g}", f"{column} < {middle:g}")
    if distinct > MOST_VALUES:
        raise DataError(
            f"{column} has {distinct} different values; a subgroup needs patients in each",
            where=where,
            fix=f"compare it, for example '{column} == {values[known].iloc[0]}'",
        )
    return groups


def _named(chosen: pd.Series, known: pd.Series, yes: str, no: str) -> pd.Series:
    return pd.Series(np.where(known, np.where(chosen, yes, no), MISSING), index=known.index, dtype=object)


def subgroup_table(
    samples: Sequence[Sample], predictions: pd.DataFrame, values: pd.DataFrame, params: EvaluationParams
) -> pd.DataFrame:
    """Metrics of every subgroup, in the test folds and each external cohort.

    Parameters
    ----------
    samples
        Result of :func:`~equipoise.platform.evaluation.pooled.pooled_samples` of the predictions.
    predictions
        The predictions table, whose validation rows thresholds are chosen on.
    values
        Result of :func:`subgroup_values`; patients without a row are ``not known``.
    params
        Confidence, thresholds, smallest groups.

    Returns
    -------
    Columns ``SUBGROUP_COLUMNS``: the main metric, for binary tasks also sensitivity and specificity at the operating
    point of headlines. A group that is too small has NaN, and ``note`` says so.
    """
    lines: list[dict] = []
    for sample in samples:
        of_patient = values.reindex(pd.Index(sample.patients)).astype(object)
        of_patient = of_patient.where(of_patient.notna(), MISSING)
        decided = None
        if sample.kind == "binary":
            rows = predictions[predictions["task"] == sample.task]
            decided = decisions(rows, params.threshold, sample.role).reindex(pd.Index(sample.patients))
        for subgroup in of_patient:
            lines += _of_subgroup(sample, str(subgroup), of_patient[subgroup].to_numpy(str), decided, params)
    return pd.DataFrame(lines, columns=list(SUBGROUP_COLUMNS)).astype({"n": "Int64", "n_pos": "Int64"})


class _Part(NamedTuple):
    """Value, bounds, and the standard error on the scale of the interval."""

    value: float
    low: float
    high: float
    transformed: float
    error: float
    note: str


def _of_subgroup(
    sample: Sample,
    subgroup: str,
    group_of: NDArray[np.str_],
    decided: pd.DataFrame | None,
    params: EvaluationParams,
) -> Iterator[dict]:
    names = [EVERYBODY, *sorted(set(group_of) - {MISSING}), *sorted(set(group_of) & {MISSING})]
    base = {**identity(sample), "kind": sample.kind, "subgroup": subgroup}
    parts: dict[str, _Part] = {}
    inside = {name: np.ones(len(group_of), bool) if name == EVERYBODY else group_of == name for name in names}
    for name in names:
        parts[name] = _main_metric(sample, inside[name], params)
    p = heterogeneity(
        [(parts[n].transformed, parts[n].error) for n in names if n not in (EVERYBODY, MISSING)]
    )
    for name in names:
        part, cases = parts[name], _cases(sample, inside[name])
        yield base | {
            "group": name, "metric": PRIMARY[sample.kind], "value": part.value, "low": part.low, "high": part.high,
            "n": int(inside[name].sum()), "n_pos": cases, "p": p, "note": part.note,
        }  # fmt: skip
    for metric, truth in (("sensitivity", 1), ("specificity", 0)) if decided is not None else ():
        assert decided is not None
        for name in names:
            part = decided[inside[name] & decided["margin"].notna().to_numpy()]
            part = part[part["target"] == truth]
            right = int((part["positive"].astype(bool) == bool(truth)).sum())
            enough = len(part) >= params.min_site_events
            low, high = wilson(right, len(part), params.confidence, variance_factor(sample))
            kind = "positive" if truth else "negative"
            note = (
                ""
                if enough
                else f"{len(part)} {kind} patients; below {params.min_site_events} there is no metric"
            )
            nan = float("nan")
            yield base | {
                "group": name, "metric": metric, "value": right / len(part) if enough else nan,
                "low": low if enough else nan, "high": high if enough else nan,
                "n": len(part), "n_pos": right, "p": nan, "note": note,
            }  # fmt: skip


def heterogeneity(parts: Sequence[tuple[float, float]]) -> float:
    """p of Cochran's Q over (value, standard error) of different patients; NaN with fewer than two.

    >>> round(heterogeneity([(0.0, 1.0), (2.0, 1.0)]), 4)
    0.1573
    """
    known = np.array([part for part in parts if np.isfinite(part).all() and part[1] > 0])
    if len(known) < 2:
        return float("nan")
    value, weight = known[:, 0], known[:, 1] ** -2
    q = (weight * (value - (weight * value).sum() / weight.sum()) ** 2).sum()
    return float(chi2.sf(q, len(known) - 1))


def _cases(sample: Sample, inside: NDArray[np.bool_]) -> int | None:
    """Positives or events among the patients of a group."""
    if sample.kind not in ("binary", "survival"):
        return None
    found: set[int] = set()
    for group in sample.groups:
        truth = group.event if sample.kind == "survival" else group.target[:, 0]
        found |= set(group.patient[(truth == 1) & inside[group.patient]].tolist())
    return len(found)


_Compute = Callable[[Floats, Floats, Floats, Floats, NDArray[np.int64]], Influence]


def _jackknifed(value: Callable[..., Floats]) -> _Compute:
    """A metric of pairs within strata, with its leave-one-out jackknife."""

    def compute(
        target: Floats, score: Floats, time: Floats, event: Floats, strata: NDArray[np.int64]
    ) -> Influence:
        return influences.jackknife_influence(lambda w: value(target, score, w, strata), len(target))

    return compute


def _concordance(
    target: Floats, score: Floats, time: Floats, event: Floats, strata: NDArray[np.int64]
) -> Influence:
    return influences.concordance_influence(time, event, score, strata)


#: Kind of task → main metric of pairs within strata, its scale, and how much its variance grows over folds.
_METRICS: dict[str, tuple[_Compute, Scale, Inflation]] = {
    "binary": (_jackknifed(metrics.auroc), LOGIT, AUROC_INFLATION),
    "multiclass": (_jackknifed(metrics.auroc), LOGIT, AUROC_INFLATION),
    "regression": (_jackknifed(metrics.pearson), FISHER, PEARSON_INFLATION),
    "survival": (_concordance, LOGIT, CONCORDANCE_INFLATION),
}


def _main_metric(sample: Sample, inside: NDArray[np.bool_], params: EvaluationParams) -> _Part:
    nan, n = float("nan"), int(inside.sum())
    if reason := _too_small(sample, inside, params):
        return _Part(nan, nan, nan, nan, nan, reason)
    compute, scale, inflation = _METRICS[sample.kind]
    means = []
    for column in range(sample.groups[0].target.shape[1] if sample.kind == "multiclass" else 1):
        cells = [
            _cell(sample, repeat, column, inside, compute)
            for repeat in sorted({g.repeat for g in sample.groups})
        ]
        if any(np.isnan(cell.value) for cell in cells):
            what = f" of {sample.classes[column]}" if sample.kind == "multiclass" else ""
            return _Part(nan, nan, nan, nan, nan, f"not estimable: no pair of patients{what} within a fold")
        mean = CellMean.of(cells, len(inside))
        if mean is None:
            return _Part(nan, nan, nan, nan, nan, f"not estimable: too few of {n} patients")
        means.append(mean)
    average = CellMean.average(means)
    assert average is not None
    folds = len({group.fold for group in sample.groups})
    factor = 1.0 if sample.is_fixed or folds < 2 else 1 + inflation.models / (folds - 1)
    scaled = CellMean(
        average.value, average.by_repeat * np.sqrt(factor), average.repeat_means, average.fold_means, 1, 1
    )
    interval = influence_interval(scaled, params.confidence, scale, inflation, fixed=True)
    value = average.value
    error = float(np.sqrt(scaled.variance) * scale.slope(value))
    return _Part(value, interval.low, interval.high, scale.forward(value), error, interval.note)


def _too_small(sample: Sample, inside: NDArray[np.bool_], params: EvaluationParams) -> str:
    n, cases = int(inside.sum()), _cases(sample, inside)
    if n < params.min_site:
        return f"{n} labelled patients; groups below {params.min_site} get no metric"
    if cases is None:
        return ""
    what = "events" if sample.kind == "survival" else "positive patients"
    if cases < params.min_site_events:
        return f"{cases} {what}; groups below {params.min_site_events} get no metric"
    if sample.kind == "binary" and n - cases < params.min_site_events:
        return f"{n - cases} negative patients; groups below {params.min_site_events} get no metric"
    return ""


def _cell(sample: Sample, repeat: int, column: int, inside: NDArray[np.bool_], compute: _Compute) -> Cell:
    """The chosen patients of a repeat, whose pairs are compared within fold and stratum."""
    groups = [g for g in sample.groups if g.repeat == repeat]
    kept = [inside[g.patient] for g in groups]

    def joined(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        return np.concatenate([v[k] for v, k in zip(values, kept, strict=True)])

    width = 1 + max((int(g.strata.max(initial=0)) for g in groups if g.strata is not None), default=0)
    strata = joined(
        [
            i * width + (np.zeros(len(g.patient)) if g.strata is None else g.strata)
            for i, g in enumerate(groups)
        ]
    ).astype(np.int64)
    found = compute(
        joined([g.target[:, column] for g in groups]),
        joined([g.score[:, column] for g in groups]),
        joined([g.time for g in groups]),
        joined([g.event for g in groups]),
        strata,
    )
    patients = np.concatenate([g.patient[k] for g, k in zip(groups, kept, strict=True)])
    return Cell(float(found.value), np.asarray(found.influence, float), patients, repeat, 0)

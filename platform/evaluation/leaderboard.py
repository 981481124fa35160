"""A leaderboard: estimates of several candidates with their order, all pairs compared, and paired differences.

Every number is recomputed from the predictions, with the same parameters and the same seed for all candidates, so that
only their scores differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.metric_definitions import LOWER_IS_BETTER, PRIMARY
from equipoise.platform.evaluation.multiple_comparisons import AllPairs, Contrasts, compare_all
from equipoise.platform.evaluation.paired import (
    Candidate,
    EvaluatedMetric,
    MetricKey,
    contrasts_of,
    evaluate_candidate,
    paired_differences,
    pairwise,
    require_comparable,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL

#: Columns of the tidy estimates; ``rank`` is among the candidates, 1 the best, NaN for settings such as thresholds.
ESTIMATE_COLUMNS = (
    "method", "role", "cohort", "task", "kind", "class", "metric", "predictor",
    "value", "low", "high", "low_procedure", "high_procedure", "n", "rank", "estimand", "how", "note",
)  # fmt: skip

#: Columns of the values of single test folds.
FOLD_COLUMNS = ("method", "fold", "task", "metric", "value")


@dataclass(frozen=True)
class Leaderboard:
    """Results of several candidates on the same patients.

    Parameters
    ----------
    candidates
        In the order given.
    tasks
        Shared tasks with their kinds; ranks are computed over these.
    estimates
        Columns ``ESTIMATE_COLUMNS``.
    scores
        Test folds one by one, columns ``FOLD_COLUMNS``.
    mean_ranks
        Mean over the tasks of the rank in the primary metric on the test folds, best first: an order, not a test.
    pairs
        Task → all pairs of candidates in its primary metric on the test folds, corrected for each other and, jointly,
        for all tasks; tasks without an interval are missing.
    overall
        All pairs in the mean of the primary metrics over these tasks; None if there is no such task.
    differences
        Paired differences against the best and the baseline (``paired.DIFFERENCE_COLUMNS``).
    best, baseline
        Names of the references; the baseline is None if none was named.
    params
        Parameters of all estimates.
    """

    candidates: tuple[Candidate, ...]
    tasks: Mapping[str, str]
    estimates: pd.DataFrame = field(repr=False)
    scores: pd.DataFrame = field(repr=False)
    mean_ranks: pd.Series = field(repr=False)
    pairs: Mapping[str, AllPairs] = field(repr=False)
    overall: AllPairs | None = field(repr=False)
    differences: pd.DataFrame = field(repr=False)
    best: str
    baseline: str | None
    params: EvaluationParams

    @cached_property
    def order(self) -> list[str]:
        """Names of the candidates, the best mean rank first."""
        return [str(name) for name in self.mean_ranks.index]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per candidate: metadata, mean rank, then value, low, high and rank of each metric.

        ``may_be_best``, ``rank_low`` and ``rank_high``: whether the candidate cannot be excluded as the best in the
        mean over tasks, and the ranks that the comparison of all pairs leaves possible.

        Columns ``<role>/<cohort>/<task>/<metric>`` (``test/<task>/…`` over all cohorts), with ``/low``, ``/high``
        and ``/rank`` behind them.
        """
        metadata = pd.DataFrame([{"method": c.name, **c.metadata} for c in self.candidates]).set_index(
            "method"
        )
        wide = metadata.assign(mean_rank=self.mean_ranks)
        if self.overall is not None:
            index = list(self.overall.names)
            wide["may_be_best"] = pd.Series(self.overall.may_be_best, index).astype("boolean")
            wide["rank_low"] = pd.Series(self.overall.rank_low, index).astype("Int64")
            wide["rank_high"] = pd.Series(self.overall.rank_high, index).astype("Int64")
        whole_task = self.estimates[(self.estimates["class"] == "") & (self.estimates["predictor"] == MODEL)]
        columns: dict[str, pd.Series] = {}
        for (role, cohort, task, metric), rows in whole_task.groupby(
            ["role", "cohort", "task", "metric"], sort=False
        ):
            prefix = str(role) if cohort == ALL else f"{role}/{cohort}"
            values = rows.set_index("method")
            for suffix, column in (("", "value"), ("/low", "low"), ("/high", "high"), ("/rank", "rank")):
                columns[f"{prefix}/{task}/{metric}{suffix}"] = values[column]
        return wide.join(pd.DataFrame(columns)).loc[self.order].rename_axis("method").reset_index()


def compare(
    candidates: Sequence[Candidate],
    params: EvaluationParams | None = None,
    seed: int = 0,
    baseline: str | None = None,
    first_tasks: Sequence[str] = (),
) -> Leaderboard:
    """Evaluate candidates on the same patients and compare them with each other.

    Parameters
    ----------
    candidates
        Two or more, with distinct names.
    params
        Bootstrap, confidence and threshold rule, the same for all.
    seed
        Of the draws of all pairs, and of the bootstrap of silhouettes.
    baseline
        Name of a candidate that the others are compared with, in addition to the best.
    first_tasks
        Tasks that come first, in this order.

    Raises
    ------
    DataError
        If there are fewer than two, the baseline is not one of them, or they do not share patients, folds and labels.
    """
    params = params or EvaluationParams()
    names = [c.name for c in candidates]
    if len(names) < 2:
        raise DataError("a comparison needs two runs or more", where=", ".join(names))
    if baseline is not None and baseline not in names:
        raise DataError(f"there is no run {baseline!r}; runs: {', '.join(names)}", where="--baseline")
    shared = require_comparable(candidates)
    evaluated = {c.name: evaluate_candidate(c, params, seed) for c in candidates}
    kinds = {key[2]: metric.sample.kind for key, metric in evaluated[names[0]].items()}
    leading = [task for task in first_tasks if task in shared]
    tasks = {task: kinds[task] for task in dict.fromkeys([*leading, *shared]) if task in kinds}
    primary = {task: PRIMARY[kind] for task, kind in tasks.items()}
    estimates = _estimates(evaluated)
    mean_ranks = _mean_ranks(estimates, primary, names)
    best = str(mean_ranks.index[0])
    references = [best, *([baseline] if baseline is not None and baseline != best else [])]
    alpha = 1 - params.confidence
    pairs = pairwise(evaluated, alpha, seed)
    main = {task: ("test", ALL, task, "", metric, MODEL) for task, metric in primary.items()}
    return Leaderboard(
        candidates=tuple(candidates),
        tasks=tasks,
        estimates=estimates,
        scores=fold_scores(evaluated),
        mean_ranks=mean_ranks,
        pairs={task: pairs[key] for task, key in main.items() if key in pairs},
        overall=_overall(evaluated, list(main.values()), alpha, seed),
        differences=pd.concat(
            [paired_differences(evaluated, reference, params.confidence, pairs) for reference in references],
            ignore_index=True,
        ),
        best=best,
        baseline=baseline,
        params=params,
    )


def fold_scores(evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]]) -> pd.DataFrame:
    """The value of every metric of the task as a whole in each test fold, columns ``FOLD_COLUMNS``.

    The value of a fold in a multiclass task is the mean over its classes; NaN where a class is missing.
    """
    rows = []
    for name, metrics in evaluated.items():
        for (role, cohort, task, _, metric, _), one in metrics.items():
            sample, definition = one.sample, one.result.definition
            if role != "test" or cohort != ALL or definition is None or not definition.interval:
                continue
            for group in sample.groups:
                value = float("nan") if definition.undefined(group) else float(definition.value(group, None))
                rows.append((name, group.fold_name, task, metric, definition.class_name, value))
    table = pd.DataFrame(rows, columns=[*FOLD_COLUMNS[:-1], "class", "value"])
    # A fold is the mean of its cohorts that have a value, for each class.
    table = table.groupby([*FOLD_COLUMNS[:-1], "class"], sort=False)["value"].mean().reset_index()
    of_fold = table.groupby(list(FOLD_COLUMNS[:-1]), sort=False)["value"]
    return of_fold.agg(lambda values: values.mean(skipna=False)).reset_index()


def _estimates(evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]]) -> pd.DataFrame:
    rows = []
    for name, metrics in evaluated.items():
        for (role, cohort, task, cls, metric, predictor), one in metrics.items():
            result = one.result
            rows.append(
                (name, role, cohort, task, one.sample.kind, cls, metric, predictor, result.estimate.value,
                 result.interval.low, result.interval.high, result.interval.low_procedure,
                 result.interval.high_procedure, len(one.sample.strata), np.nan, result.interval.estimand,
                 result.interval.method, result.note)
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(ESTIMATE_COLUMNS))
    keys = ["role", "cohort", "task", "class", "metric", "predictor"]
    oriented = table["value"].where(~table["metric"].isin(LOWER_IS_BETTER), -table["value"])
    rank = oriented.groupby([table[key] for key in keys]).rank(ascending=False, method="average")
    return table.assign(rank=rank.where(table["metric"] != "threshold"))


def _mean_ranks(estimates: pd.DataFrame, primary: Mapping[str, str], names: Sequence[str]) -> pd.Series:
    """Mean rank over the tasks whose primary metric every candidate has, best first; NaN without such a task."""
    rows = estimates[
        (estimates["role"] == "test") & (estimates["cohort"] == ALL) & (estimates["class"] == "")
    ]
    rows = rows[(rows["predictor"] == MODEL) & (rows["metric"] == rows["task"].map(primary))]
    table = rows.pivot(index="task", columns="method", values="rank").reindex(columns=list(names))
    means = table.dropna().mean() if len(table.dropna()) else pd.Series(np.nan, index=list(names))
    return means.rename_axis("method").sort_values(kind="stable", na_position="last")


def _overall(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]],
    keys: Sequence[MetricKey],
    alpha: float,
    seed: int,
) -> AllPairs | None:
    """All pairs in the mean over the tasks that every candidate has."""
    found = [contrasts_of(evaluated, key) for key in keys]
    whole = [contrasts for names, contrasts in filter(None, found) if len(names) == len(evaluated)]
    if not whole:
        return None
    return compare_all(list(evaluated), {"mean": Contrasts.mean(whole)}, alpha, seed)["mean"]

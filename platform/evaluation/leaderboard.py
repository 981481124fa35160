"""A leaderboard: estimates of several candidates with ranks, critical difference, P(best) and paired differences.

Every number is recomputed from the predictions, with the same parameters and the same seed for all candidates, so that
only their scores differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import SCORE_COLUMNS, Ranking, best_shares, ranking
from equipoise.platform.evaluation.metric_definitions import LOWER_IS_BETTER, PRIMARY
from equipoise.platform.evaluation.paired import (
    Candidate,
    EvaluatedMetric,
    MetricKey,
    evaluate_candidate,
    paired_differences,
    require_comparable,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL

#: Columns of the tidy estimates; ``rank`` is among the candidates, 1 the best, NaN for settings such as thresholds.
ESTIMATE_COLUMNS = (
    "method", "role", "cohort", "task", "kind", "class", "metric", "predictor",
    "value", "low", "high", "n", "rank", "how", "note",
)  # fmt: skip


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
        Test folds one by one, columns ``comparison.SCORE_COLUMNS``.
    ranking
        Mean ranks over (task, test fold) blocks of the primary metrics; None if there is no complete block.
    shares
        P(best) and intervals of mean ranks (:func:`~equipoise.platform.evaluation.comparison.best_shares`).
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
    ranking: Ranking | None
    shares: pd.DataFrame = field(repr=False)
    differences: pd.DataFrame = field(repr=False)
    best: str
    baseline: str | None
    params: EvaluationParams

    @cached_property
    def order(self) -> list[str]:
        """Names of the candidates, the best mean rank first."""
        names = [c.name for c in self.candidates]
        return names if self.ranking is None else [str(n) for n in self.ranking.mean_ranks.index]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per candidate: metadata, mean rank, P(best), then value, low, high and rank of each metric.

        Columns ``<role>/<cohort>/<task>/<metric>`` (``test/<task>/…`` over all cohorts), with ``/low``, ``/high``
        and ``/rank`` behind them.
        """
        metadata = pd.DataFrame([{"method": c.name, **c.metadata} for c in self.candidates]).set_index(
            "method"
        )
        if self.ranking is not None:
            metadata["mean_rank"] = self.ranking.mean_ranks
        wide = metadata.join(self.shares)
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
        Seed of the bootstrap.
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
    scores = fold_scores(evaluated)
    primary = {task: PRIMARY[kind] for task, kind in tasks.items()}
    ranks = ranking(scores, primary)
    best = names[0] if ranks is None else str(ranks.mean_ranks.index[0])
    references = [best, *([baseline] if baseline is not None and baseline != best else [])]
    return Leaderboard(
        candidates=tuple(candidates),
        tasks=tasks,
        estimates=_estimates(evaluated),
        scores=scores,
        ranking=ranks,
        shares=_shares(evaluated, primary),
        differences=pd.concat(
            [paired_differences(evaluated, reference, params.confidence) for reference in references],
            ignore_index=True,
        ),
        best=best,
        baseline=baseline,
        params=params,
    )


def fold_scores(evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]]) -> pd.DataFrame:
    """The value of every metric of the task as a whole in each test fold, columns ``SCORE_COLUMNS``.

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
                rows.append((name, group.name, task, metric, value))
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    of_fold = table.groupby(list(SCORE_COLUMNS[:-1]), sort=False)["value"]
    return of_fold.agg(lambda values: values.mean(skipna=False)).reset_index()


def _estimates(evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]]) -> pd.DataFrame:
    rows = []
    for name, metrics in evaluated.items():
        for (role, cohort, task, cls, metric, predictor), one in metrics.items():
            result = one.result
            rows.append(
                (name, role, cohort, task, one.sample.kind, cls, metric, predictor, result.estimate.value,
                 result.interval.low, result.interval.high, len(one.sample.strata), np.nan,
                 result.interval.method, result.note)
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(ESTIMATE_COLUMNS))
    keys = ["role", "cohort", "task", "class", "metric", "predictor"]
    oriented = table["value"].where(~table["metric"].isin(LOWER_IS_BETTER), -table["value"])
    rank = oriented.groupby([table[key] for key in keys]).rank(ascending=False, method="average")
    return table.assign(rank=rank.where(table["metric"] != "threshold"))


def _shares(
    evaluated: Mapping[str, Mapping[MetricKey, EvaluatedMetric]], primary: Mapping[str, str]
) -> pd.DataFrame:
    """P(best) over the shared tasks whose primary metric has replicates in every run."""
    keys = [("test", ALL, task, "", metric, MODEL) for task, metric in primary.items()]
    usable = [k for k in keys if all(_replicates(m, k) is not None for m in evaluated.values())]
    if not usable:
        return pd.DataFrame(index=list(evaluated))
    drawn = {name: [_replicates(metrics, k) for k in usable] for name, metrics in evaluated.items()}
    return best_shares(drawn)  # type: ignore[arg-type]


def _replicates(metrics: Mapping[MetricKey, EvaluatedMetric], key: MetricKey) -> np.ndarray | None:
    one = metrics.get(key)
    drawn = None if one is None else one.result.estimate.replicates
    return drawn if drawn is None or key[4] not in LOWER_IS_BETTER else -drawn

"""A leaderboard: estimates of several contenders with ranks, critical difference, P(best) and paired differences.

Every number is computed anew from the predictions, with one set of parameters and one seed for all, so that
nothing differs between the contenders but their scores.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import SCORE_COLUMNS, Ranking, best_shares, ranking
from equipoise.platform.evaluation.measures import LOWER_IS_BETTER, PRIMARY
from equipoise.platform.evaluation.paired import (
    Contender,
    Judged,
    Key,
    judge,
    paired_differences,
    require_comparable,
)
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL

#: Columns of the tidy estimates; ``rank`` is among the contenders, 1 the best, NaN for what is no result.
ESTIMATE_COLUMNS = (
    "method", "role", "cohort", "task", "kind", "class", "metric", "predictor",
    "value", "low", "high", "n", "rank", "how", "note",
)  # fmt: skip


@dataclass(frozen=True)
class Leaderboard:
    """What is known about several contenders on the same patients.

    Parameters
    ----------
    contenders
        In the order given.
    tasks
        Shared tasks with their kinds; ranks are over these.
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
        What all estimates were made with.
    """

    contenders: tuple[Contender, ...]
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
        """Names of the contenders, the best mean rank first."""
        names = [c.name for c in self.contenders]
        return names if self.ranking is None else [str(n) for n in self.ranking.mean_ranks.index]

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row per contender: facts, mean rank, P(best), then value, low, high and rank of each metric.

        Columns ``<role>/<cohort>/<task>/<metric>`` (``test/<task>/…`` over all cohorts), with ``/low``, ``/high``
        and ``/rank`` behind them.
        """
        facts = pd.DataFrame([{"method": c.name, **c.facts} for c in self.contenders]).set_index("method")
        if self.ranking is not None:
            facts["mean_rank"] = self.ranking.mean_ranks
        wide = facts.join(self.shares)
        own = self.estimates[(self.estimates["class"] == "") & (self.estimates["predictor"] == MODEL)]
        columns: dict[str, pd.Series] = {}
        for (role, cohort, task, metric), rows in own.groupby(
            ["role", "cohort", "task", "metric"], sort=False
        ):
            place = str(role) if cohort == ALL else f"{role}/{cohort}"
            values = rows.set_index("method")
            for suffix, column in (("", "value"), ("/low", "low"), ("/high", "high"), ("/rank", "rank")):
                columns[f"{place}/{task}/{metric}{suffix}"] = values[column]
        return wide.join(pd.DataFrame(columns)).loc[self.order].rename_axis("method").reset_index()


def compare(
    contenders: Sequence[Contender],
    params: EvaluationParams | None = None,
    seed: int = 0,
    baseline: str | None = None,
    first_tasks: Sequence[str] = (),
) -> Leaderboard:
    """Judge contenders on the same patients and set them against each other.

    Parameters
    ----------
    contenders
        Two or more, with distinct names.
    params
        Bootstrap, confidence and threshold rule, the same for all.
    seed
        Of the bootstrap.
    baseline
        Name of a contender that the others are compared with, beside the best.
    first_tasks
        Tasks that lead, in this order.

    Raises
    ------
    DataError
        If there are fewer than two, the baseline is none of them, or they do not share patients, folds and labels.
    """
    params = params or EvaluationParams()
    names = [c.name for c in contenders]
    if len(names) < 2:
        raise DataError("a comparison needs two runs or more", where=", ".join(names))
    if baseline is not None and baseline not in names:
        raise DataError(f"there is no run {baseline!r}; runs: {', '.join(names)}", where="--baseline")
    shared = require_comparable(contenders)
    judged = {c.name: judge(c, params, seed) for c in contenders}
    kinds = {key[2]: one.sample.kind for key, one in judged[names[0]].items()}
    leading = [task for task in first_tasks if task in shared]
    tasks = {task: kinds[task] for task in dict.fromkeys([*leading, *shared]) if task in kinds}
    scores = fold_scores(judged)
    primary = {task: PRIMARY[kind] for task, kind in tasks.items()}
    found = ranking(scores, primary)
    best = names[0] if found is None else str(found.mean_ranks.index[0])
    references = [best, *([baseline] if baseline is not None and baseline != best else [])]
    return Leaderboard(
        contenders=tuple(contenders),
        tasks=tasks,
        estimates=_estimates(judged),
        scores=scores,
        ranking=found,
        shares=_shares(judged, primary),
        differences=pd.concat(
            [paired_differences(judged, reference, params.confidence) for reference in references],
            ignore_index=True,
        ),
        best=best,
        baseline=baseline,
        params=params,
    )


def fold_scores(judged: Mapping[str, Mapping[Key, Judged]]) -> pd.DataFrame:
    """Each test fold's own value of every metric of the task as a whole, columns ``SCORE_COLUMNS``.

    The value of a fold in a multiclass task is the mean over its classes; NaN where a class is missing.
    """
    rows = []
    for name, own in judged.items():
        for (role, cohort, task, _, metric, _), one in own.items():
            sample, measure = one.sample, one.result.measure
            if role != "test" or cohort != ALL or measure is None or not measure.interval:
                continue
            for group in sample.groups:
                value = float("nan") if measure.undefined(group) else float(measure.value(group, None))
                rows.append((name, group.name, task, metric, value))
    table = pd.DataFrame(rows, columns=list(SCORE_COLUMNS))
    of_fold = table.groupby(list(SCORE_COLUMNS[:-1]), sort=False)["value"]
    return of_fold.agg(lambda values: values.mean(skipna=False)).reset_index()


def _estimates(judged: Mapping[str, Mapping[Key, Judged]]) -> pd.DataFrame:
    rows = []
    for name, own in judged.items():
        for (role, cohort, task, cls, metric, predictor), one in own.items():
            result = one.result
            rows.append(
                (name, role, cohort, task, one.sample.kind, cls, metric, predictor, result.estimate.value,
                 result.interval.low, result.interval.high, len(one.sample.strata), np.nan,
                 result.interval.method, result.note)
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(ESTIMATE_COLUMNS))
    keys = ["role", "cohort", "task", "class", "metric", "predictor"]
    oriented = table["value"].where(~table["metric"].isin(LOWER_IS_BETTER), -table["value"])
    place = oriented.groupby([table[key] for key in keys]).rank(ascending=False, method="average")
    return table.assign(rank=place.where(table["metric"] != "threshold"))


def _shares(judged: Mapping[str, Mapping[Key, Judged]], primary: Mapping[str, str]) -> pd.DataFrame:
    """P(best) over the shared tasks whose primary metric has replicates in every run."""
    keys = [("test", ALL, task, "", metric, MODEL) for task, metric in primary.items()]
    usable = [k for k in keys if all(_replicates(own, k) is not None for own in judged.values())]
    if not usable:
        return pd.DataFrame(index=list(judged))
    drawn = {name: [_replicates(own, k) for k in usable] for name, own in judged.items()}
    return best_shares(drawn)  # type: ignore[arg-type]


def _replicates(own: Mapping[Key, Judged], key: Key) -> np.ndarray | None:
    one = own.get(key)
    drawn = None if one is None else one.result.estimate.replicates
    return drawn if drawn is None or key[4] not in LOWER_IS_BETTER else -drawn

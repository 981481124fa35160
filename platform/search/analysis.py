"""Analysis of a finished search: ranking of trials and methods, P(best), best so far, failures.

Everything here is a function of ``search/trials.parquet`` (:mod:`~equipoise.platform.search.trial_records`) alone, and
all of it is inner validation. The metric was maximised over the same folds that are shown, so the value of the winner
is biased upwards; only patients that the search never saw measure it without bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import SCORE_COLUMNS, Ranking, best_shares, ranking
from equipoise.platform.search.params import SCORES
from equipoise.platform.search.trial_records import FIXED_COLUMNS

PARAM = "param/"

#: The first metric of every kind of task, by which tasks are ranked.
LEADING_METRICS = tuple(dict.fromkeys(names[0] for names in SCORES.values()))

WEIGHTING, AGGREGATION = f"{PARAM}balancing.weighting", f"{PARAM}balancing.aggregation"

#: Draws of the bootstrap.
DRAWS = 2000


def read_table(path: Path) -> pd.DataFrame:
    """``trials.parquet``.

    Raises
    ------
    DataError
        If the file is missing, or is not a table of trials.
    """
    if not path.exists():
        raise DataError(
            "there is no table of trials yet", where=str(path), fix="run 'equipoise search' first"
        )
    table = pd.read_parquet(path)
    if lacking := [name for name in FIXED_COLUMNS if name not in table]:
        raise DataError(f"lacks the columns {', '.join(lacking)}", where=str(path))
    return table.sort_values("index", kind="stable", ignore_index=True)


def write_rankings(folder: Path, *, synthetic: bool) -> pd.DataFrame:
    """Write ``leaderboard.csv`` (a row per trial) and ``methods.csv`` (a row per balancing method, if searched).

    Parameters
    ----------
    folder
        ``search/`` of the run folder, with ``trials.parquet``.
    synthetic
        Recorded in every row.

    Returns
    -------
    The ranked trials.
    """
    table = read_table(folder / "trials.parquet")
    ranked = rank_trials(table)
    for name, written in (("leaderboard", ranked), ("methods", rank_methods(table, ranked))):
        if len(written):
            with atomic_path(folder / f"{name}.csv") as temporary:
                written.assign(synthetic=synthetic).to_csv(temporary, index=False)
    return ranked


def objective_name(table: pd.DataFrame) -> str:
    """The metric that was maximised: the column that equals ``objective``."""
    known = table[table["objective"].notna()]
    for name in (c for c in table if str(c).startswith("val/")):
        if len(known) and np.array_equal(known[name], known["objective"]):
            return str(name)
    return "objective"


def varied(table: pd.DataFrame) -> list[str]:
    """Parameters that have different values in different trials."""
    return [str(name) for name in table if str(name).startswith(PARAM) and table[name].nunique() > 1]


def method_of(table: pd.DataFrame) -> pd.Series:
    """``uncertainty+pcgrad`` of every trial; empty where the search leaves no choice."""
    if WEIGHTING not in table or AGGREGATION not in table:
        return pd.Series("", index=table.index)
    return (table[WEIGHTING] + "+" + table[AGGREGATION]).fillna("")


def fold_values(table: pd.DataFrame, name: str) -> np.ndarray:
    """Values of a metric, ``[trials, folds]``; NaN for folds that were not run."""
    count = int(table["folds"].max()) if len(table) else 0
    columns = [f"fold{k}/{name}" for k in range(count)]
    return table.reindex(columns=columns).to_numpy(float)


def rank_trials(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Trials from best to worst, then those without all folds.

    Columns ``rank`` (1 the best, NaN where folds are missing), ``name``, ``method``, ``status``, ``reason``,
    ``objective``, ``objective_se``, ``p_best``, ``p_top3``, ``rank_low``, ``rank_high``, the rest of the table.

    Parameters
    ----------
    table
        ``trials.parquet``.
    seed
        Seed of the bootstrap.
    """
    ranked = table["objective"].where(table["status"] == "ok").rank(ascending=False, method="min")
    shares = best_probabilities(table[table["status"] == "ok"], np.random.default_rng(seed))
    result = table.assign(rank=ranked, method=method_of(table)).join(shares, on="name")
    result = result.sort_values(["rank", "index"], kind="stable", na_position="last", ignore_index=True)
    first = ["rank", "name", "method", "status", "reason", "objective", "objective_se", *shares.columns]
    columns = [c for c in result if not str(c).startswith("fold") or c == "folds"]
    return result[[*first, *(c for c in columns if c not in first)]]


def best_probabilities(done: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """P(best) of finished trials, by name: ``p_best``, ``p_top3``, ``rank_low``, ``rank_high``; NaN for one fold.

    Bootstrap of residuals: the residuals of the values ``[trials, folds]`` after subtracting the means of trials and
    of folds are pooled over trials, because the spread of three folds alone is estimated poorly (a trial that leads
    in all three would be the best with certainty). Draws move every trial's mean by a residual times √(1/K + 1/(K -
    1)), the factor for K folds whose training parts overlap (Nadeau and Bengio 2003).
    """
    values_MK = fold_values(done, objective_name(done))
    values_MK = values_MK[:, ~np.isnan(values_MK).any(axis=0)]
    trials, folds = values_MK.shape
    if folds < 2 or trials < 2:
        columns = ["p_best", "p_top3", "rank_low", "rank_high"]
        return pd.DataFrame(np.nan, index=done["name"], columns=columns)
    means_M = values_MK.mean(1)
    residuals_MK = values_MK - means_M[:, None] - values_MK.mean(0) + values_MK.mean()
    freedom = np.sqrt(trials * folds / ((trials - 1) * (folds - 1)))
    factor = freedom * np.sqrt(1 / folds + 1 / (folds - 1))
    drawn_MR = means_M[:, None] + factor * rng.choice(residuals_MK.ravel(), (trials, DRAWS))
    return best_shares({str(name): [row] for name, row in zip(done["name"], drawn_MR, strict=True)})


def rank_methods(table: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """One row per method of balancing, the best median rank first; empty where methods were not searched.

    Parameters
    ----------
    table
        ``trials.parquet``.
    found
        Its :func:`rank_trials`.

    Returns
    -------
    Columns ``method``, ``trials`` and how many of them are ``ok``, ``failed`` and ``pruned``; ``rank_best``,
    ``rank_q1``, ``rank_median``, ``rank_q3``; ``objective_best``, ``objective_median``; ``p_best``, that of its trials
    together.
    """
    rows = []
    for method, group in ranked[methods_searched(ranked)].groupby("method", sort=True):
        done = group[group["status"] == "ok"]
        quartiles = done["rank"].quantile([0.25, 0.5, 0.75]).to_numpy()
        rows.append(
            {"method": method, "trials": len(group)}
            | {status: int((group["status"] == status).sum()) for status in ("ok", "failed", "pruned")}
            | {"rank_best": done["rank"].min()}
            | dict(zip(("rank_q1", "rank_median", "rank_q3"), quartiles, strict=True))
            | {"objective_best": done["objective"].max(), "objective_median": done["objective"].median()}
            | {"p_best": done["p_best"].sum(min_count=1)}
        )
    result = pd.DataFrame(rows)
    return (
        result.sort_values(["rank_median", "rank_best"], ignore_index=True)
        if len(result) > 1
        else result.iloc[:0]
    )


def methods_searched(trials: pd.DataFrame) -> pd.Series:
    """Trials with a method of balancing; none where all but the study as written (index 0) have the same."""
    searched = trials.loc[(trials["index"] > 0) & (trials["method"] != ""), "method"].nunique() > 1
    return (trials["method"] != "") & searched


def task_metrics(table: pd.DataFrame) -> dict[str, str]:
    """Task → the metric it is ranked by, of tasks that some trial has values of."""
    result = {}
    for name in (str(c) for c in table if str(c).startswith("val/")):
        _, _, rest = name.partition("/")
        task, slash, metric = rest.rpartition("/")
        if slash and metric in LEADING_METRICS and table[name].notna().any():
            result[task] = metric
    return result


def method_ranking(table: pd.DataFrame) -> Ranking | None:
    """Mean ranks of methods over (task, inner fold); None with fewer than two methods.

    In every block a method counts with the mean of its finished trials, not with the best of them, so that more trials
    are no advantage.
    """
    named = table.assign(method=method_of)
    done = named[(named["status"] == "ok") & methods_searched(named)]
    parts = []
    for task, metric in task_metrics(done).items():
        values_MK = fold_values(done, f"val/{task}/{metric}")
        for k in range(values_MK.shape[1]):
            rows = pd.DataFrame({"method": done["method"].to_numpy(), "value": values_MK[:, k]})
            rows = rows.groupby("method", sort=False)["value"].mean().reset_index()
            parts.append(rows.assign(fold=str(k), task=task, metric=metric)[list(SCORE_COLUMNS)])
    if not parts:
        return None
    return ranking(pd.concat(parts, ignore_index=True), task_metrics(done))


def anytime_curve(table: pd.DataFrame) -> pd.DataFrame:
    """The best objective after every trial, in the order in which they ended.

    Columns ``trials``, ``cpu_seconds`` (of all trials so far), ``elapsed_seconds`` (since the first began, with
    the pauses of an interrupted search), ``name``, ``status``, ``objective``, ``best``.
    """
    ended = pd.to_datetime(table["ended"], utc=True, errors="coerce")
    order = table.assign(at=ended).sort_values(["at", "index"], kind="stable", ignore_index=True)
    first = pd.to_datetime(table["started"], utc=True, errors="coerce").min()
    counted = order["objective"].where(order["status"] == "ok")
    return pd.DataFrame(
        {
            "trials": np.arange(1, len(order) + 1),
            "cpu_seconds": order["cpu_seconds"].cumsum(),
            "elapsed_seconds": (order["at"] - first).dt.total_seconds(),
            "name": order["name"],
            "status": order["status"],
            "objective": counted,
            "best": counted.cummax().ffill(),
        }
    )


def failures(table: pd.DataFrame) -> pd.DataFrame:
    """Trials that failed: ``name``, ``method``, ``folds`` they finished, ``cpu_seconds`` used, ``reason``."""
    lost = table[table["status"] == "failed"].assign(method=method_of)
    return lost[["name", "method", "folds", "cpu_seconds", "reason"]].reset_index(drop=True)


def values_text(row: Mapping[str, Any], names: list[str]) -> str:
    """``lr 0.001, dropout 0.2``: settings of a trial as text, without those that it does not have."""
    parts = []
    for name in names:
        value = row[name]
        if value is not None and value == value and name not in (WEIGHTING, AGGREGATION):
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            parts.append(f"{name.removeprefix(PARAM).removeprefix('training.')} {shown}")
    return ", ".join(parts)

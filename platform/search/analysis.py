"""Analysis of a finished search: ranking of trials and methods, which may be the best, failures.

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
from equipoise.platform.evaluation.multiple_comparisons import Contrasts, compare_all
from equipoise.platform.search.params import SCORES
from equipoise.platform.search.trial_records import FIXED_COLUMNS

PARAM = "param/"

#: The first metric of every kind of task, by which tasks are ranked.
LEADING_METRICS = tuple(dict.fromkeys(names[0] for names in SCORES.values()))

WEIGHTING, AGGREGATION = f"{PARAM}balancing.weighting", f"{PARAM}balancing.aggregation"

STRATEGY = f"{PARAM}federation.strategy"

#: What is ranked as a method, by name of the part that it plays → column of :func:`rank_trials`.
METHOD_PARTS = {"balancing": "method", "strategy": STRATEGY}

#: Draws of the comparison of all trials, and fewer where there are so many trials that pairs take long.
DRAWS, FEWER_DRAWS, MANY_TRIALS = 2000, 500, 200


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
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as broken:
        raise DataError(f"not a readable Parquet file: {broken}", where=str(path)) from broken
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
    ``objective``, ``objective_se``, ``may_be_best``, ``rank_low``, ``rank_high``, the rest of the table.

    Parameters
    ----------
    table
        ``trials.parquet``.
    seed
        Of the draws.
    """
    ranked = table["objective"].where(table["status"] == "ok").rank(ascending=False, method="min")
    possible = possible_ranks(table[table["status"] == "ok"], seed)
    result = table.assign(rank=ranked, method=method_of(table)).join(possible, on="name")
    result = result.sort_values(["rank", "index"], kind="stable", na_position="last", ignore_index=True)
    first = ["rank", "name", "method", "status", "reason", "objective", "objective_se", *possible.columns]
    columns = [c for c in result if not str(c).startswith("fold") or c == "folds"]
    return result[[*first, *(c for c in columns if c not in first)]]


def possible_ranks(done: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """What the folds leave possible, by name: ``may_be_best``, ``rank_low``, ``rank_high``; missing for one fold.

    All pairs of trials are compared at once (:mod:`~equipoise.platform.evaluation.multiple_comparisons`). The error
    of a trial's mean is pooled over trials, because the spread of three folds alone is estimated poorly: the variance
    of the residuals of ``[trials, folds]`` after the means of trials and of folds, times 1 / K + 1 / (K - 1), the
    factor for K folds whose training parts overlap (Nadeau and Bengio 2003).
    """
    values_MK = fold_values(done, objective_name(done))
    values_MK = values_MK[:, ~np.isnan(values_MK).any(axis=0)]
    trials, folds = values_MK.shape
    index = pd.Index(done["name"].astype(str), name="name")
    if folds < 2 or trials < 2:
        nothing = {"may_be_best": "boolean", "rank_low": "Int64", "rank_high": "Int64"}
        return pd.DataFrame(
            {name: pd.array([pd.NA] * len(index), kind) for name, kind in nothing.items()}, index
        )
    means_M = values_MK.mean(1)
    residuals_MK = values_MK - means_M[:, None] - values_MK.mean(0) + values_MK.mean()
    freedom = (trials - 1) * (folds - 1)
    error = np.sqrt((residuals_MK**2).sum() / freedom * (1 / folds + 1 / (folds - 1)))
    contrasts = Contrasts(means_M, error * np.eye(trials), tuple(range(trials)), float(freedom))
    draws = DRAWS if trials <= MANY_TRIALS else FEWER_DRAWS
    pairs = compare_all(list(index), {"objective": contrasts}, seed=seed, draws=draws)["objective"]
    return pd.DataFrame(
        {
            "may_be_best": pd.array(pairs.may_be_best, "boolean"),
            "rank_low": pd.array(pairs.rank_low, "Int64"),
            "rank_high": pd.array(pairs.rank_high, "Int64"),
        },
        index,
    )


def rank_methods(table: pd.DataFrame, ranked: pd.DataFrame) -> pd.DataFrame:
    """One row per method of balancing and per strategy of federation, the best median rank first.

    Methods and strategies of a federated search are ranked among the same trials, so that one leaderboard has both;
    empty where neither was searched.

    Parameters
    ----------
    table
        ``trials.parquet``.
    ranked
        Its :func:`rank_trials`.

    Returns
    -------
    Columns ``part`` (``balancing`` or ``strategy``), ``method``, ``trials`` and how many of them are ``ok``, ``failed``
    and ``pruned``; ``rank_best``, ``rank_q1``, ``rank_median``, ``rank_q3``; ``objective_best``, ``objective_median``;
    ``may_be_best``, the number of its trials that cannot be excluded as the best.
    """
    rows = []
    for part, column in METHOD_PARTS.items():
        if column not in ranked:  # a search without a federation
            continue
        for method, group in ranked[methods_searched(ranked, column)].groupby(column, sort=True):
            done = group[group["status"] == "ok"]
            quartiles = done["rank"].quantile([0.25, 0.5, 0.75]).to_numpy()
            rows.append(
                {"part": part, "method": method, "trials": len(group)}
                | {status: int((group["status"] == status).sum()) for status in ("ok", "failed", "pruned")}
                | {"rank_best": done["rank"].min()}
                | dict(zip(("rank_q1", "rank_median", "rank_q3"), quartiles, strict=True))
                | {"objective_best": done["objective"].max(), "objective_median": done["objective"].median()}
                | {"may_be_best": done["may_be_best"].sum(min_count=1)}
            )
    result = pd.DataFrame(rows)
    if len(result) < 2:
        return result.iloc[:0]
    return result.sort_values(["rank_median", "rank_best"], kind="stable", ignore_index=True)


def methods_searched(trials: pd.DataFrame, column: str = "method") -> pd.Series:
    """Trials with a method of a kind; none where all but the study as written (index 0) have the same."""
    named = trials[column].notna() & (trials[column] != "")
    return named & (trials.loc[(trials["index"] > 0) & named, column].nunique() > 1)


def task_metrics(table: pd.DataFrame) -> dict[str, str]:
    """Task → the metric it is ranked by, of tasks that some trial has values of."""
    result = {}
    for name in (str(c) for c in table if str(c).startswith("val/")):
        _, _, rest = name.partition("/")
        task, slash, metric = rest.rpartition("/")
        if slash and metric in LEADING_METRICS and table[name].notna().any():
            result[task] = metric
    return result


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
            parts.append(f"{setting_name(name)} {setting_text(value)}")
    return ", ".join(parts)


def setting_name(column: str) -> str:
    """``lr`` of ``param/training.lr``, ``fedprox.mu`` of ``param/federation.fedprox.mu``: without the section.

    Loss weights keep theirs (``loss_weights.MSI``), and the kind of model is ``model``.
    """
    name = column.removeprefix(PARAM)
    section, _, rest = name.partition(".")
    if name == "model.kind":
        return section
    return rest if section in ("training", "balancing", "federation", "model") else name


def setting_text(value: Any) -> str:
    """A value as text; a dash for a setting that a trial does not have."""
    if value is None or value != value:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)

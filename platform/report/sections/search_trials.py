"""Tables of the best trials of a search: their results, and their settings in columns."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Table
from equipoise.platform.report.formatting import label, listed, number, plural
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Download
from equipoise.platform.search.analysis import (
    AGGREGATION,
    PARAM,
    STRATEGY,
    WEIGHTING,
    setting_name,
    setting_text,
    task_metrics,
    varied,
)
from equipoise.platform.search.importance import Importance
from equipoise.platform.search.params import MEAN

#: A dash at which no line breaks.
_JOINT = "\u2060–\u2060"
#: Settings that have a column; the file to download has all of them.
_MOST_SETTINGS = 10


def trial_tables(
    run: RunFiles,
    table: pd.DataFrame,
    trials: pd.DataFrame,
    metric: str,
    chosen: str,
    most: int,
    importances: Importance,
) -> list[Block]:
    """Results of the best trials and of the study as written, then their settings, a column each."""
    known_tasks = task_metrics(table)
    order = [task.name for task in run.tasks if task.name in known_tasks] or list(known_tasks)
    tasks = {task: f"val/{task}/{known_tasks[task]}" for task in order}
    done = trials[trials["rank"].notna()]
    shown = done[(done["rank"] <= most) | (done["index"] == 0) | (done["name"] == chosen)]
    if shown.empty:
        return []
    rows: list[list[str | Cell]] = []
    for row in shown.to_dict("records"):
        marks = ["chosen"] * (row["name"] == chosen) + ["the study as written"] * (row["index"] == 0)
        known = pd.notna(row["may_be_best"])
        rows.append(
            [
                f"{row['rank']:g}",
                Cell(row["name"], note=", ".join(marks)),
                spread_text(row),
                Cell(
                    ("yes" if row["may_be_best"] else "no") if known else "–",
                    note=_ranks(row["rank_low"], row["rank_high"]) if known else "",
                ),
                *(number(row[name]) for name in tasks.values()),
                number(row["cpu_seconds"], 1),
            ]
        )
    prefix = "SYNTHETIC-" if run.synthetic else ""
    columns = ["", "Trial", f"{metric_text(metric)[:1].upper()}{metric_text(metric)[1:]}", "May be the best"]
    columns += [f"{task}, {label(name.rpartition('/')[2])}" for task, name in tasks.items()]
    folds = int(table["folds"].max())
    mean = _mean_text(metric, {task: known_tasks[task] for task in order})
    results = Table(
        [*columns, "CPU s"],
        rows,
        caption=f"The best {min(most, len(done))} of {plural(len(done), 'finished trial')}: mean ± standard error "
        f"over {plural(folds, 'inner fold')}.{mean} A trial may be the best if no other "
        "trial is better than it at the 5 % level, in a comparison of all pairs at once that pools the error of trials "
        "and folds and widens it for overlapping training parts; the ranks are those that this comparison leaves "
        "possible. The chosen trial was chosen by these values, which are therefore too optimistic for it.",
        numeric=frozenset([0, 2, *range(4, len(columns) + 1)]),
        download=Download(f"{prefix}search-leaderboard.csv", trials),
    )
    settings = _settings_table(table, shown, importances)
    return [results, *([settings] if settings else [])]


def _ranks(low: int, high: int) -> str:
    return f"rank {low:g}" if low == high else f"rank {low:g}{_JOINT}{high:g}"


def _mean_text(metric: str, metrics: Mapping[str, str]) -> str:
    """What the mean over tasks is a mean of; empty where another metric is maximised."""
    if metric != MEAN:
        return ""
    tasks_of: dict[str, list[str]] = {}
    for task, name in metrics.items():
        tasks_of.setdefault(name, []).append(task)
    of_task = "; ".join(f"{label(name)} of {listed(tasks, 12)}" for name, tasks in tasks_of.items())
    text = f" The mean over tasks is that of their first metrics ({of_task})"
    if "pearson" in metrics.values():
        text += ", with a correlation r counted as (r + 1) / 2, so that each runs from 0 to 1"
    return f"{text}."


def _settings_table(table: pd.DataFrame, shown: pd.DataFrame, importances: Importance) -> Table | None:
    """Settings that differ between trials, the most important first."""
    names = [name for name in varied(table) if name not in (WEIGHTING, AGGREGATION)]
    names = [name for name in names if shown[name].notna().any()]
    if importances.reason:  # settings that most trials have come first
        names.sort(key=lambda name: -int(shown[name].notna().sum()))
    names = sorted(by_importance(names, importances), key=lambda name: name != STRATEGY)
    more, names = len(names) - _MOST_SETTINGS, names[:_MOST_SETTINGS]
    balancing = shown["method"].nunique() > 1
    if not names and not balancing:
        return None
    rows: list[list[str | Cell]] = [
        [
            f"{row['index']:03d}",
            *[str(row["method"])] * balancing,
            *(setting_text(row[name]) for name in names),
        ]
        for row in shown.to_dict("records")
    ]
    columns = ["Trial", *["Balancing"] * balancing, *(setting_name(name) for name in names)]
    caption = (
        "Settings that differ between trials, by the number of the trial; a dash: it has no such setting."
    )
    if more > 0:
        caption += (
            f" {plural(more, 'more setting')} of less importance can be downloaded with the table above."
        )
    numeric = {k for k, name in enumerate(names, 1 + balancing) if pd.api.types.is_numeric_dtype(shown[name])}
    return Table(columns, rows, caption, numeric=frozenset(numeric))


def by_importance(names: Sequence[str], importances: Importance) -> list[str]:
    """Columns of parameters, the most important first; in their own order where importance is unknown."""
    if importances.reason:
        return list(names)
    rank = {name: k for k, name in enumerate(importances.table["parameter"])}
    return sorted(names, key=lambda name: rank.get(name.removeprefix(PARAM), len(rank)))


def metric_text(name: str) -> str:
    """``val/MSI/auroc`` → "AUROC of MSI"; ``val/mean`` → "mean over tasks"."""
    task, slash, metric = name.removeprefix("val/").rpartition("/")
    if slash:
        return f"{label(metric)} of {task}"
    return "mean over tasks" if name == "val/mean" else name


def spread_text(row: Any) -> str:
    """``0.784 ± 0.012``."""
    if not math.isfinite(row["objective_se"]):
        return number(row["objective"])
    return f"{number(row['objective'])} ± {number(row['objective_se'])}"

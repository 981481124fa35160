"""Search: trials and their results, uncertainty of the ranking, and results on patients that no trial has seen."""

import json
import math
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.comparison import why_no_ranking
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Notice, Section, Table, Text
from equipoise.platform.report.entries import SearchSectionParams
from equipoise.platform.report.formatting import (
    count,
    interval,
    label,
    listed,
    number,
    p_value,
    plural,
)
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.search_figures import (
    best_over_time,
    best_over_trials,
    importance_figure,
    parallel_coordinates,
    ranks_of_methods,
)
from equipoise.platform.report.style import Download
from equipoise.platform.search.analysis import (
    PARAM,
    anytime_curve,
    failures,
    objective_name,
    rank_methods,
    rank_trials,
    read_table,
    task_metrics,
    values_text,
    varied,
)
from equipoise.platform.search.importance import Importance, importance

#: A dash at which no line breaks.
_JOINT = "\u2060–\u2060"


def build(run: RunFiles, params: SearchSectionParams) -> Section | None:
    """The whole section from ``search/trials.parquet``; None for a run without a search."""
    path = run.folder / "search" / "trials.parquet"
    if not path.exists():
        return None
    try:
        table = read_table(path)
    except (DataError, OSError, ValueError) as broken:
        notice = Notice("search/trials.parquet cannot be read", [str(broken)], tone="bad")
        return Section("Search", "Trials and their results.", [notice])
    trials, metric = rank_trials(table), objective_name(table)
    importances = importance(table)
    chosen, prefix = _chosen(run.folder, trials), "SYNTHETIC-" if run.synthetic else ""
    blocks: list[Block] = [_trial_table(run, table, trials, metric, chosen, params.trials)]
    blocks += _unseen(run.folder, prefix)
    methods = rank_methods(table, trials)
    blocks += _settings(table, trials, metric, importances, [str(m) for m in methods.get("method", ())])
    blocks += _methods(methods, prefix)
    blocks += [Heading("Course of the search")]
    curve = anytime_curve(table)
    figures = [best_over_trials(curve, metric_text(metric)), best_over_time(curve, metric_text(metric))]
    blocks += [Figures([f for f in figures if f is not None])] if figures[0] else []
    blocks += _failures(table)
    return Section("Search", _sentence(trials, metric, chosen), blocks)


def search_sentence(run: RunFiles) -> str:
    """What the search chose, and what that is worth on patients that no trial saw; empty without a search.

    The results of the other sections are those of the study as written, whatever the search chose.
    """
    path = run.folder / "search" / "trials.parquet"
    if not path.exists():
        return ""
    try:
        table = read_table(path)
    except (DataError, OSError, ValueError):
        return ""  # the section on the search says so
    done = table[table["status"] == "ok"].sort_values(["objective", "index"], ascending=[False, True])
    if done.empty:
        return f"A search of {plural(len(table), 'trial')} has no finished trial."
    chosen = _chosen(run.folder, done.assign(rank=range(1, len(done) + 1)))
    start = f"A search of {plural(len(table), 'trial')} chose"
    if int(done.set_index("name").loc[chosen, "index"]) == 0:
        return f"{start} the study as written."
    start += f" {chosen}; the results above are those of the study as written."
    if not (run.folder / "search" / "test.json").exists():
        return f"{start} The choice has not been tested on patients that no trial saw."
    measured = json.loads((run.folder / "search" / "test.json").read_text(encoding="utf-8"))
    main = run.tasks[0].name if run.tasks else ""
    parts = []
    for d in measured["differences"]:
        if d["task"] == main:
            low, high = _nan(d["low"]), _nan(d["high"])
            said = "better" if low > 0 else "worse" if high < 0 else "not told apart"
            by = f"{label(d['metric'])} {_signed(_nan(d['difference']))}, {interval(low, high, 2)}"
            parts.append(f"{said} on {d['cohort']} ({by})")
    if not parts:
        return start
    return (
        f"{start} On patients that no trial saw, the chosen trial against the study as written for {main}: "
        + (f"{listed(parts)}.")
    )


def _signed(value: float) -> str:
    return f"+{number(value, 2)}" if value > 0 else number(value, 2)


def metric_text(name: str) -> str:
    """``val/MSI/auroc`` → "AUROC of MSI"; ``val/mean`` → "mean over tasks"."""
    task, slash, metric = name.removeprefix("val/").rpartition("/")
    if slash:
        return f"{label(metric)} of {task}"
    return "mean over tasks" if name == "val/mean" else name


def _chosen(folder: Path, trials: pd.DataFrame) -> str:
    """The trial that was written as ``best.yaml``; the best one if there is no such file."""
    path = folder / "search" / "best.json"
    names = [str(name) for name in trials.loc[trials["rank"].notna(), "name"]]
    if path.exists():
        name = str(json.loads(path.read_text(encoding="utf-8")).get("trial", ""))
        if name in names:
            return name
    return names[0] if names else ""


def _sentence(trials: pd.DataFrame, metric: str, chosen: str) -> str:
    if not chosen:
        return f"None of {plural(len(trials), 'trial')} finished all its folds."
    rows = trials.set_index("name")
    best = rows.loc[chosen]
    text = f"Of {plural(len(trials), 'trial')}, {chosen} was chosen: {metric_text(metric)} {_spread(best)} on inner "
    text += "validation"
    first = trials[trials["index"] == 0]
    if len(first) and first.iloc[0]["name"] == chosen:
        return f"{text}. It is the study as written."
    if len(first) and math.isfinite(first.iloc[0]["objective"]):
        text += f"; the study as written has {_spread(first.iloc[0])}"
    if (may := trials["may_be_best"].dropna()).size:
        text += f". {plural(int(may.sum()), 'trial')} cannot be excluded as the best"
    return f"{text}."


def _spread(row: Any) -> str:
    """``0.784 ± 0.012``."""
    if not math.isfinite(row["objective_se"]):
        return number(row["objective"])
    return f"{number(row['objective'])} ± {number(row['objective_se'])}"


def _trial_table(
    run: RunFiles, table: pd.DataFrame, trials: pd.DataFrame, metric: str, chosen: str, most: int
) -> Table:
    """The best trials and the study as written."""
    known_tasks = task_metrics(table)
    order = [task.name for task in run.tasks if task.name in known_tasks] or list(known_tasks)
    tasks = {task: f"val/{task}/{known_tasks[task]}" for task in order}
    names = varied(table)
    done = trials[trials["rank"].notna()]
    shown = done[(done["rank"] <= most) | (done["index"] == 0) | (done["name"] == chosen)]
    rows: list[list[str | Cell]] = []
    for row in shown.to_dict("records"):
        marks = ["chosen"] * (row["name"] == chosen) + ["the study as written"] * (row["index"] == 0)
        known = pd.notna(row["may_be_best"])
        rows.append(
            [
                f"{row['rank']:g}",
                Cell(row["name"] + (f" ({', '.join(marks)})" if marks else ""), note=values_text(row, names)),
                _spread(row),
                Cell(
                    ("yes" if row["may_be_best"] else "no") if known else "–",
                    note=f"rank {row['rank_low']:g}{_JOINT}{row['rank_high']:g}" if known else "",
                ),
                *(number(row[name]) for name in tasks.values()),
                number(row["cpu_seconds"], 1),
            ]
        )
    prefix = "SYNTHETIC-" if run.synthetic else ""
    columns = ["", "Trial", f"{metric_text(metric)[:1].upper()}{metric_text(metric)[1:]}", "May be the best"]
    columns += [f"{task}, {label(name.rpartition('/')[2])}" for task, name in tasks.items()]
    folds = int(table["folds"].max())
    return Table(
        [*columns, "CPU s"],
        rows,
        caption=f"The best {min(most, len(done))} of {plural(len(done), 'finished trial')}: mean ± standard error "
        f"over {plural(folds, 'inner fold')}. May be the best, and the ranks that are possible: all pairs of trials "
        "at the 5 % level, with the error of trial and fold pooled and widened for overlapping training parts. The "
        "winner was chosen by these values, which are therefore too optimistic for it.",
        numeric=frozenset([0, 2, *range(4, len(columns) + 1)]),
        download=Download(f"{prefix}search-leaderboard.csv", trials),
    )


def _unseen(folder: Path, prefix: str) -> list[Block]:
    """Winner and study as written on inner validation, hold-out and external cohorts."""
    path = folder / "search" / "test.json"
    blocks: list[Block] = [Heading("Patients that no trial has seen")]
    if not path.exists():
        text = (
            "Not measured yet. The winner was chosen on inner validation, which is too optimistic for it: `equipoise "
            "search --test` trains it and the study as written, and evaluates both on hold-out and external cohorts."
        )
        return [*blocks, Text(text)]
    measured = json.loads(path.read_text(encoding="utf-8"))
    rows = pd.DataFrame(measured["rows"])
    names = list(dict.fromkeys([measured["winner"], measured["default"]]))
    titles = [f"{n} ({'winner' if n == measured['winner'] else 'as written'})" for n in names]
    differences = {(d["cohort"], d["task"]): d for d in measured["differences"]}
    lines: list[list[str | Cell]] = []
    for (part, task, metric), group in rows.groupby(["part", "task", "metric"], sort=False):
        by_name = group.set_index("who").to_dict("index")
        cells: list[str | Cell] = [_estimate(by_name.get(name)) for name in names]
        d = differences.get((part, task))
        cells.append("–" if d is None else Cell(_difference(d), note=p_value(_nan(d["p"]))))
        lines.append([str(part), f"{task}, {label(str(metric))}", *cells, count(group["n"].max())])
    blocks.append(
        Table(
            ["Patients", "Task and metric", *titles, "Difference", "n"],
            lines,
            caption="Intervals: two standard errors over folds for inner validation, those of the evaluation "
            "elsewhere; differences are paired, winner minus study as written.",
            numeric=frozenset(range(2, 4 + len(names))),
            download=Download(f"{prefix}search-unseen.csv", rows),
        )
    )
    if measured["looks"] > 1:
        reuse = f"{count(measured['looks'])} winners were evaluated on these patients, so the choice may depend on them"
        blocks.append(Notice("Test patients used more than once", [reuse]))
    return blocks


def _estimate(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    value = number(_nan(row["value"]))
    bounds = interval(_nan(row["low"]), _nan(row["high"]))
    return f"{value} ({bounds})" if math.isfinite(_nan(row["low"])) else value


def _difference(row: dict[str, Any]) -> str:
    return f"{number(_nan(row['difference']))} ({interval(_nan(row['low']), _nan(row['high']))})"


def _nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _settings(
    table: pd.DataFrame, trials: pd.DataFrame, metric: str, importances: Importance, methods: list[str]
) -> list[Block]:
    """Parallel coordinates, the most important settings first; importance of settings, and ranks of methods."""
    names = varied(table)
    if not importances.reason:
        rank = {name: k for k, name in enumerate(importances.table["parameter"])}
        names = sorted(names, key=lambda name: rank.get(name.removeprefix(PARAM), len(rank)))
    lines = parallel_coordinates(trials, names, metric_text(metric))
    blocks: list[Block] = [Heading("Settings")]
    blocks += [Figures([lines])] if lines else []
    bars = importance_figure(importances)
    figures = [f for f in (bars, ranks_of_methods(trials, methods)) if f is not None]
    blocks += [Figures(figures)] if figures else []
    if bars is None:
        blocks.append(Text(f"Importance of settings is not shown: {importances.reason}.", tone="muted"))
    elif importances.r2 <= 0:
        reason = "the random forest predicts held-out trials no better than their mean, so importances have no meaning"
        blocks.append(Notice("Importances are not reliable", [reason]))
    return blocks if len(blocks) > 1 else []


def _methods(methods: pd.DataFrame, prefix: str) -> list[Block]:
    """Balancing methods: their table, and why there is no test between them."""
    if methods.empty:
        return []
    rows: list[list[str | Cell]] = [
        [
            m["method"],
            count(m["trials"]),
            number(m["rank_median"], 1),
            interval(m["rank_q1"], m["rank_q3"], 1),
            number(m["objective_best"]),
            number(m["objective_median"]),
            "–" if pd.isna(m["may_be_best"]) else count(m["may_be_best"]),
        ]
        for m in methods.to_dict("records")
    ]
    method_table = Table(
        ["Method", "Trials", "Median rank", "Middle half", "Best", "Median", "May be the best"],
        rows,
        caption="Balancing methods by the ranks of their finished trials, and how many of their trials cannot be "
        "excluded as the best: a method with more trials has more chances.",
        numeric=frozenset(range(1, 7)),
        download=Download(f"{prefix}search-methods.csv", methods),
    )
    remark = "The other settings of a method's trials vary at random."
    notice = Notice("Why there is no Friedman test", [why_no_ranking(1), remark], tone="")
    return [Heading("Balancing methods"), method_table, notice]


def _failures(table: pd.DataFrame) -> list[Block]:
    """Trials that failed with their reasons, and how many were stopped early."""
    lost = failures(table)
    stopped = int((table["status"] == "pruned").sum())
    cpu_seconds = float(table.loc[table["status"] == "pruned", "cpu_seconds"].sum())
    blocks: list[Block] = []
    if stopped:
        text = f"The scheduler stopped {plural(stopped, 'trial')} early, after {number(cpu_seconds, 0)} CPU seconds."
        blocks.append(Text(text))
    if lost.empty:
        return [*blocks, Text("No trial failed.", tone="muted")]
    rows: list[list[str | Cell]] = [
        [row["name"], count(row["folds"]), number(row["cpu_seconds"], 1), row["reason"]]
        for row in lost.to_dict("records")
    ]
    title = f"{plural(len(lost), 'trial')} of {count(len(table))} failed"
    return [
        *blocks,
        Table(
            ["Trial", "Folds finished", "CPU s", "Reason"],
            rows,
            caption=title,
            numeric=frozenset([1, 2]),
            folded=len(rows) > 12,
        ),
    ]

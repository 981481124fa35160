"""Search: trials and their results, uncertainty of the ranking, and results on patients that no trial has seen."""

import json
import math
from collections.abc import Mapping
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
    methods_text,
    parallel_coordinates,
    ranks_of_methods,
)
from equipoise.platform.report.sections.search_trials import (
    by_importance,
    metric_text,
    spread_text,
    trial_tables,
)
from equipoise.platform.report.style import Download
from equipoise.platform.search.analysis import (
    anytime_curve,
    failures,
    objective_name,
    rank_methods,
    rank_trials,
    read_table,
    varied,
)
from equipoise.platform.search.importance import Importance, importance

#: Part of ``test.json`` that the trials have seen; the others are hold-out and external cohorts.
_SEEN = "inner validation"


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
    blocks: list[Block] = trial_tables(run, table, trials, metric, chosen, params.trials, importances)
    blocks += _unseen(run.folder, prefix)
    methods = rank_methods(table, trials)
    blocks += _settings(table, trials, metric, importances, methods)
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
    text = (
        f"Of {plural(len(trials), 'trial')}, {chosen} was chosen: {metric_text(metric)} {spread_text(best)} "
    )
    text += "on inner validation"
    first = trials[trials["index"] == 0]
    if len(first) and first.iloc[0]["name"] == chosen:
        text += ". It is the study as written"
    elif len(first) and math.isfinite(first.iloc[0]["objective"]):
        text += f"; the study as written has {spread_text(first.iloc[0])}"
    return f"{text}. {_how_sure(trials)}".strip()


def _how_sure(trials: pd.DataFrame) -> str:
    """How far the order of the trials is more than chance; empty where one fold leaves no error to compare with."""
    may = trials["may_be_best"].dropna()
    if not may.size:
        return ""
    several, left = len(may), int(may.sum())
    if left == 1:
        name = trials.loc[trials["may_be_best"].fillna(False).astype(bool), "name"].iloc[0]
        return f"{name} is told apart from each of the other {plural(several - 1, 'finished trial')}."
    if left == several:
        return (
            f"None of the {count(several)} finished trials can be excluded as the best, so their order "
            "may be chance."
        )
    return (
        f"{count(left)} of {count(several)} finished trials cannot be excluded as the best: their order among "
        "themselves may be chance."
    )


def _unseen(folder: Path, prefix: str) -> list[Block]:
    """Winner and study as written on inner validation, hold-out and external cohorts."""
    path = folder / "search" / "test.json"
    blocks: list[Block] = [Heading("Patients that no trial has seen")]
    if not path.exists():
        text = (
            "Not measured yet. The winner was chosen on inner validation, which is too optimistic for it: 'equipoise "
            "search --test' trains it and the study as written, and evaluates both on hold-out and external cohorts."
        )
        return [*blocks, Text(text)]
    measured = json.loads(path.read_text(encoding="utf-8"))
    rows = pd.DataFrame(measured["rows"])
    seen = rows["part"] == _SEEN
    if (~seen).any():
        caption = "Values with the intervals of the evaluation."
        if measured["winner"] != measured["default"]:
            caption += (
                " Differences are paired, winner minus study as written; one whose interval contains 0 does not tell "
                "them apart."
            )
        blocks.append(_both(measured, rows[~seen], caption, f"{prefix}search-unseen.csv"))
    if measured["looks"] > 1:
        reuse = f"{count(measured['looks'])} winners were evaluated on these patients, so the choice may depend on them"
        blocks.append(Notice("Test patients used more than once", [reuse]))
    if seen.any():
        caption = (
            "The same on the patients that chose the winner, with two standard errors over folds on either side. If "
            "the winner does better here than above, this is the optimism of choosing it here."
        )
        blocks += [
            Heading("The same on inner validation, which chose the winner"),
            _both(measured, rows[seen], caption, f"{prefix}search-inner.csv"),
        ]
    return blocks


def _both(measured: Mapping[str, Any], rows: pd.DataFrame, caption: str, file: str) -> Table:
    """Winner and study as written side by side, with the paired difference where there is one."""
    names = list(dict.fromkeys([measured["winner"], measured["default"]]))
    roles = {measured["default"]: ["as written"]}
    roles.setdefault(measured["winner"], []).insert(0, "winner")
    titles = [f"{name} ({', '.join(roles[name])})" for name in names]
    differences = {(d["cohort"], d["task"]): d for d in measured["differences"]}
    groups = list(rows.groupby(["part", "task", "metric"], sort=False))
    compared = any((part, task) in differences for (part, task, _), _ in groups)
    lines: list[list[str | Cell]] = []
    for (part, task, metric), group in groups:
        by_name = group.set_index("who").to_dict("index")
        cells: list[str | Cell] = [_estimate(by_name.get(name)) for name in names]
        if compared:
            d = differences.get((part, task))
            cells.append("–" if d is None else Cell(_difference(d), note=p_value(_nan(d["p"]))))
        lines.append([str(part), f"{task}, {label(str(metric))}", *cells, count(group["n"].max())])
    return Table(
        ["Sample", "Task and metric", *titles, *["Difference"] * compared, "Labelled patients"],
        lines,
        caption=caption,
        numeric=frozenset(range(2, 3 + compared + len(names))),
        download=Download(file, rows),
    )


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
    table: pd.DataFrame, trials: pd.DataFrame, metric: str, importances: Importance, methods: pd.DataFrame
) -> list[Block]:
    """Parallel coordinates, the most important settings first; importance of settings, and ranks of methods."""
    names = by_importance(varied(table), importances)
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
    """Balancing methods and strategies in one table, and why there is no test between them."""
    if methods.empty:
        return []
    both = methods["part"].nunique() > 1
    kinds = {"balancing": "balancing", "strategy": "federation strategy"}
    rows: list[list[str | Cell]] = [
        [
            Cell(str(m["method"]), note=kinds[m["part"]] if both else ""),
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
        caption=f"Ranks of the finished trials by {methods_text(methods)}, and how many trials of each cannot be "
        "excluded as the best: a method with more trials has more chances."
        + (" A trial counts once for its balancing method and once for its strategy." if both else ""),
        numeric=frozenset(range(1, 7)),
        download=Download(f"{prefix}search-methods.csv", methods),
    )
    remark = "The other settings of a method's trials vary at random."
    notice = Notice("Why there is no Friedman test", [why_no_ranking(1), remark], tone="")
    return [Heading(_methods_title(methods)), method_table, notice]


def _methods_title(methods: pd.DataFrame) -> str:
    parts = {"balancing": "balancing methods", "strategy": "federation strategies"}
    title = " and ".join(parts[part] for part in parts if (methods["part"] == part).any())
    return title[:1].upper() + title[1:]


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

"""External cohorts, sites and subgroups: every task in every cohort, then who differs."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, POOLED
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.forest import forest
from equipoise.platform.report.formatting import count, estimate, label, number, p_value, percent, plural
from equipoise.platform.report.metric_rows import TONES, Row, chance_level, external, pick, tone
from equipoise.platform.report.operating_tables import rule_text
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import Download

#: Maximum number of rows of a forest plot; larger studies show all cohorts and the largest sites.
_MOST = 30


def build(run: RunFiles, params: SectionParams) -> Section:
    """A matrix of tasks and cohorts, the sites of the main task, subgroups."""
    blocks: list[Block] = [*run.missing("evaluation/metrics.csv")]
    has_external = any(row["role"] == "external" for row in run.metric_rows)
    if run.metric_rows and not has_external:
        blocks.append(
            Text("No external cohort: there is no evidence that the model generalises.", tone="warn")
        )
    if matrix := _matrix(run):
        blocks.append(matrix)
    blocks += _sites(run)
    blocks += _subgroups(run)
    if models := _models(run):
        blocks.append(models)
    lead = "The same model on patients and scanners it has not seen."
    return Section(
        "External cohorts and sites", lead if has_external else "Results by cohort and site.", blocks
    )


def _matrix(run: RunFiles) -> Table | None:
    """The main metric of every task in the test folds, each of their cohorts, and each external cohort."""
    rows = [r for task in run.tasks for r in _rows(run.metric_rows, task.name, PRIMARY[task.kind])]
    rows = [
        r for r in rows if r["site"] == ALL and not (r["role"] == "external" and r["cohort"] in (ALL, POOLED))
    ]
    datasets = list(dict.fromkeys((r["role"], r["cohort"], r["name"]) for r in rows if r["cohort"] != POOLED))
    datasets.sort(key=lambda d: (d[0] != "test", d[1] != ALL, d[1]))
    if not datasets:
        return None
    lines: list[list[str | Cell]] = []
    for task in run.tasks:
        metric = PRIMARY[task.kind]
        chance = chance_level(run, task.name, metric)
        note = f"{label(metric)}, main task" if task.main else label(metric)
        cells: list[str | Cell] = [Cell(task.name, note=note)]
        for role, cohort, _ in datasets:
            same = (r for r in rows if (r["task"], r["role"], r["cohort"]) == (task.name, role, cohort))
            row = next(same, None)
            cells.append(Cell("–", tone="muted") if row is None else _value(row, chance))
        lines.append(cells)
    columns = ["Task", *(_heading(role, name) for role, _, name in datasets)]
    return Table(
        columns,
        lines,
        f"Main metric of every task with {percent(run.confidence)} intervals for these models (external: this "
        f"ensemble); below it the labelled patients. {TONES} A dash: no patient has a label for the task.",
        frozenset(range(1, len(columns))),
        download=Download("tasks-by-cohort.csv", pd.DataFrame(rows).drop(columns="name")),
    )


def _heading(role: str, name: str) -> str:
    if role == "external":
        return f"External {name}"
    return name if name.startswith("All") else f"Test, {name}"


def _value(row: Row, chance: float | None) -> Cell:
    """Value with interval, the patients behind it, and no more colour than the interval allows."""
    if row["n"] == 0:
        return Cell("–", tone="muted")
    n = f"n = {count(row['n'])}"
    if pd.notna(row["n_pos"]):
        what = (
            plural(int(row["n_pos"]), "event")
            if row["kind"] == "survival"
            else f"{count(row['n_pos'])} positive"
        )
        n = f"{n}, {what}"
    if pd.isna(row["value"]):
        return Cell("not estimable", tone="muted", note=n)
    return Cell(estimate(row, 2), tone=tone(row, chance), note=n)


def _sites(run: RunFiles) -> list[Block]:
    """A forest plot of the sites of the main task, and the sites of all tasks as a table."""
    blocks: list[Block] = []
    lines: list[list[str | Cell]] = []
    missing = 0
    for task in run.tasks:
        metric = PRIMARY[task.kind]
        rows = _largest(_rows(run.metric_rows, task.name, metric))
        sites = [r for r in rows if r["site"] != ALL]
        if not sites:
            continue
        if task.main:
            figure = forest(rows, task.name, metric, chance_level(run, task.name, metric), run.confidence)
            blocks += [Heading(f"Sites: {task.name}"), *([Figures([figure])] if figure else [])]
        for row in sites:
            missing += bool(pd.isna(row["value"]))
            value = Cell(estimate(row), tone="muted" if pd.isna(row["value"]) else "")
            where = row["site"] if row["cohort"] in row["site"] else f"{row['cohort']} · {row['site']}"
            lines.append([task.name, where, label(metric), count(row["n"]), value, row["note"]])
    if lines:
        remark = f"; {missing} without a metric, and why" if missing else ""
        columns = ["Task", "Site", "Metric", "Labelled patients", "Value", "Note"]
        blocks.append(Table(columns, lines, f"Sites of every task{remark}", frozenset([3, 4]), folded=True))
    return blocks


def _subgroups(run: RunFiles) -> list[Block]:
    """The main metric of every task in the subgroups that the study names."""
    if run.subgroups is None or run.subgroups.empty:
        return []
    figures: list[Block] = []
    tests = 0
    lines: list[list[str | Cell]] = []
    for task in run.tasks:
        rows = run.subgroups[run.subgroups["task"] == task.name]
        together = POOLED if ((rows["role"] == "test") & (rows["cohort"] == POOLED)).any() else ALL
        rows = rows[(rows["role"] == "external") | (rows["cohort"] == together)]
        rows = rows[~((rows["role"] == "external") & rows["cohort"].isin([ALL, POOLED]))]
        if task.main:
            figures += _subgroup_figures(run, task, rows[rows["metric"] == PRIMARY[task.kind]])
        for key, part in rows.groupby(["role", "cohort", "subgroup", "metric"], sort=False):
            tests += bool(pd.notna(part["p"]).any())
            lines += [_subgroup_line(task, str(key[0]), str(key[1]), row) for row in part.to_dict("records")]
    columns = ["Task", "Patients", "Subgroup", "Group", "Metric", "n", "Value", "Same in all groups"]
    about = (
        "Pairs of patients are compared within fold and cohort; groups that are too small have no metric. That one "
        "group's interval includes chance and another's does not is no difference between them: the last column of the "
        f"table tests whether all groups have the same value. {plural(tests, 'test')}, corrected for none of the "
        f"others: about {number(0.05 * tests, 1)} would be below .05 by chance alone."
    )
    table = Table(
        columns,
        lines,
        "Subgroups of every task",
        frozenset([5, 6, 7]),
        download=Download("subgroups.csv", run.subgroups),
        folded=True,
    )
    return [Heading("Subgroups"), Text(about), *figures, table]


def _subgroup_line(task: Task, role: str, cohort: str, row: dict[str, Any]) -> list[str | Cell]:
    where = "test folds" if role == "test" else f"external {cohort}"
    known = pd.notna(row["value"])
    value = Cell(estimate(row, 2)) if known else Cell("–", tone="muted", note=row["note"])
    everybody = row["group"] == ALL
    p = p_value(row["p"]) if everybody and pd.notna(row["p"]) else ""
    group = "all patients" if everybody else rule_text(row["group"])
    return [
        task.name,
        where,
        rule_text(row["subgroup"]),
        group,
        label(row["metric"]),
        count(row["n"]),
        value,
        p,
    ]


def _subgroup_figures(run: RunFiles, task: Task, rows: pd.DataFrame) -> Iterator[Block]:
    """A forest plot of the subgroups of the main task."""
    named: list[dict[str, Any]] = []
    for row in rows.to_dict("records"):
        where = "test folds" if row["role"] == "test" else f"external {row['cohort']}"
        group = "all patients" if row["group"] == ALL else rule_text(row["group"])
        if row["group"] == ALL and any(r["name"] == f"{where}: {group}" for r in named):
            continue  # the same for every subgroup
        named.append(row | {"name": f"{where}: {group}", "method": "pairs within fold and cohort"})
    metric = PRIMARY[task.kind]
    figure = forest(
        named[:_MOST],
        f"{task.name} subgroups",
        metric,
        chance_level(run, task.name, metric),
        run.confidence,
        what="subgroup",
        overlap="do not show a difference between subgroups",
    )
    if figure is not None:
        yield Figures([figure])


def _models(run: RunFiles) -> Table | None:
    """The ensemble and its fold models side by side, for each task and external cohort."""
    lines: list[list[str | Cell]] = []
    for task in run.tasks:
        metric = PRIMARY[task.kind]
        for ensemble in external(run, task.name, metric):
            key = {"role": "external", "cohort": ensemble["cohort"], "task": task.name, "metric": metric}
            mean = pick(run.metric_rows, predictor=FOLD_MODELS, **key)
            if not mean:
                continue
            same = (r for r in run.metric_rows if r["predictor"] == FOLD_MODELS and r["class"] == "")
            values = [r["value"] for r in same if r["fold"] != ALL and all(r[k] == v for k, v in key.items())]
            known = [value for value in values if pd.notna(value)]
            spread = f"{number(min(known))} to {number(max(known))}" if len(known) > 1 else "–"
            lines.append(
                [
                    task.name,
                    ensemble["cohort"],
                    label(metric),
                    estimate(ensemble),
                    estimate(mean[0]),
                    Cell(spread, tone="muted"),
                ]
            )
    if not lines:
        return None
    columns = [
        "Task",
        "External cohort",
        "Metric",
        "Ensemble of the fold models",
        "Mean of the fold models",
        "Individual models",
    ]
    caption = (
        f"Ensemble and fold models with {percent(run.confidence)} intervals for this ensemble and for these fold "
        "models on other patients of the cohort; they say nothing about other trainings. The ensemble averages "
        "scores and is evaluated once; the mean evaluates each fold model on every patient and averages the metric."
    )
    return Table(columns, lines, caption, frozenset([3, 4, 5]), folded=True)


def _rows(rows: list[Row], task: str, metric: str) -> list[Row]:
    """All patients, then each cohort followed by its sites, largest first."""
    ordered: list[Row] = []
    primary = [r for r in rows if r["task"] == task and r["metric"] == metric and r["predictor"] == "model"]
    primary = [r for r in primary if r["fold"] == "all" and r["class"] == "" and r["role"] != "val"]
    for role, everyone in (("test", "All test folds"), ("external", "All external cohorts")):
        part = [r for r in primary if r["role"] == role]
        several = any(r["cohort"] == POOLED for r in part)
        within = f"{everyone}, mean within cohorts" if several else everyone
        ordered += [{**r, "name": within} for r in part if r["cohort"] == ALL]
        ordered += [{**r, "name": f"{everyone}, pooled"} for r in part if r["cohort"] == POOLED]
        for cohort in sorted({r["cohort"] for r in part} - {ALL, POOLED}):
            of_cohort = [r for r in part if r["cohort"] == cohort]
            ordered += [{**r, "name": cohort} for r in of_cohort if r["site"] == "all"]
            sites = sorted((r for r in of_cohort if r["site"] != "all"), key=lambda r: -int(r["n"]))
            ordered += [{**r, "name": _site_name(cohort, r["site"])} for r in sites]
    return ordered


def _largest(rows: list[Row]) -> list[Row]:
    """About as many rows as a figure can show: all cohorts, and of the sites the largest."""
    room = max(0, _MOST - sum(r["site"] == "all" for r in rows))
    sizes = sorted((int(r["n"]) for r in rows if r["site"] != "all"), reverse=True)
    if len(sizes) <= room:
        return rows
    smallest = sizes[room - 1] if room else float("inf")
    return [r for r in rows if r["site"] == "all" or int(r["n"]) >= smallest]


def _site_name(cohort: str, site: str) -> str:
    return f"– {site}" if cohort in site else f"– {cohort} · {site}"

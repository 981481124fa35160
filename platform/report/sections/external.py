"""External cohorts and sites side by side: the main metric in each of them."""

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, POOLED
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.forest import forest
from equipoise.platform.report.formatting import count, estimate, label, number, percent
from equipoise.platform.report.metric_rows import Row, chance_level, external, pick
from equipoise.platform.report.run_files import RunFiles, Task

#: Maximum number of rows of a forest plot; larger studies show all cohorts and the largest sites.
_MOST = 30


def build(run: RunFiles, params: SectionParams) -> Section:
    """Forest plot per task over cohorts and sites."""
    blocks: list[Block] = [*run.missing("evaluation/metrics.csv")]
    has_external = any(row["role"] == "external" for row in run.metric_rows)
    if run.metric_rows and not has_external:
        blocks.append(
            Text("No external cohort: there is no evidence that the model generalises.", tone="warn")
        )
    for task in run.tasks:
        blocks += _task(run, task)
    lead = "The same model on patients and scanners it has not seen."
    return Section(
        "External cohorts and sites", lead if has_external else "Results by cohort and site.", blocks
    )


def _task(run: RunFiles, task: Task) -> list[Block]:
    metric = PRIMARY[task.kind]
    rows = _largest(_rows(run.metric_rows, task.name, metric))
    if len(rows) < 2:
        return []
    blocks: list[Block] = [Heading(task.name)]
    figure = forest(rows, task.name, metric, chance_level(run, task.name, metric), run.confidence)
    if figure:
        blocks.append(Figures([figure]))
    lines: list[list[str | Cell]] = []
    for row in rows:
        value = Cell(estimate(row), tone="muted" if pd.isna(row["value"]) else "")
        lines.append([row["name"], count(row["n"]), value, row["note"]])
    missing = sum(pd.isna(row["value"]) for row in rows)
    remark = f"; {missing} not estimable" if missing else ""
    caption = f"{label(metric)} of {task.name} as a table{remark}"
    columns = ["Cohort or site", "Patients", label(metric), "Note"]
    blocks.append(Table(columns, lines, caption, frozenset([1, 2]), folded=True))
    return [*blocks, *_models(run, task, metric)]


def _models(run: RunFiles, task: Task, metric: str) -> list[Block]:
    """The ensemble and its fold models side by side, for each external cohort."""
    lines: list[list[str | Cell]] = []
    for ensemble in external(run, task.name, metric):
        key = {"role": "external", "cohort": ensemble["cohort"], "task": task.name, "metric": metric}
        mean = pick(run.metric_rows, predictor=FOLD_MODELS, **key)
        if not mean:
            continue
        same = (r for r in run.metric_rows if r["predictor"] == FOLD_MODELS and r["class"] == "")
        values = [r["value"] for r in same if r["fold"] != ALL and all(r[k] == v for k, v in key.items())]
        known = [value for value in values if pd.notna(value)]
        spread = f"{number(min(known))} to {number(max(known))}" if len(known) > 1 else "–"
        lines.append([ensemble["cohort"], estimate(ensemble), estimate(mean[0]), Cell(spread, tone="muted")])
    if not lines:
        return []
    columns = [
        "External cohort",
        "Ensemble of the fold models",
        "Mean of the fold models",
        "Individual models",
    ]
    caption = (
        f"{label(metric)} of {task.name} with {percent(run.confidence)} intervals for this ensemble and for these fold "
        "models on other patients of the cohort; they say nothing about other trainings. The ensemble averages "
        "scores and is evaluated once; the mean evaluates each fold model on every patient and averages the metric."
    )
    return [Table(columns, lines, caption, frozenset([1, 2, 3]))]


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

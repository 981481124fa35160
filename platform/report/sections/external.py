"""External cohorts and sites side by side: where the main metric holds and where it does not."""

import pandas as pd

from equipoise.platform.evaluation.measures import PRIMARY
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.figures.forest import forest
from equipoise.platform.report.formatting import count, estimate, label, number, percent
from equipoise.platform.report.metric_rows import Row, chance_of, external, pick
from equipoise.platform.report.run_files import RunFiles, Task

#: Rows of a forest plot; larger studies keep their cohorts and their largest sites.
_MOST = 30


def build(run: RunFiles, params: SectionParams) -> Section:
    """Forest plot per task over cohorts and sites."""
    blocks: list[Block] = [*run.missing("evaluation/metrics.csv")]
    outside = any(row["role"] == "external" for row in run.metric_rows)
    if run.metric_rows and not outside:
        blocks.append(
            Text("No external cohort: nothing here shows that the model carries over.", tone="warn")
        )
    for task in run.tasks:
        blocks += _task(run, task)
    lead = "The same model on patients and scanners it has not seen."
    return Section("External cohorts and sites", lead if outside else "Results by cohort and site.", blocks)


def _task(run: RunFiles, task: Task) -> list[Block]:
    metric = PRIMARY[task.kind]
    rows = _largest(_rows(run.metric_rows, task.name, metric))
    if len(rows) < 2:
        return []
    blocks: list[Block] = [Heading(task.name)]
    figure = forest(rows, task.name, metric, chance_of(run, task.name, metric), run.confidence)
    if figure:
        blocks.append(Figures([figure]))
    lines: list[list[str | Cell]] = []
    for row in rows:
        value = Cell(estimate(row), tone="muted" if pd.isna(row["value"]) else "")
        lines.append([row["name"], count(row["n"]), value, row["note"]])
    silent = sum(pd.isna(row["value"]) for row in rows)
    gaps = f"; {silent} not estimable" if silent else ""
    caption = f"{label(metric)} of {task.name} as a table{gaps}"
    columns = ["Cohort or site", "Patients", label(metric), "Note"]
    blocks.append(Table(columns, lines, caption, frozenset([1, 2]), folded=True))
    return [*blocks, *_models(run, task, metric)]


def _models(run: RunFiles, task: Task, metric: str) -> list[Block]:
    """The ensemble beside the fold models it is made of, for each external cohort."""
    lines: list[list[str | Cell]] = []
    for together in external(run, task.name, metric):
        place = {"role": "external", "cohort": together["cohort"], "task": task.name, "metric": metric}
        mean = pick(run.metric_rows, predictor=FOLD_MODELS, **place)
        if not mean:
            continue
        same = (r for r in run.metric_rows if r["predictor"] == FOLD_MODELS and r["class"] == "")
        own = [r["value"] for r in same if r["fold"] != ALL and all(r[k] == v for k, v in place.items())]
        known = [value for value in own if pd.notna(value)]
        spread = f"{number(min(known))} to {number(max(known))}" if len(known) > 1 else "–"
        lines.append([together["cohort"], estimate(together), estimate(mean[0]), Cell(spread, tone="muted")])
    if not lines:
        return []
    columns = ["External cohort", "Ensemble of the fold models", "Mean of the fold models", "One by one"]
    caption = (
        f"{label(metric)} of {task.name} with {percent(run.confidence)} intervals over patients. The ensemble averages "
        "scores and is judged once; the mean judges each fold model on every patient and averages the metric."
    )
    return [Table(columns, lines, caption, frozenset([1, 2, 3]))]


def _rows(rows: list[Row], task: str, metric: str) -> list[Row]:
    """Everyone, then each cohort followed by its sites, largest first."""
    found: list[Row] = []
    own = [r for r in rows if r["task"] == task and r["metric"] == metric and r["predictor"] == "model"]
    own = [r for r in own if r["fold"] == "all" and r["class"] == "" and r["role"] != "val"]
    for role, everyone in (("test", "All test folds"), ("external", "All external cohorts")):
        part = [r for r in own if r["role"] == role]
        found += [{**r, "name": everyone} for r in part if r["cohort"] == "all"]
        for cohort in sorted({r["cohort"] for r in part} - {"all"}):
            inside = [r for r in part if r["cohort"] == cohort]
            found += [{**r, "name": cohort} for r in inside if r["site"] == "all"]
            sites = sorted((r for r in inside if r["site"] != "all"), key=lambda r: -int(r["n"]))
            found += [{**r, "name": _site_name(cohort, r["site"])} for r in sites]
    return found


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

"""Verdict: results of the main task, an overview of all tasks, and warnings."""

import math
from dataclasses import replace
from typing import Any

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.report.baseline_rows import (
    ahead_of_baseline,
    baseline_note,
    baseline_sentence,
    strongest_baseline,
)
from equipoise.platform.report.blocks import Block, Cell, Notice, Score, Scores, Section, Table, Text
from equipoise.platform.report.captions import (
    ESTIMANDS,
    verdict_caution,
    verdict_sentence,
)
from equipoise.platform.report.decision_remarks import decision_remarks, not_separated
from equipoise.platform.report.drawings import interval_bar
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import (
    count,
    estimand_of,
    estimate,
    interval,
    label,
    listed,
    number,
    percent,
    plural,
    procedure_interval,
)
from equipoise.platform.report.metric_rows import (
    TONES,
    chance_level,
    external,
    first_sentence,
    fold_count,
    internal,
    tone,
)
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.federation import federation_sentence
from equipoise.platform.report.sections.search import search_sentence


def build(run: RunFiles, params: SectionParams) -> Section:
    """The verdict; without metrics, how to compute them."""
    blocks: list[Block] = []
    if run.metrics is None or not run.tasks:
        blocks += run.missing("evaluation/predictions.parquet", "evaluation/metrics.csv")
        blocks += _warnings(run)
        return Section("Verdict", "There is no result yet.", blocks)
    main = run.tasks[0]
    metric = PRIMARY[main.kind]
    internal_row, external_rows = internal(run, main.name, metric), external(run, main.name, metric)
    chance = chance_level(run, main.name, metric)
    lead = verdict_sentence(
        main.name,
        metric,
        internal_row,
        external_rows,
        folds=fold_count(run, main.name),
        chance=chance,
        confidence=run.confidence,
    )
    if where := not_separated(run, main):
        lead += f" At its operating point the model does not separate the patients of {listed(where)}."
    scores = [_score(run, main, r, metric, chance) for r in [internal_row, *external_rows[:3]] if r]
    blocks.append(Scores(scores))
    if remarks := decision_remarks(run):
        blocks.append(Notice("Operating points that do not separate patients", remarks, tone="bad"))
    if sentence := baseline_sentence(run, main.name):
        blocks.append(Text(sentence, tone="" if ahead_of_baseline(run, main.name) else "warn"))
    blocks += [Text(line) for line in (federation_sentence(run), search_sentence(run)) if line]
    if caution := verdict_caution(internal_row, external_rows, synthetic=run.synthetic):
        blocks.append(Text(caution, tone="warn"))
    blocks += _warnings(run)
    if len(run.tasks) > 1:
        blocks.append(_all_tasks(run))
    if use := (run.study.get("report") or {}).get("intended_use"):
        blocks.append(Text(f"Intended use: {use}"))
    return Section("Verdict", lead, blocks)


def _score(run: RunFiles, task: Task, row: dict[str, Any], metric: str, chance: float | None) -> Score:
    is_internal = row["role"] == "test"
    dataset = "Internal, cross-validation test folds" if is_internal else f"External, {row['cohort']}"
    bounds = "no interval"
    if math.isfinite(row["low"]):
        bounds = f"{percent(run.confidence)} CI {interval(row['low'], row['high'], 2)}"
        bounds += f" for {models}" if (models := estimand_of(row)) else ""
        bounds += f"; {procedure} for the procedure" if (procedure := procedure_interval(row, 2)) else ""
    return Score(
        dataset=dataset,
        metric=f"{label(metric)}, {task.name}",
        value=number(row["value"], 2) if math.isfinite(row["value"]) else "n/e",
        interval=bounds,
        detail=f"{_patients(row)}{_baseline(run, task, row)}",
        note=row["note"],
        tone=tone(row, chance),
        drawing=interval_bar(row["value"], row["low"], row["high"], chance, _limits(metric)),
    )


def _baseline(run: RunFiles, task: Task, row: dict[str, Any]) -> str:
    """The strongest baseline on the same patients."""
    note = baseline_note(strongest_baseline(run, task.name, row["role"], row["cohort"]))
    return f". Strongest baseline: {note}" if note else ""


def _all_tasks(run: RunFiles) -> Table:
    """Primary metric of each task."""
    cohorts = sorted({r["cohort"] for t in run.tasks for r in external(run, t.name, PRIMARY[t.kind])})
    baselines = any(strongest_baseline(run, task.name) is not None for task in run.tasks)
    rows: list[list[str | Cell]] = []
    for task in run.tasks:
        metric = PRIMARY[task.kind]
        row, chance = internal(run, task.name, metric), chance_level(run, task.name, metric)
        by_cohort = {r["cohort"]: r for r in external(run, task.name, metric)}
        mark = "main task, " if task.main else ""
        cells: list[str | Cell] = [Cell(task.name, note=mark + label(metric)), *_result(row, chance, metric)]
        cells.append(Cell(_patients(row), tone="muted") if row else "–")
        if baselines:
            cells.append(_strongest(strongest_baseline(run, task.name)))
        cells += [_outside(by_cohort.get(cohort), chance, metric) for cohort in cohorts]
        rows.append(cells)
    level = f"{percent(run.confidence)} CI"
    columns = [
        "Task",
        f"Test folds ({level})",
        "",
        "Sample",
        *["Strongest baseline"] * baselines,
        *[f"External {c}" for c in cohorts],
    ]
    return Table(
        columns,
        rows,
        caption=f"Primary metric of every task; {ESTIMANDS} External values have their sample below. "
        "The bar runs from 0 to 1 (correlations: −1 to 1), its "
        f"tick marks a predictor without information. {TONES}",
        numeric=frozenset([1, *range(4 + baselines, 4 + baselines + len(cohorts))]),
    )


def _outside(row: dict[str, Any] | None, chance: float | None, metric: str) -> str | Cell:
    """The result in an external cohort, with its sample below."""
    cell = _result(row, chance, metric)[0]
    if row is None or not isinstance(cell, Cell):
        return cell
    return replace(cell, note=", ".join(filter(None, [_patients(row), cell.note])))


def _strongest(row: dict[str, Any] | None) -> str | Cell:
    """Value of the strongest baseline of a task, its name and the model's lead over it."""
    if row is None:
        return "–"
    lead = ""
    if math.isfinite(row["lead"]):
        bounds = (
            f" ({interval(row['lead_low'], row['lead_high'], 2)})" if math.isfinite(row["lead_low"]) else ""
        )
        lead = f"; lead {number(row['lead'], 2)}{bounds}"
    return Cell(number(row["value"]), note=f"{row['predictor']}{lead}", tone="muted")


def _result(row: dict[str, Any] | None, chance: float | None, metric: str) -> list[str | Cell]:
    if row is None:
        return ["–", "–"]
    colour = tone(row, chance)
    note = first_sentence(row["note"]) if not math.isfinite(row["value"]) else procedure_interval(row)
    drawing = interval_bar(row["value"], row["low"], row["high"], chance, _limits(metric))
    return [
        Cell(estimate(row), tone=colour, note=note),
        Cell("" if drawing else "–", tone=colour, drawing=drawing),
    ]


def _patients(row: dict[str, Any]) -> str:
    patients = plural(int(row["n"]), "patient")
    if row["kind"] == "survival":
        return f"{patients}, {plural(int(row['n_pos']), 'event')}"
    return f"{patients}, {count(row['n_pos'])} positive" if row["kind"] == "binary" else patients


def _limits(metric: str) -> tuple[float, float]:
    return (-1.0, 1.0) if metric in ("pearson", "r2") else (0.0, 1.0)


def _warnings(run: RunFiles) -> list[Block]:
    """Warnings of the run, a failed audit first; no block if there are none."""
    items = []
    if run.leakage is not None and not run.leakage["ok"].all():
        failed = run.leakage[~run.leakage["ok"]]
        items.append(f"the leakage audit failed {len(failed)} checks: these results must not be used")
    bad = bool(items)
    items += run.warnings
    if not items:
        return []
    title = "1 warning" if len(items) == 1 else f"{len(items)} warnings"
    return [Notice(title, items, tone="bad" if bad else "warn")]

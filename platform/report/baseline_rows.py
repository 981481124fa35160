"""Baselines beside the scores of a task: a table, and sentences about the strongest of them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.platform.report.blocks import Block, Cell, Table, Tone
from equipoise.platform.report.formatting import estimate, interval, label, number, p_value, percent
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import Download, slug

_CAPTION = (
    "Linear models of what is known without this model, fitted on the training patients of the same folds; their "
    "penalty is chosen by inner cross-validation there. Lead: the model's value minus the baseline's, with the "
    "interval and p of the paired test of the two (one test per row, not corrected for their number)."
)


def baseline_blocks(run: RunFiles, task: Task) -> list[Block]:
    """A table of the baselines of a task in the test folds and in each external cohort; none without baselines."""
    rows = _rows(run, task.name)
    names = list(dict.fromkeys(row["predictor"] for row in rows))
    if not names:
        return []
    datasets = [("test", "all"), *sorted({(r["role"], r["cohort"]) for r in rows if r["role"] == "external"})]
    datasets = [d for d in datasets if d != ("external", "all") and d[1] != "pooled"]
    level = f"{percent(run.confidence)} CI"
    columns = ["Baseline"]
    for role, cohort in datasets:
        where = "test folds" if role == "test" else f"external {cohort}"
        columns += [f"{label(rows[0]['metric'])}, {where} ({level})", "Lead of the model"]
    lines: list[list[str | Cell]] = []
    for name in names:
        cells: list[str | Cell] = [name]
        for role, cohort in datasets:
            row = next(
                (r for r in rows if (r["predictor"], r["role"], r["cohort"]) == (name, role, cohort)), None
            )
            cells += (
                ["–", "–"]
                if row is None
                else [Cell(estimate(row), tone="muted", note=row["note"]), _lead(row)]
            )
        lines.append(cells)
    return [
        Table(
            columns,
            lines,
            caption=_CAPTION,
            numeric=frozenset(range(1, len(columns))),
            download=None
            if run.baselines is None
            else Download(f"baselines-{slug(task.name)}.csv", run.baselines),
        )
    ]


def strongest_baseline(
    run: RunFiles, task: str, role: str = "test", cohort: str = "all"
) -> dict[str, Any] | None:
    """Row of the baseline with the highest value in the test folds, or elsewhere; None if none is estimable."""
    rows = [r for r in _rows(run, task) if r["role"] == role and r["cohort"] == cohort]
    return max((r for r in rows if math.isfinite(r["value"])), key=lambda r: r["value"], default=None)


def named(row: Mapping[str, Any]) -> str:
    """Name of a baseline inside a sentence; in quotation marks if it has a comma."""
    name = str(row["predictor"])
    return f"“{name}”" if "," in name else name


def baseline_note(row: Mapping[str, Any] | None) -> str:
    """``age and cohort 0.62; lead 0.20 (0.05–0.34)``: a baseline beside a headline; empty without one."""
    if row is None:
        return ""
    text = f"{named(row)} {number(row['value'], 2)}"
    if not math.isfinite(row["lead"]):
        return text
    text += f"; lead {number(row['lead'], 2)}"
    return (
        f"{text} ({interval(row['lead_low'], row['lead_high'], 2)})"
        if math.isfinite(row["lead_low"])
        else text
    )


def ahead_of_baseline(run: RunFiles, task: str) -> bool:
    """Whether the interval of the model's lead over its strongest baseline in the test folds lies above 0."""
    row = strongest_baseline(run, task)
    return row is not None and bool(row["lead_low"] > 0)


def lead_tone(row: Mapping[str, Any]) -> Tone:
    """Colour of a lead: green or red only if its interval excludes 0."""
    return "good" if row["lead_low"] > 0 else "bad" if row["lead_high"] < 0 else ""


def baseline_sentence(run: RunFiles, task: str) -> str:
    """What the strongest baseline reaches, and by how much the model leads; empty without baselines."""
    row = strongest_baseline(run, task)
    if row is None:
        return ""
    start = f"The strongest baseline, {named(row)}, has {label(row['metric'])} {number(row['value'], 2)}"
    if not math.isfinite(row["lead"]):
        return f"{start}."
    bounds = (
        interval(row["lead_low"], row["lead_high"], 2) if math.isfinite(row["lead_low"]) else "no interval"
    )
    return f"{start}; the model's lead over it is {number(row['lead'], 2)} ({bounds})."


def baseline_limits(run: RunFiles) -> list[str]:
    """A sentence for each task whose model is not clearly ahead of its strongest baseline."""
    found = []
    for task in run.tasks:
        row = strongest_baseline(run, task.name)
        if row is None or not math.isfinite(row["lead"]) or row["lead_low"] > 0:
            continue
        how = "behind" if row["lead_high"] < 0 else "not clearly ahead of"
        found.append(
            f"{task.name}: the model is {how} the baseline {named(row)} in the test folds "
            f"({label(row['metric'])} {number(row['value'] + row['lead'], 2)} against {number(row['value'], 2)})."
        )
    return found


def baseline_rows(
    runs: Mapping[str, RunFiles], datasets: Sequence[tuple[str, str, str]]
) -> list[list[str | Cell]]:
    """Grey rows of the leaderboard, one per baseline of the first run that has some.

    Parameters
    ----------
    runs
        Runs on the same patients.
    datasets
        (task, role, cohort) of the columns behind rank, name, model and ranking.
    """
    first = next((run for run in runs.values() if run.baselines is not None and len(run.baselines)), None)
    if first is None or first.baselines is None:
        return []
    found = {
        (row["predictor"], row["task"], row["role"], row["cohort"]): row
        for row in first.baselines.to_dict("records")
    }
    rows: list[list[str | Cell]] = []
    for name in dict.fromkeys(key[0] for key in found):
        values = [found.get((name, *dataset)) for dataset in datasets]
        cells = [Cell("–" if row is None else estimate(row), tone="muted") for row in values]
        rows.append(["", Cell(name, tone="muted", note="baseline"), "", "–", "–", *cells])
    return rows


def _rows(run: RunFiles, task: str) -> list[dict[str, Any]]:
    if run.baselines is None:
        return []
    return run.baselines[run.baselines["task"] == task].to_dict("records")


def _lead(row: dict[str, Any]) -> Cell:
    if not math.isfinite(row["lead"]):
        return Cell("–", tone="muted")
    if not math.isfinite(row["lead_low"]):
        return Cell(number(row["lead"]))
    bounds = interval(row["lead_low"], row["lead_high"], 3)
    return Cell(f"{number(row['lead'])} ({bounds})", tone=lead_tone(row), note=p_value(row["p"]))

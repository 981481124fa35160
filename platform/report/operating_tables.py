"""Tables of decisions: operating points, calibration, and the patients that a model gets wrong."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.calibration_table import METRICS
from equipoise.platform.evaluation.operating_points import SHARES, misclassified
from equipoise.platform.evaluation.params import ThresholdParams
from equipoise.platform.report.blocks import Block, Cell, Gallery, Picture, Table, Tone
from equipoise.platform.report.datasets import datasets_of
from equipoise.platform.report.embedded_pictures import embedded_jpeg
from equipoise.platform.report.formatting import count, interval, label, number, percent, plural
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.quality import THUMBNAIL_PX
from equipoise.platform.report.style import Download, slug


def threshold_rule(run: RunFiles) -> ThresholdParams:
    """The operating point of headlines."""
    return ThresholdParams.model_validate(run.evaluation.get("threshold") or {})


def rule_text(rule: str) -> str:
    """``sensitivity ≥ 0.95``: a rule as readers write it."""
    return rule.replace(">=", "≥")


def operating_table(run: RunFiles, task: Task) -> Table | None:
    """Sensitivity, specificity, PPV, NPV and accuracy at every operating point of a binary task."""
    lines: list[list[str | Cell]] = []
    notes: list[str] = []
    parts = []
    for data in datasets_of(run.operating_points, task.name):
        parts.append(data.rows)
        for point, rows in data.rows.groupby("point", sort=False):
            by_metric = {str(row["metric"]): row for row in rows.to_dict("records")}
            first = by_metric[SHARES[0]]
            mark = _mark(first["note"], notes)
            chosen = str(first["headline"]) == "True"
            cells: list[str | Cell] = [
                data.name,
                Cell(rule_text(str(point)), note="used in headlines" if chosen else "", mark=mark),
                number(first["threshold"], 2),
            ]
            cells += [_share(by_metric[metric], notes, first["note"]) for metric in SHARES]
            lines.append(cells)
    if not lines:
        return None
    level = percent(run.confidence)
    columns = ["Patients", "Operating point", "Threshold", *(label(m) for m in SHARES)]
    return Table(
        columns,
        lines,
        f"Decisions on {task.name} at thresholds fixed on validation patients (shown: the mean over folds). "
        f"Every patient counts once; {level} intervals are Wilson's, and wider in a cross-validation. PPV and NPV hold "
        "at the share of positive patients here and change with it.",
        frozenset(range(2, len(columns))),
        footnotes=notes,
        download=Download(f"operating-points-{slug(task.name)}.csv", pd.concat(parts)),
    )


def _share(row: dict[str, Any], notes: list[str], shared: Any) -> Cell:
    if not math.isfinite(row["value"]):
        mark = _mark(row["note"], notes) if row["note"] != shared else ""
        return Cell("–", tone="muted", mark=mark)
    bounds = interval(row["low"], row["high"], 2)
    return Cell(
        f"{number(row['value'], 2)} ({bounds})", note=f"{count(row['successes'])} of {count(row['n'])}"
    )


def _mark(note: Any, notes: list[str]) -> str:
    """Number of a footnote; empty without a note."""
    if not isinstance(note, str) or not note:
        return ""
    if note not in notes:
        notes.append(note)
    return str(notes.index(note) + 1)


def calibration_table_of(run: RunFiles, task: Task) -> Table | None:
    """Slope, intercept, expected calibration error and Brier score in each data set."""
    lines: list[list[str | Cell]] = []
    notes: list[str] = []
    parts = []
    for data in datasets_of(run.calibration, task.name):
        parts.append(data.rows)
        for name, rows in data.rows.groupby("class", sort=True):
            by_metric = {str(row["metric"]): row for row in rows.to_dict("records")}
            what = data.name if task.kind == "binary" else f"{data.name}, {name}"
            patients = Cell(count(rows["n"].iloc[0]), note=f"{count(rows['n_pos'].iloc[0])} positive")
            lines.append([what, patients, *(_calibrated(by_metric[metric], notes) for metric in METRICS)])
    if not lines:
        return None
    columns = ["Patients", "n", *(label(metric) for metric in METRICS)]
    return Table(
        columns,
        lines,
        f"Calibration of the probabilities of {task.name} with {percent(run.confidence)} intervals. Slope 1 and "
        "intercept 0 are perfect: a slope below 1 means that predictions are too extreme, an intercept below 0 "
        "that they are too high. The expected calibration error is without the part that chance alone brings. "
        "Below the Brier score stands that of giving everybody the share of positive patients. Amber: the interval "
        "excludes the perfect value.",
        frozenset(range(1, len(columns))),
        footnotes=notes,
        download=Download(f"calibration-{slug(task.name)}.csv", pd.concat(parts)),
    )


def _calibrated(row: dict[str, Any], notes: list[str]) -> Cell:
    mark = _mark(row["note"], notes)
    if not math.isfinite(row["value"]):
        return Cell("–", tone="muted", mark=mark)
    known = math.isfinite(row["low"])
    shown = (
        f"{number(row['value'], 2)} ({interval(row['low'], row['high'], 2)})"
        if known
        else number(row["value"], 2)
    )
    tone: Tone = ""
    note = ""
    if row["metric"] in ("calibration_slope", "calibration_intercept"):
        tone = "warn" if known and not row["low"] <= row["reference"] <= row["high"] else ""
    elif row["metric"] == "ece":
        tone = "warn" if known and row["low"] > 0 else ""
    elif math.isfinite(row["reference"]):
        note = f"share alone {number(row['reference'], 2)}"
    return Cell(shown, tone=tone, note=note, mark=mark)


def error_blocks(run: RunFiles, task: Task, rows: pd.DataFrame, most: int, pictures: int) -> list[Block]:
    """Misclassified patients, the most confident errors first, with thumbnails of their slides.

    Parameters
    ----------
    rows
        All predictions of the task.
    most, pictures
        Patients to list, and thumbnails to embed.
    """
    wrong = misclassified(rows, threshold_rule(run))
    if wrong.empty or most == 0:
        return []
    lines: list[list[str | Cell]] = []
    for row in wrong.head(most).to_dict("records"):
        where = "test folds" if row["role"] == "test" else f"external {row['cohort']}"
        lines.append(
            [
                row["patient"],
                where,
                row["actual"],
                row["called"],
                percent(row["score"]),
                number(row["margin"], 2),
            ]
        )
    shown = f"the {len(lines)} with the largest distance first" if len(lines) < len(wrong) else "all of them"
    rest = "to the threshold" if task.kind == "binary" else "to the probability of the true class"
    blocks: list[Block] = [
        Table(
            ["Misclassified patient", "Patients", "Actual", "Model says", "Probability", "Distance"],
            lines,
            f"{plural(len(wrong), 'patient')} of {task.name} misclassified, {shown}. Probability is that of what the "
            f"model says, distance that {rest}.",
            frozenset([4, 5]),
            download=Download(f"misclassified-{slug(task.name)}.csv", wrong),
            folded=not task.main,
        )
    ]
    found = thumbnails_of(run, wrong["patient"].tolist(), pictures)
    if found:
        caption = "Slides of the most confident errors. Blue squares are the encoded tiles."
        blocks.append(
            Gallery([Picture(embedded_jpeg(path, THUMBNAIL_PX), name) for name, path in found], caption)
        )
    return blocks


def thumbnails_of(run: RunFiles, patients: Sequence[str], most: int) -> list[tuple[str, Path]]:
    """Caption and path of the thumbnail of one slide of each patient, as far as there are some."""
    if run.slides is None or most == 0:
        return []
    by_stem = {path.stem: path for path in run.thumbnails}
    with_one = run.slides[run.slides["slide"].astype(str).isin(list(by_stem))]
    slides = with_one.drop_duplicates("patient").set_index("patient")["slide"].astype(str)
    named = [patient for patient in patients if patient in slides.index]
    return [(f"{patient}: {slides[patient]}", by_stem[slides[patient]]) for patient in named[:most]]

"""What embeddings are worth elsewhere: transfer to cohorts that training has not seen, and robustness to centres."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.transfer import CONSTANT
from equipoise.platform.report.blocks import Block, Cell, Heading, Section, Table, Tone
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, estimate, interval, label, number, p_value, percent
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.style import Download, slug

_PREDICTORS = {
    "probe": "frozen embedding, ridge fitted in the cohort",
    "zero-shot": "the model as it is, no label of the cohort",
    "presence of modalities": "ridge of which modalities a patient has",
    "elastic_net, tables": "ridge of the tables, fitted in the cohort",
    "elastic_net, mean tile": "ridge of the mean tile, fitted in the cohort",
    CONSTANT: "the same for everybody",
}


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """Tables of transfer and of robustness; nothing for a run that has neither."""
    blocks: list[Block] = []
    if run.transfer is not None:
        for task in run.tasks:
            blocks += _transfer(run, task)
    if run.feature_robustness is not None:
        blocks += [Heading("Features before training: class or centre"), _features(run.feature_robustness)]
    if run.robustness is not None:
        blocks += [Heading("Embeddings after training: class or centre"), _robustness(run.robustness)]
    if not blocks:
        return None
    return Section(
        "Features and embeddings",
        "Whether features of the encoder and embeddings of the model follow the class of a patient or the centre that "
        "the patient comes from, and what embeddings are worth in other cohorts.",
        blocks,
    )


def _transfer(run: RunFiles, task: Task) -> list[Block]:
    """A table per external cohort."""
    assert run.transfer is not None
    of_task = run.transfer[run.transfer["task"] == task.name]
    blocks: list[Block] = []
    for cohort, rows in of_task.groupby("cohort", sort=True):
        records: list[dict[str, Any]] = [
            {str(k): v for k, v in row.items()} for row in rows.to_dict("records")
        ]
        metrics = list(dict.fromkeys(str(row["metric"]) for row in records))
        main = PRIMARY[str(records[0]["kind"])]
        level = percent(run.confidence)
        lines: list[list[str | Cell]] = []
        for name in dict.fromkeys(str(row["predictor"]) for row in records):
            own = {str(row["metric"]): row for row in records if row["predictor"] == name}
            cells: list[str | Cell] = [Cell(name, note=_PREDICTORS.get(name, ""))]
            cells += [estimate(own[metric]) if metric in own else "–" for metric in metrics]
            cells += [_lead(own[main]) if main in own else "–"]
            lines.append(cells)
        blocks += [
            Heading(f"{task.name} in {cohort}"),
            Table(
                [
                    "Predictor",
                    *(f"{label(m)} ({level} CI)" for m in metrics),
                    f"Lead of the probe, {label(main)}",
                ],
                lines,
                f"{count(records[0]['n'])} labelled patients, who trained no model of this run. Probe and ridges are "
                "fitted and scored by cross-validation among them; what fold models say is averaged. Means over the "
                "folds. Lead: the probe's value minus that of the row, with the interval and p of the paired test (one "
                "per row, not corrected for their number).",
                frozenset(range(1, len(metrics) + 2)),
                download=Download(f"transfer-{slug(task.name)}.csv", of_task),
            ),
        ]
    return blocks


def _lead(row: Mapping[str, Any]) -> Cell:
    if not math.isfinite(row["lead"]):
        return Cell("–", tone="muted")
    if not math.isfinite(row["lead_low"]):
        return Cell(number(row["lead"]))
    tone: Tone = "good" if row["lead_low"] > 0 else "bad" if row["lead_high"] < 0 else ""
    return Cell(
        f"{number(row['lead'])} ({interval(row['lead_low'], row['lead_high'])})", tone, p_value(row["p"])
    )


#: What a robustness index is, for both tables.
_INDEX = (
    "Robustness index: among the nearest neighbours of a patient, those of the same class from another centre, as a "
    "share of these and those of another class from the same centre. 'At random' is the share for neighbours drawn at "
    "random, which depends on the numbers of classes and centres; below it, centre counts for more than class."
)


def _index_cells(row: Mapping[str, Any]) -> list[str | Cell]:
    """Task, centres, the index with its colour, and its value at random."""
    low, high, chance = row["low"], row["high"], row["chance"]
    tone: Tone = ""
    if math.isfinite(low):
        tone = "good" if low > chance else "bad" if high < chance else ""
    centres = f"{row['centre']}s"
    return [str(row["task"]), centres, Cell(estimate(row), tone=tone), number(chance)]


def _features(table: pd.DataFrame) -> Table:
    """Robustness of the encoder's features, with the measures of the package croma."""
    lines: list[list[str | Cell]] = []
    notes: list[str] = []
    for row in table.to_dict("records"):
        mark = ""
        if row["note"]:
            if row["note"] not in notes:
                notes.append(str(row["note"]))
            mark = str(notes.index(str(row["note"])) + 1)
        task, *index = _index_cells(row)
        lines.append(
            [
                Cell(str(task), mark=mark),
                *index,
                _or_dash(row["mari"], 3),
                Cell(_or_dash(row["croma"], 2), note=_tail(row["croma_tail"])),
                Cell(_or_dash(row["apd"], 2), note=str(row["apd_cells"])),
                count(row["n"]),
            ]
        )
    return Table(
        ["Task", "Centres", "Robustness index", "At random", "MaRI", "CRoMa", "APD", "Patients"],
        lines,
        f"Mean tile features of all labelled patients, as the encoder gives them. {_INDEX} MaRI: the same with "
        "neighbours weighted by their distance. CRoMa: how much nearer the same class elsewhere is than another class "
        "here, from −1 to 1, as the median over patients; below it, the mean of the worst tenth. APD: the relative "
        "change of a probe's balanced accuracy when class and centre go together more and more among its training "
        "patients, in the "
        "two named centres; 0 is no loss, and far below 0 the features invite the probe to learn the centre.",
        frozenset(range(2, 8)),
        footnotes=notes,
        download=Download("feature-robustness.csv", table),
    )


def _or_dash(value: float, decimals: int) -> str:
    return number(value, decimals) if math.isfinite(value) else "–"


def _tail(value: float) -> str:
    return f"worst tenth {number(value, 2)}" if math.isfinite(value) else ""


def _robustness(table: pd.DataFrame) -> Table:
    lines: list[list[str | Cell]] = []
    for row in table.to_dict("records"):
        task, centres, index, chance = _index_cells(row)
        assert isinstance(index, Cell)
        lines.append(
            [
                task,
                centres,
                replace(index, note=str(row["note"])),
                chance,
                number(row["margin"], 2),
                count(row["k"]),
                percent(row["support"]) if math.isfinite(row["support"]) else "–",
                count(row["n"]),
            ]
        )
    return Table(
        ["Task", "Centres", "Robustness index", "At random", "Margin", "k", "Support", "Patients"],
        lines,
        f"The vectors that the head of each task reads, test and external patients, means over the folds. {_INDEX} "
        "Margin: median of how much nearer the class elsewhere is than the others here, from −1 to 1. k: number of "
        "neighbours. Support: share of patients with a neighbour of either kind.",
        frozenset(range(2, 8)),
        download=Download("robustness.csv", table),
    )

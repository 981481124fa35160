"""What embeddings are worth elsewhere: transfer to cohorts that training has not seen, and robustness to centres."""

import math
from collections.abc import Mapping
from typing import Any

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
    if run.robustness is not None:
        blocks += [Heading("Class or centre"), _robustness(run)]
    if not blocks:
        return None
    return Section(
        "Embeddings elsewhere", "What the vectors that heads read are worth beyond this study.", blocks
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


def _robustness(run: RunFiles) -> Table:
    assert run.robustness is not None
    lines: list[list[str | Cell]] = []
    for row in run.robustness.to_dict("records"):
        low, high, chance = row["low"], row["high"], row["chance"]
        tone: Tone = ""
        if math.isfinite(low):
            tone = "good" if low > chance else "bad" if high < chance else ""
        lines.append(
            [
                str(row["task"]),
                f"{row['centre']}s",
                Cell(estimate(row), tone=tone, note=str(row["note"])),
                number(chance),
                number(row["margin"], 2),
                count(row["k"]),
                percent(row["support"]) if math.isfinite(row["support"]) else "–",
                count(row["n"]),
            ]
        )
    return Table(
        ["Task", "Centres", f"Robustness index ({percent(run.confidence)} CI)", "At random", "Margin", "k", "Support",
         "Patients"],
        lines,
        "Among the nearest neighbours of a patient in the space that the head of a task reads: the share of those of "
        "the same class from another centre among these and those of another class from the same centre. 'At random' "
        "is the share for neighbours drawn at random, which depends on the numbers of classes and centres; below it "
        "centres are closer to each other than classes. Margin: median of how much nearer the class elsewhere is than "
        "the others here, from −1 to 1. Test and external patients, mean over folds.",
        frozenset(range(2, 8)),
        download=Download("robustness.csv", run.robustness),
    )  # fmt: skip

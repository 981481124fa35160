"""One page per patient: predictions with sets and intervals, what speaks against them, and the slides.

Self-contained like the report, whose blocks and template it uses. Research use only: the page says so at its top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise import __version__
from equipoise.platform.prediction.drift import VALUES, VECTORS
from equipoise.platform.prediction.trust import Assessment, Trust
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Gallery,
    Heading,
    KeyNumber,
    KeyNumbers,
    Notice,
    Picture,
    Section,
    Table,
    Text,
)
from equipoise.platform.report.formatting import count, number, percent, plural
from equipoise.platform.report.page import Page, PageSection, render_page

if TYPE_CHECKING:
    import pandas as pd

#: Checks of a slide → words for readers.
_CHECKS = {name: text[0].upper() + text[1:] for name, text in VECTORS.items()}
_CHECKS |= {name: what[0].upper() + what[1:] for name, (what, _) in VALUES.items()} | {"mpp": "Pixel size"}
_UNITS = {name: unit for name, (_, unit) in VALUES.items()} | {"mpp": "µm/px"}


@dataclass(frozen=True)
class PatientRecord:
    """What is known about one patient.

    Attributes
    ----------
    patient
        Name.
    predictions
        Rows of the patient: ``task kind output class score threshold call``, as ``equipoise predict`` writes them.
    assessment
        Of all patients, or of this one.
    pictures
        Thumbnails and heat-maps.
    """

    patient: str
    predictions: pd.DataFrame
    assessment: Assessment
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class ModelRecord:
    """The model that predicted.

    Attributes
    ----------
    name
        Of the study that trained it.
    trust
        What was fitted with it; None if nothing was.
    synthetic
        Trained on SYNTHETIC cohorts, or predicting one.
    meta
        What else stands in the head of the page: version, checksum.
    """

    name: str
    trust: Trust | None
    synthetic: bool
    meta: Mapping[str, str] = field(default_factory=dict)


def patient_page(record: PatientRecord, model: ModelRecord) -> str:
    """The page as text."""
    assessment = record.assessment
    of_patient = {
        name: getattr(assessment, name)[getattr(assessment, name)["patient"] == record.patient]
        for name in ("sets", "decisions", "drift", "quality")
    }
    sections = [
        ("predictions", _predictions(record, of_patient)),
        ("trust", _trust(of_patient, assessment, model)),
        ("slides", _slides(of_patient, record.pictures)),
    ]
    parts = tuple(
        PageSection(name, section.title, section.lead, tuple(section.blocks))
        for name, section in sections
        if section is not None
    )
    meta = (("Patient", record.patient), ("Model", model.name), *model.meta.items())
    return render_page(
        Page(f"Patient {record.patient}", model.synthetic, __version__, meta, parts, "Equipoise prediction")
    )


def _predictions(record: PatientRecord, found: Mapping[str, Any]) -> Section:
    sets = found["sets"].set_index("task") if len(found["sets"]) else None
    decisions = found["decisions"].set_index("task") if len(found["decisions"]) else None
    levels = sorted(set(found["sets"]["level"])) if len(found["sets"]) else []
    columns = ["Task", "Prediction", "At the threshold", f"Set or interval{_at(levels)}", "Answer"]
    rows: list[list[str | Cell]] = []
    answered = withheld = 0
    for task, of_task in record.predictions.groupby("task", sort=False):
        row: list[str | Cell] = [str(task), *_score(of_task)]
        if sets is None or task not in sets.index or decisions is None:
            rows.append([*row, "–", "–"])
            continue
        decision = decisions.loc[task]
        row.append(_set_text(sets.loc[task]))
        if decision["abstained"]:
            withheld += 1
            row.append(Cell("no answer", tone="warn", note=plural(len(decision["reasons"]), "reason")))
        else:
            answered += 1
            row.append(
                decision["answer"] or ("bound" if sets.loc[task]["kind"] == "survival" else "interval")
            )
        rows.append(row)
    lead = "The model states no sets or intervals, and so no answers: scores alone."
    if answered + withheld:
        given = (
            f"{plural(answered, 'task has', 'tasks have')} an answer" if answered else "No task has an answer"
        )
        lead = f"{given}; for {count(withheld)} of {count(answered + withheld)} the model abstains, for reasons below."
        lead = lead if withheld else f"{given}."
    caption = (
        "The prediction is the mean of the models. The set holds every label that the model cannot exclude; an answer "
        "is given where it holds exactly one and nothing speaks against the slides."
    )
    blocks: list[Block] = [Table(columns, rows, caption=caption)]
    if (later := _survival(record.predictions)) is not None:
        blocks.append(later)
    return Section("Predictions", lead, blocks)


def _survival(predictions: pd.DataFrame) -> Table | None:
    """Predicted survival past each time."""
    rows = predictions[predictions["output"] == "survival"]
    if rows.empty:
        return None
    times = list(dict.fromkeys(rows["class"]))
    table: list[list[str | Cell]] = []
    for task, of_task in rows.groupby("task", sort=False):
        chance = of_task.set_index("class")["score"]
        table.append([str(task), *(percent(float(chance[t])) if t in chance else "–" for t in times)])
    caption = "Probability to live longer than so many days without the event."
    return Table(["Task", *times], table, caption=caption, numeric=frozenset(range(1, len(times) + 1)))


def _score(rows: pd.DataFrame) -> tuple[str | Cell, str | Cell]:
    """Prediction and call of one task."""
    main = rows[rows["output"] != "survival"]
    row = main.sort_values("score", ascending=False).iloc[0]
    kind, score = row["kind"], float(row["score"])
    call = str(row["call"]) or "–"
    if kind == "regression":
        return number(score), "–"
    if kind == "survival":
        return f"risk {number(score, 2)}", call
    text = Cell(f"{row['class']} {number(score, 3)}")
    threshold = float(row["threshold"])
    note = f"threshold {number(threshold, 3)}" if np.isfinite(threshold) else ""
    return text, Cell(call, note=note)


def _set_text(row: pd.Series) -> str | Cell:
    if row["kind"] in ("binary", "multiclass"):
        return " or ".join(row["labels"]) or Cell("no label fits", tone="warn")
    low, high = float(row["low"]), float(row["high"])
    if row["kind"] == "survival":
        return f"at least {count(low)} days" if low > 0 else "no bound"
    if not np.isfinite([low, high]).all():
        return "without ends"
    return f"{number(low)} to {number(high)}"


def _at(levels: Sequence[float]) -> str:
    return f" at {levels[0]:.0%}" if len(levels) == 1 else ""


def _trust(found: Mapping[str, Any], assessment: Assessment, model: ModelRecord) -> Section:
    blocks: list[Block] = []
    of_slides = [
        *found["drift"][found["drift"]["flagged"].astype(bool)].itertuples(),
        *found["quality"][found["quality"]["severity"] != "remark"].itertuples(),
    ]
    items = [f"slide {row.slide}: {row.reason}" for row in of_slides]
    for row in found["decisions"].itertuples():
        items += [f"{row.task}: {reason}" for reason in row.reasons if reason not in items]
    if items:
        blocks.append(Notice("What speaks against an answer", items))
    remarks = found["quality"][found["quality"]["severity"] == "remark"]
    if len(remarks):
        said = [f"slide {row.slide}: {row.reason}" for row in remarks.itertuples()]
        blocks.append(Notice("Remarks on the slides", said, tone="muted"))
    batch = (
        assessment.batch[assessment.batch["flagged"].astype(bool)]
        if len(assessment.batch)
        else assessment.batch
    )
    if len(batch):
        said = [str(reason) for reason in batch["reason"]]
        blocks.append(Notice("The patients predicted together differ from those of training", said))
    if model.trust is None:
        blocks.append(Text("Nothing was exported with this model that says how far to trust it."))
    else:
        conformal = model.trust.conformal
        said = [*(conformal.guarantees if conformal else ()), *model.trust.notes]
        if said:
            blocks += [
                Heading("What the sets and intervals promise"),
                *(Text(text, tone="muted") for text in said),
            ]
    lead = (
        f"{plural(len(items), 'reason speaks', 'reasons speak')} against an answer."
        if items
        else "Nothing that was checked speaks against the predictions. What was not checked may."
    )
    return Section("How far to trust it", lead, blocks)


def _slides(found: Mapping[str, Any], pictures: Sequence[Picture]) -> Section | None:
    drift = found["drift"]
    blocks: list[Block] = []
    if len(drift):
        rows: list[list[str | Cell]] = []
        for row in drift.itertuples():
            unit = _UNITS.get(row.check, "sd from the mean")
            rows.append(
                [
                    str(row.slide),
                    _CHECKS.get(row.check, str(row.check)),
                    f"{number(float(row.value), 2)} {unit}",
                    f"{100 * float(row.percentile):.0f}",
                    Cell("differs", tone="bad") if row.flagged else Cell("like training", tone="muted"),
                ]
            )
        embedding = drift[drift["check"] == "embedding"]
        if len(embedding):
            worst = embedding.loc[embedding["percentile"].idxmax()]
            blocks.append(
                KeyNumbers(
                    [
                        KeyNumber("Slides", count(drift["slide"].nunique())),
                        KeyNumber(
                            "Distance of the features",
                            f"percentile {100 * float(worst['percentile']):.0f}",
                            f"{percent(float(worst['percentile']))} of the training slides are nearer to their mean",
                        ),
                    ]
                )
            )
        caption = (
            "Each slide against the training slides. A percentile near 50 is usual; for features and colour only high "
            "ones are unusual, for the others low ones too."
        )
        columns = ["Slide", "Check", "Value", "Percentile", ""]
        blocks.append(Table(columns, rows, caption=caption, numeric=frozenset({2, 3})))
    if pictures:
        blocks.append(Gallery(list(pictures)))
    if not blocks:
        return None
    flagged = int(drift[drift["flagged"].astype(bool)]["slide"].nunique()) if len(drift) else 0
    lead = f"{plural(drift['slide'].nunique() if len(drift) else 0, 'slide')} compared with those of training"
    return Section(
        "Slides", f"{lead}; {plural(flagged, 'differs', 'differ')}." if flagged else f"{lead}.", blocks
    )

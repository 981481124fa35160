"""Calibration, net benefit, operating points, errors and subgroups in the page of a run."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.report.blocks import Block, Cell, Figures, Gallery, Table, Text
from equipoise.platform.report.datasets import datasets_of
from equipoise.platform.report.entries import ClassificationParams, SectionParams
from equipoise.platform.report.formatting import interval, number
from equipoise.platform.report.operating_tables import error_blocks, operating_table
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections import classification, external, survival


@pytest.fixture(scope="module")
def run(run_folder: Path) -> RunFiles:
    return RunFiles(run_folder)


def text_of(cell: str | Cell) -> str:
    return cell if isinstance(cell, str) else cell.text


def figures(blocks: tuple[Block, ...] | list[Block]) -> dict[str, list[dict]]:
    items = [figure for block in blocks if isinstance(block, Figures) for figure in block.items]
    return {figure.slug: list(figure.data) for figure in items}


def test_classification_has_calibration_and_net_benefit_of_every_data_set(run: RunFiles) -> None:
    section = classification.build(run, ClassificationParams())
    assert section is not None
    drawn = figures(list(section.blocks))
    assert {"calibration-msi-data-sets", "decision-curve-msi-test-folds"} <= set(drawn)
    assert {"decision-curve-msi-external-crc-x", "calibration-grade-test-folds"} <= set(drawn)
    names = {trace.get("name") for trace in drawn["decision-curve-msi-test-folds"]}
    assert {"model", "treat all", "treat none"} <= names
    assert not [b for b in section.blocks if b.kind == "missing"]


def test_operating_points_show_the_numbers_of_their_file(run: RunFiles) -> None:
    task = run.tasks[0]
    table = operating_table(run, task)
    assert table is not None
    assert [text_of(row[0]) for row in table.rows] == ["test folds"] * 3 + ["external crc-x"] * 3
    assert run.operating_points is not None
    rows = run.operating_points
    ppv = rows[(rows["role"] == "external") & rows["headline"] & (rows["metric"] == "ppv")].iloc[0]
    cell = table.rows[3][list(table.columns).index("PPV")]
    assert text_of(cell) == f"{number(ppv['value'], 2)} ({interval(ppv['low'], ppv['high'], 2)})"
    assert isinstance(cell, Cell)
    assert cell.note == f"{ppv['successes']:.0f} of {ppv['n']:.0f}"
    assert isinstance(table.rows[0][1], Cell)
    assert table.rows[0][1].note == "used in headlines"


def test_errors_are_listed_with_the_thumbnails_there_are(run: RunFiles) -> None:
    assert run.predictions is not None
    task = run.tasks[0]
    rows = run.predictions[run.predictions["task"] == task.name]
    table, *rest = error_blocks(run, task, rows, most=3, pictures=2)
    assert isinstance(table, Table)
    assert len(table.rows) == 3
    distances = [float(text_of(row[5])) for row in table.rows]
    assert distances == sorted(distances, reverse=True)
    assert rest == [], "the slides of this run have no thumbnails of their names"
    assert error_blocks(run, task, rows, most=0, pictures=2) == []


def test_a_thumbnail_is_found_by_the_slide_of_the_patient(make_run: Callable, made: type) -> None:
    folder = make_run(made())
    run = RunFiles(folder)
    assert run.predictions is not None
    assert run.slides is not None
    task = run.tasks[0]
    rows = run.predictions[run.predictions["task"] == task.name]
    table, *_ = error_blocks(run, task, rows, most=1, pictures=1)
    assert isinstance(table, Table)
    patient = text_of(table.rows[0][0])
    slide = run.slides.loc[run.slides["patient"] == patient, "slide"].iloc[0]
    (folder / "qc" / "slide-00.jpg").rename(folder / "qc" / f"{slide}.jpg")
    gallery = error_blocks(RunFiles(folder), task, rows, most=1, pictures=1)[1]
    assert isinstance(gallery, Gallery)
    assert gallery.items[0].caption == f"{patient}: {slide}"
    assert gallery.items[0].uri.startswith("data:image/jpeg;base64,")


def test_survival_says_how_predicted_survival_compares(run: RunFiles) -> None:
    section = survival.build(run, SectionParams())
    assert section is not None
    tables = [b for b in section.blocks if isinstance(b, Table)]
    beside = [b.beside for b in section.blocks if isinstance(b, Figures) and b.beside is not None]
    shown = [t for t in [*tables, *beside] if "Risk group" in t.columns]
    assert len(shown) == 1
    assert text_of(shown[0].rows[0][0]) == "test folds"
    figures = [f for b in section.blocks if isinstance(b, Figures) for f in b.items if "decision" in f.slug]
    assert figures
    assert all(" years, " in f.title for f in figures), [f.title for f in figures]


def test_one_matrix_has_every_task_and_cohort_and_says_n(run: RunFiles) -> None:
    section = external.build(run, SectionParams())
    matrix = next(b for b in section.blocks if isinstance(b, Table))
    assert [text_of(row[0]) for row in matrix.rows] == [task.name for task in run.tasks]
    assert list(matrix.columns)[-1] == "External crc-x"
    values = [cell for row in matrix.rows for cell in row[1:] if isinstance(cell, Cell) and cell.text != "–"]
    assert all(cell.note.startswith("n = ") for cell in values)
    assert "Green: the intervals lie above" in matrix.caption
    few = [cell for cell in values if "9 positive" in cell.note]
    assert few
    assert all(cell.tone != "good" for cell in few), "nine positive patients make nothing green"
    slugs = [figure.slug for b in section.blocks if isinstance(b, Figures) for figure in b.items]
    assert slugs == ["forest-msi-auroc", "forest-msi-subgroups-auroc"]
    about = next(b.text for b in section.blocks if isinstance(b, Text) and "Pairs of patients" in b.text)
    assert "corrected for none of the others" in about


def test_a_run_without_the_tables_names_the_command(make_run: Callable, made: type) -> None:
    folder = make_run(made(latents=False))
    for name in ("calibration", "operating_points", "survival_calibration", "subgroups"):
        (folder / "evaluation" / f"{name}.csv").unlink()
    run = RunFiles(folder)
    section = classification.build(run, ClassificationParams())
    assert section is not None
    missing = [b for b in section.blocks if b.kind == "missing"]
    assert {b.file for b in missing} == {"evaluation/calibration.csv", "evaluation/operating_points.csv"}
    assert {b.command for b in missing} == {"equipoise evaluate"}
    assert not [b for b in external.build(run, SectionParams()).blocks if "Subgroups" in str(b)]


def test_data_sets_start_with_all_test_patients() -> None:
    table = pd.DataFrame(
        {"role": ["test", "test", "test", "external", "external"], "cohort": ["a", "pooled", "b", "all", "z"]}
    ).assign(task="MSI")
    assert [(d.name, d.cohort) for d in datasets_of(table, "MSI")] == [
        ("test folds", "pooled"),
        ("external z", "z"),
    ]
    assert list(datasets_of(None, "MSI")) == []

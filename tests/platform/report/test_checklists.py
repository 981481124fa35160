"""Checklists: every item once, filled from the run or open, and written beside the report; methods and glossary."""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.report.checklists.checklist import (
    CHECKLISTS,
    FILLED,
    OPEN,
    PARTLY,
    fill,
    write_checklists,
)
from equipoise.platform.report.checklists.evidence import EVIDENCE
from equipoise.platform.report.glossary import TERMS, terms_in
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.methods import methods_paragraph


@pytest.mark.parametrize(("name", "rows", "last"), [("tripod_ai", 52, "27"), ("stard_ai", 48, "40")])
def test_every_item_is_there_once_and_has_a_status(run_folder: Path, name: str, rows: int, last: str) -> None:
    items = fill(name, RunFiles(run_folder))
    numbers = [item.number for item in items]
    assert len(numbers) == len(set(numbers)) == rows
    assert {n.rstrip("abcdefg") for n in numbers} == {str(k) for k in range(1, int(last) + 1)}
    by_number = {item.number: item for item in items}
    ethics = by_number["17" if name == "tripod_ai" else "6"]
    assert (ethics.status, ethics.answer) == (OPEN, "")
    performance = by_number["23a" if name == "tripod_ai" else "31"]
    metrics = pd.read_csv(run_folder / "evaluation/metrics.csv", keep_default_na=False)
    row = metrics.query("role == 'test' and task == 'MSI' and metric == 'auroc' and cohort == 'all'")
    value = float(row.query("site == 'all' and fold == 'all' and predictor == 'model'").iloc[0]["value"])
    assert performance.status == FILLED
    assert all((item.status == PARTLY) == ("Open:" in item.answer) for item in items)
    sources = by_number["5a" if name == "tripod_ai" else "11"]
    assert sources.status == PARTLY, "the run does not know whom its cohorts represent"
    assert f"AUROC of MSI: test folds {value:.2f}" in performance.answer


def test_an_empty_run_leaves_everything_open(tmp_path: Path) -> None:
    for name in CHECKLISTS:
        assert {item.status for item in fill(name, RunFiles(tmp_path))} == {OPEN}


def test_every_kind_of_evidence_is_asked_for(run_folder: Path) -> None:
    written = write_checklists(RunFiles(run_folder), run_folder)
    tables = [pd.read_csv(path, keep_default_na=False) for path in written]
    assert [path.name for path in written] == ["tripod_ai.csv", "stard_ai.csv"]
    assert all(table["synthetic"].all() for table in tables)
    import equipoise.platform.report.checklists.checklist as module

    used = {
        key
        for name in CHECKLISTS
        for key in pd.read_csv(
            Path(module.__file__).parent / f"{name}.csv", dtype=str, keep_default_na=False
        )["evidence"]
    }
    assert used - {""} == set(EVIDENCE)


def test_the_methods_paragraph_states_settings_and_counts_of_the_run(run_folder: Path) -> None:
    run = RunFiles(run_folder)
    text = methods_paragraph(run)
    assert run.patients is not None
    develop = int((run.patients["role"] == "develop").sum())
    assert f"cross-validated on {develop} patients of 2 cohorts (crc-a and crc-b)" in text
    assert "tested on 36 patients of crc-x" in text
    assert "0.5 µm per pixel" in text
    assert "uncertainty+pcgrad" in text
    assert "3 folds (scheme kfold)" in text
    assert text.startswith("SYNTHETIC DATA")
    assert "[Source, dates, ethics approval and consent.]" in text


def test_the_glossary_has_the_terms_of_a_text_and_no_other() -> None:
    assert set(terms_in("An AUROC of two folds, with its CI. Cite PPVs.")) == {"AUROC", "fold", "CI", "PPV"}
    assert terms_in("nothing of it") == {}
    assert all(meaning.endswith(".") for meaning in TERMS.values())


def test_nothing_is_said_about_external_cohorts_that_are_not_there(run_folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    metrics = pd.read_csv(copy / "evaluation/metrics.csv", keep_default_na=False, dtype=str)
    metrics[metrics["role"] != "external"].to_csv(copy / "evaluation/metrics.csv", index=False)
    assert "External cohorts were scored" in methods_paragraph(RunFiles(run_folder))
    assert "External cohorts" not in methods_paragraph(RunFiles(copy))

"""Reading a run folder: absent and broken files are named, never a crash."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.report.run_files import FILES, RunFiles


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def test_a_complete_run(run_folder: Path) -> None:
    run = RunFiles(run_folder)
    assert [(t.name, t.kind, t.main) for t in run.tasks] == [
        ("MSI", "binary", True),
        ("LISS", "regression", False),
        ("Grade", "multiclass", False),
        ("OS", "survival", False),
    ]
    assert run.tasks[2].classes == ("G1", "G2", "G3")
    assert run.synthetic
    assert run.confidence == 0.95
    assert len(run.thumbnails) == 3
    assert list(run.histories) == ["0-0", "0-1", "0-2"]
    assert run.leakage is not None
    assert run.leakage["ok"].all()
    assert run.missing(*FILES) == []
    assert run.problems == {}


def test_an_empty_folder(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    assert run.study == run.status == run.environment == {}
    assert run.patients is run.slides is run.metrics is run.predictions is run.leakage is None
    assert run.flow == run.splits == run.warnings == run.thumbnails == run.tasks == []
    assert not run.synthetic
    blocks = run.missing(*FILES)
    assert [b.file for b in blocks] == list(FILES)
    assert all(b.command.startswith("equipoise ") for b in blocks)


BROKEN = {
    "provenance/resolved.yaml": ("study", "a: [1"),
    "status.json": ("status", "[1, 2]"),
    "manifest/flow.json": ("flow", '[{"cohort": "a"}]'),
    "manifest/splits.json": ("splits", "{"),
    "manifest/warnings.json": ("warnings", '"text"'),
    "manifest/patients.parquet": ("patients", "no parquet"),
    "manifest/exclusions.csv": ("exclusions", "a,b\n1,2\n"),
    "manifest/labels.json": (
        "labels",
        '[{"task": "MSI", "cohort": "a", "patients": 2, "usable": 1, "losses": ["no value"]}]',
    ),
    "manifest/leakage.csv": ("leakage", ""),
    "evaluation/metrics.csv": ("metrics", "task\nMSI\n"),
    "evaluation/predictions.parquet": ("predictions", "x"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named_with_the_reason(copy: Path, name: str) -> None:
    attribute, content = BROKEN[name]
    (copy / name).write_text(content)
    run = RunFiles(copy)
    value = getattr(run, attribute)
    assert value is None or len(value) == 0
    assert run.problems[name]
    assert run.missing(name)[0].problem == run.problems[name]


def test_splits_may_also_be_a_bare_list(copy: Path) -> None:
    folds = RunFiles(copy).splits
    assert [f["index"] for f in folds] == [0, 1, 2]
    (copy / "manifest/splits.json").write_text(json.dumps(folds))
    assert RunFiles(copy).splits == folds


def test_yaml_cannot_run_code(copy: Path) -> None:
    (copy / "provenance/resolved.yaml").write_text("!!python/object/apply:os.system ['touch /tmp/never']")
    run = RunFiles(copy)
    assert run.study == {}
    assert "is not allowed" in run.problems["provenance/resolved.yaml"]


def test_without_a_study_tasks_come_from_the_predictions(copy: Path) -> None:
    (copy / "provenance/resolved.yaml").unlink()
    run = RunFiles(copy)
    kinds = {t.name: t.kind for t in run.tasks}
    assert kinds == {"MSI": "binary", "LISS": "regression", "Grade": "multiclass", "OS": "survival"}
    assert sum(t.main for t in run.tasks) == 1


def test_slides_without_states_are_listed_not_ok(copy: Path) -> None:
    path = copy / "manifest/slides.parquet"
    pd.read_parquet(path)[["slide", "patient", "cohort", "path", "mpp"]].to_parquet(path)
    run = RunFiles(copy)
    assert run.slides is not None
    assert set(run.slides["status"]) == {"listed"}


@pytest.mark.parametrize("where", ["study", "status", "inputs", "barcode", "nowhere"])
def test_synthetic_is_said_or_seen(tmp_path: Path, where: str) -> None:
    (tmp_path / "manifest").mkdir()
    (tmp_path / "provenance").mkdir()
    barcode = "SYN-S1-CA001" if where == "barcode" else "TCGA-AA-0001"
    patients = {"patient": ["TCGA-AA-0000", barcode], "cohort": "a", "role": "develop", "site": "s"}
    pd.DataFrame(patients).to_parquet(tmp_path / "manifest/patients.parquet")
    said = json.dumps({"synthetic": True})
    files = {"study": "provenance/resolved.yaml", "status": "status.json", "inputs": "provenance/inputs.json"}
    if where in files:
        (tmp_path / files[where]).write_text(said)
    assert RunFiles(tmp_path).synthetic is (where != "nowhere")

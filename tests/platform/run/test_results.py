"""Results of a run folder as tables; what is missing is named with the command that writes it."""

import json
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.run.results import RunResults


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run that has come as far as its folds."""
    manifest = tmp_path / "manifest"
    manifest.mkdir()
    steps = {"validate": {"status": "done"}, "extract": {"status": "failed"}}
    (tmp_path / "status.json").write_text(json.dumps({"status": "failed", "steps": steps}))
    patients = pd.DataFrame({"patient": ["NA", "b"], "cohort": "c", "role": "develop", "site": "s"})
    patients.to_parquet(manifest / "patients.parquet")
    slides = pd.DataFrame({"slide": ["1.svs"], "patient": ["NA"], "cohort": ["c"]})
    slides.to_parquet(manifest / "slides.parquet")
    (manifest / "exclusions.csv").write_text("cohort,patient,slide,stage,reason\nc,x,,labels,no label\n")
    (manifest / "flow.json").write_text(json.dumps([{"cohort": "c", "stage": "listed", "patients": 3}]))
    folds = [{"repeat": 0, "index": 0, "train": ["NA"], "val": [], "test": ["b"]}]
    (manifest / "splits.json").write_text(json.dumps({"folds": folds}))
    return tmp_path


def test_tables_of_an_unfinished_run(folder: Path) -> None:
    run = RunResults(folder)
    assert run.status["status"] == "failed"
    assert set(run.manifest) == {"patients", "slides", "exclusions", "flow"}
    assert run.manifest["patients"]["patient"].tolist() == ["NA", "b"]
    assert run.manifest["slides"]["status"].tolist() == ["listed"]
    assert run.manifest["exclusions"]["reason"].tolist() == ["no label"]
    assert run.folds.to_dict("list") == {
        "repeat": [0, 0],
        "fold": [0, 0],
        "part": ["train", "test"],
        "patient": ["NA", "b"],
    }
    assert "failed: validate done" in repr(run)


@pytest.mark.parametrize(
    ("name", "command"),
    [("predictions", "train"), ("metrics", "evaluate"), ("study", "run"), ("history", "train")],
)
def test_missing_files_name_their_command(folder: Path, name: str, command: str) -> None:
    with pytest.raises(DataError) as caught:
        getattr(RunResults(folder), name)
    assert f"equipoise {command}" in str(caught.value)


def test_damaged_files_say_what_is_wrong(folder: Path) -> None:
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "predictions.parquet").write_text("not Parquet")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        _ = RunResults(folder).predictions


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run here"):
        RunResults(tmp_path)

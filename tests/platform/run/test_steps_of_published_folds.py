"""A study on published folds: who is tested, who is left out and why, and what the run folder keeps."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.steps import run_steps

N = 24
STUDY = """\
version: 1
name: t
cohorts:
  - {name: A, role: develop, clinical: clinical.csv}
tasks:
  - {name: MSI, type: binary, column: MSI, positive: 1, negative: [0]}
tables: {clinical: [{column: AGE, type: number}]}
model: {kind: clinical}
splits: {scheme: file, files: folds/splits_*.csv}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    patients = [f"p{i:02}" for i in range(N)]
    pd.DataFrame({"PATIENT": patients, "MSI": np.arange(N) % 2, "AGE": 40 + np.arange(N)}).to_csv(
        tmp_path / "clinical.csv", index=False
    )
    (tmp_path / "folds").mkdir()
    for k in range(2):
        test = patients[10 * k : 10 * k + 10]
        train = [p for p in patients[:20] if p not in test]
        parts = {"train": pd.Series([*train, "gone"]), "val": pd.Series(test)}
        pd.DataFrame(parts).to_csv(tmp_path / "folds" / f"splits_{k}.csv")
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path


def validate(folder: Path) -> RunFolder:
    loaded = load_study(folder / "study.yaml")
    run = RunFolder.open(loaded, str(folder / "run"), "auto")
    run_steps(loaded, run, ["validate"])
    return run


def test_the_run_folder_names_folds_and_who_is_in_none(study: Path) -> None:
    run = validate(study)
    folds = read_json(run.manifest / "splits.json")["folds"]
    assert [fold["title"] for fold in folds] == ["splits_0", "splits_1"]
    assert [set(fold["test"]) for fold in folds] == [
        {f"p{i:02}" for i in range(10 * k, 10 * k + 10)} for k in range(2)
    ]
    assert [fold["unknown"] for fold in folds] == [["gone"], ["gone"]]
    lost = pd.read_csv(run.manifest / "exclusions.csv")
    assert lost["patient"].tolist() == ["p20", "p21", "p22", "p23"]
    assert set(zip(lost["stage"], lost["reason"], strict=True)) == {
        ("in folds", "in no fold of splits.files")
    }
    warnings = json.dumps(read_json(run.manifest / "warnings.json"))
    assert "1 names of the published folds are no patients of the study" in warnings
    assert {"folds/splits_0.csv", "folds/splits_1.csv"} <= set(read_json(run.provenance / "inputs.json"))


def test_files_that_change_during_a_run_stop_it(study: Path) -> None:
    validate(study).folds.mkdir()
    text = (study / "folds" / "splits_1.csv").read_text()
    (study / "folds" / "splits_1.csv").write_text(text.replace("p10", "p20"))
    with pytest.raises(DataError, match=r"changed since this run began: folds/splits_1\.csv"):
        validate(study)

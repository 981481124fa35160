"""The run folder: atomic files, correct status, one study per folder."""

from pathlib import Path

import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.run.folder import RunFolder, StepResult
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.provenance import record
from equipoise.platform.study.schema import Study

TEXT = """\
version: 1
name: small
cohorts: [{name: A, role: develop, clinical: a.csv}]
tasks: [{name: MSI, type: binary, column: MSI, positive: MSI-H}]
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "study.yaml").write_text(TEXT)
    (tmp_path / "a.csv").write_text("PATIENT,MSI\np1,MSI-H\np2,MSS\n")
    return load_study(tmp_path / "study.yaml")


def test_steps_are_recorded_and_later_ones_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    for name in ("validate", "extract", "train"):
        assert folder.run_step(name, lambda: StepResult({"n": 3})) == StepResult({"n": 3}, complete=True)
    assert folder.status()["steps"]["train"]["n"] == 3
    assert folder.to_do() == ["evaluate", "report"]

    def broken() -> StepResult:
        raise ValueError("broken on purpose")

    with pytest.raises(ValueError, match="broken"):
        folder.run_step("extract", broken)
    status = folder.status()
    assert status["steps"]["extract"]["error"] == "broken on purpose"
    assert "train" not in status["steps"]
    assert folder.to_do() == ["extract", "train", "evaluate", "report"]
    folder.finish({"job": "run", "status": "failed", "error": "broken on purpose"})
    folder.finish({"job": "validate", "status": "ok"})
    assert "error" not in folder.status()
    events = folder.events_file.read_text().splitlines()
    assert len(events) == 8


def test_a_run_folder_belongs_to_one_study(tmp_path: Path, study: Study) -> None:
    out = str(tmp_path / "run")
    record(study, folder := RunFolder.open(study, out, "auto"))
    other = load_study(study.file, {"training.lr": 0.5, "evaluation.bootstrap": 60})
    folder.folds.mkdir()
    with pytest.raises(StudyError) as caught:
        RunFolder.open(other, out, "auto")
    assert "training.lr: 0.0001 → 0.5" in str(caught.value)
    assert "bootstrap" not in str(caught.value)  # may change: it changes no prediction
    RunFolder.open(study, out, "must")


def test_study_and_tables_may_be_corrected_until_there_are_results(tmp_path: Path, study: Study) -> None:
    out = str(tmp_path / "run")
    record(study, RunFolder.open(study, out, "auto"))
    (tmp_path / "a.csv").write_text("PATIENT,MSI\np1,MSS\np2,MSI-H\n")
    other = load_study(study.file, {"training.lr": 0.5})
    record(other, folder := RunFolder.open(other, out, "auto"))
    folder.qc.mkdir()
    record(other, RunFolder.open(other, out, "must"))  # what was corrected is what the run belongs to
    with pytest.raises(StudyError, match=r"training\.lr: 0\.5 → 0\.0001"):
        RunFolder.open(study, out, "auto")
    (tmp_path / "a.csv").write_text("PATIENT,MSI\np1,MSI-H\np2,MSS\n")
    with pytest.raises(DataError, match=r"changed since this run began: a\.csv"):
        record(other, folder)


def test_resume_never_moves_aside_and_must_requires(tmp_path: Path, study: Study) -> None:
    out = tmp_path / "run"
    with pytest.raises(StudyError, match="no run to resume"):
        RunFolder.open(study, str(out), "must")
    record(study, RunFolder.open(study, str(out), "auto"))
    assert not RunFolder.open(study, str(out), "never").root.exists()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.csv").touch()
    with pytest.raises(StudyError, match="holds no run, so it is not renamed"):
        RunFolder.open(study, str(tmp_path / "data"), "never")
    record(study, RunFolder.open(study, str(tmp_path), "auto"))
    with pytest.raises(StudyError, match="the study file lies in this run folder"):
        RunFolder.open(study, str(tmp_path), "never")
    assert (tmp_path / "run.1" / "provenance" / "resolved.yaml").exists()


def test_changed_tables_are_noticed(tmp_path: Path, study: Study) -> None:
    folder = RunFolder(tmp_path / "run")
    record(study, folder)
    folder.folds.mkdir()
    record(study, folder)  # the same tables again
    (tmp_path / "a.csv").write_text("PATIENT,MSI\np1,MSS\n")
    with pytest.raises(DataError, match=r"changed since this run began: a\.csv"):
        record(study, folder)


def test_the_table_of_sites_is_an_input(tmp_path: Path, study: Study) -> None:
    (tmp_path / "tss.csv").write_text("code,institution\nAA,Here\n")
    federation = {"sites": {"scheme": "institution", "table": "tss.csv"}, "strategy": "fedavg"}
    federated = study.model_copy(update={"federation": FederationParams.model_validate(federation)})
    folder = RunFolder(tmp_path / "run")
    record(study, folder)  # a version that did not look at the table
    folder.folds.mkdir()
    record(federated, folder)
    (tmp_path / "tss.csv").write_text("code,institution\nAA,Elsewhere\n")
    with pytest.raises(DataError, match=r"changed since this run began: tss\.csv"):
        record(federated, folder)


def test_the_adapter_of_rna_is_an_input(tmp_path: Path, study: Study) -> None:
    files = [tmp_path / "adapter" / name for name in ("config.json", "model.safetensors")]
    files[0].parent.mkdir()
    for file in files:
        file.write_text("before")
    (tmp_path / "study.yaml").write_text(
        TEXT.replace("clinical: a.csv", "clinical: a.csv, omics: {rna: rna.csv}")
        + "model: {kind: omics}\n"
        + "tables: {rna: {encoder: {name: pca, folder: pca}, adapter: adapter}}\n"
    )
    (tmp_path / "rna.csv").write_text("PATIENT,A\np1,1\np2,2\n")
    adapted = load_study(tmp_path / "study.yaml")
    folder = RunFolder(tmp_path / "run")
    record(adapted, folder)
    folder.folds.mkdir()
    record(adapted, folder)
    files[1].write_text("after")
    with pytest.raises(DataError, match=r"changed since this run began: adapter/model\.safetensors"):
        record(adapted, folder)


def test_provenance_says_code_packages_and_inputs(tmp_path: Path, study: Study) -> None:
    folder = RunFolder(tmp_path / "run")
    record(study, folder)
    environment = read_json(folder.provenance / "environment.json")
    assert environment["versions"]["torch"].startswith("2.")
    assert "numpy==" in (folder.provenance / "packages.txt").read_text()
    assert len(read_json(folder.provenance / "inputs.json")["a.csv"]) == 64

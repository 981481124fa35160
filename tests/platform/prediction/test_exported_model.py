"""An exported model holds what prediction needs and nothing of a patient; what was changed is refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.evaluation.thresholds import fold_thresholds
from equipoise.platform.prediction.describe import description
from equipoise.platform.prediction.exported_model import ExportedModel, read_exported
from equipoise.platform.prediction.sealed_folder import seal
from equipoise.platform.run.model_export import export_model
from equipoise.platform.run.results import RunResults
from equipoise.platform.run.steps import RunContext
from equipoise.platform.training.crossval import load_fold


@pytest.fixture
def copy(exported: ExportedModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported.path, tmp_path / "copy"))


def changed(folder: Path, name: str, change) -> None:
    """A JSON file of the folder with a change, and the list as somebody would write it who wants to hide it."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    seal(folder)


def test_the_folder_holds_the_models_of_the_run(finished: RunContext, exported: ExportedModel) -> None:
    assert sorted(exported.sealed.files) == sorted({*exported.config.expected_files, "trust.json"})
    assert [member.name for member in exported.config.members] == ["0-0", "0-1"]
    for member, trained in zip(exported.config.members, exported.members(), strict=True):
        fold = finished.folder.folds / member.name
        weights = (exported.path / member.file("model.safetensors")).read_bytes()
        assert weights == (fold / "model.safetensors").read_bytes()
        for name, tensor in load_fold(fold).model.state_dict().items():
            assert torch.equal(trained.model.state_dict()[name], tensor)
    assert "ensemble of 2 fold models" in description(exported)
    assert exported.sealed.sha256 in description(exported)


def test_thresholds_are_those_of_the_evaluation(finished: RunContext, exported: ExportedModel) -> None:
    table = RunResults(finished.folder.root).predictions
    params = finished.study.evaluation.threshold
    wanted = fold_thresholds(table[table["task"] == "MSI"], params)
    found = exported.points.tasks["MSI"].cutoffs
    assert found == {f"{r}-{k}": value for (r, k), value in wanted.items()}
    assert all(value is not None for value in found.values())


def test_nothing_of_a_patient_or_a_place_leaves(finished: RunContext, exported: ExportedModel) -> None:
    patients = finished.inputs.cohorts.patients
    days = {f"{value:.4f}" for value in patients["OS.time"].dropna()}
    assert len(days) > 20
    private = {*patients["patient"], *finished.inputs.cohorts.slides["slide"], str(finished.study.base)}
    private |= {str(Path.cwd()), str(Path.home()) + "/"}
    for name in ("MANIFEST.json", *exported.sealed.files):
        content = (exported.path / name).read_bytes()
        for text in private:
            assert text.encode() not in content, (name, text)
    sites = set(patients["site"]) - set(patients["cohort"])
    assert len(sites) > 1
    for name in exported.sealed.files:
        if not name.endswith(".safetensors"):
            assert not sites & set(re.findall(r"\w+", (exported.path / name).read_text())), name
    for member in exported.config.members:
        preprocessing = read_json(exported.path / member.file("preprocessing.json"))
        assert preprocessing["sites"] == preprocessing["cohorts"] == []
        assert "days" not in json.dumps(preprocessing)


def test_the_card_reads_as_one(finished: RunContext, exported: ExportedModel) -> None:
    text = (exported.path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    data = yaml.safe_load(front)
    assert data["license"] == "other"
    assert "synthetic" in data["tags"]
    metrics = RunResults(finished.folder.root).metrics
    rows = metrics[
        (metrics["task"] == "MSI") & (metrics["metric"] == "auroc") & (metrics["predictor"] == "model")
        & (metrics["fold"] == "all") & (metrics["site"] == "all") & (metrics["class"] == "")
    ]  # fmt: skip
    external = rows[(rows["role"] == "external") & (rows["cohort"] == "syn-crc-b")]["value"].item()
    said = {
        entry["dataset"]["name"]: entry["metrics"][0]["value"]
        for entry in data["model-index"][0]["results"]
        if entry["task"]["name"] == "MSI"
    }
    assert said["syn-crc-b"] == pytest.approx(external, abs=1e-4)
    for heading in ("Intended use", "Training data", "Performance", "Subgroups", "Limits", "Versions"):
        assert f"## {heading}" in body
    assert "SYNTHETIC" in body
    assert "not a medical device" in body


def test_the_card_has_sites_by_number_and_subgroups(finished: RunContext, exported: ExportedModel) -> None:
    text = (exported.path / "README.md").read_text().split("## Subgroups and sites")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    metrics = RunResults(finished.folder.root).metrics
    rows = metrics[
        (metrics["task"] == "LF") & (metrics["metric"] == "pearson") & (metrics["predictor"] == "model")
        & (metrics["fold"] == "all") & (metrics["site"] != "all") & (metrics["cohort"] == "syn-crc-b")
        & (metrics["role"] == "external") & metrics["value"].notna()
    ]  # fmt: skip
    said = [
        line for line in lines if line[:2] == ["LF", "external syn-crc-b"] and line[2].startswith("site ")
    ]
    assert len(rows) > 1
    assert len({line[2] for line in said}) == len(said) == len(rows)
    assert [int(line[-1]) for line in said] == rows["n"].astype(int).tolist()
    groups = pd.read_csv(finished.folder.root / "evaluation" / "subgroups.csv")
    women = groups[
        (groups["task"] == "LF") & (groups["cohort"] == "syn-crc-b") & (groups["group"] == "female")
    ]
    (line,) = [line for line in lines if line[:4] == ["LF", "external syn-crc-b", "SEX", "female"]]
    assert int(line[-1]) == women["n"].item()
    assert float(line[5].split()[0].replace("−", "-")) == pytest.approx(women["value"].item(), abs=0.006)


def test_every_file_is_guarded(copy: Path) -> None:
    """A byte in the middle of every file, every file removed, and a file added."""
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        before = file.read_bytes()
        middle = len(before) // 2
        file.write_bytes(before[:middle] + bytes([before[middle] ^ 8]) + before[middle + 1 :])
        with pytest.raises(DataError):
            read_exported(copy)
        file.unlink()
        with pytest.raises(DataError, match="missing"):
            read_exported(copy)
        file.write_bytes(before)
    (copy / "extra.pkl").write_bytes(b"x")
    with pytest.raises(DataError, match="not part of the export"):
        read_exported(copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c.update(format="equipoise-model/2"), "this release reads"),
        ("config.json", lambda c: c.update(surprise=1), "surprise"),
        ("config.json", lambda c: c["members"][0].update(name="../x"), "members.0.name"),
        ("config.json", lambda c: c["members"].append(dict(c["members"][0], name="7-7")), "7-7"),
        ("config.json", lambda c: c["features"]["tiles"].update(dim=-1), "must be positive"),
        ("thresholds.json", lambda c: c["MSI"].update(cutoffs={"0-0": "high"}), "cutoffs"),
    ],
)
def test_a_resealed_change_of_the_description_is_refused(copy: Path, name: str, change, message: str) -> None:
    changed(copy, name, change)
    with pytest.raises(DataError, match=message):
        read_exported(copy)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("config.json", lambda c: c["params"].update(dim=17), "do not fit"),
        ("config.json", lambda c: c["tasks"].reverse(), "do not belong together"),
        ("config.json", lambda c: c["features"]["reads"].update(dim=12), "do not belong together"),
        ("models/0-0/preprocessing.json", lambda c: c.update(omics={"rna": 5}), "do not belong together"),
        ("models/0-0/preprocessing.json", lambda c: c.pop("tasks"), "describes no model"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(copy: Path, name: str, change, message: str) -> None:
    changed(copy, name, change)
    with pytest.raises(DataError, match=message):
        read_exported(copy).members()


def test_a_model_that_is_not_installed_is_named(copy: Path) -> None:
    changed(copy, "config.json", lambda c: c.update(kind="of_another_package"))
    with pytest.raises(StudyError, match="of_another_package"):
        read_exported(copy).members()


def test_a_file_more_in_the_list_is_refused(copy: Path) -> None:
    (copy / "model.bin").write_bytes(b"x")
    seal(copy)
    with pytest.raises(DataError, match=r"model\.bin is no file of an exported model"):
        read_exported(copy)


def test_places_are_left_out_and_asked_for(copy: Path, tmp_path: Path) -> None:
    def local(config: dict[str, Any]) -> None:
        config["params"]["weights"] = None
        config["local_files"] = [{"key": "params.weights", "name": "encoder.bin"}]

    changed(copy, "config.json", local)
    model = read_exported(copy)
    with pytest.raises(StudyError, match=r"--file params\.weights=encoder\.bin"):
        model.with_files({})
    with pytest.raises(StudyError, match="asks for no file"):
        model.with_files({"params.weight": "x"})
    with pytest.raises(StudyError, match="there is no file"):
        model.with_files({"params.weights": str(tmp_path / "nothing")})
    (tmp_path / "encoder.bin").write_bytes(b"x")
    given = model.with_files({"params.weights": str(tmp_path / "encoder.bin")})
    assert given.config.params["weights"] == str(tmp_path / "encoder.bin")


def test_what_cannot_be_exported_says_why(
    finished: RunContext, exported: ExportedModel, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="not empty"):
        export_model(exported.path, run=finished.folder.root)
    with pytest.raises(StudyError, match="no run here"):
        export_model(tmp_path / "x", run=tmp_path)
    with pytest.raises(StudyError, match="say what to export"):
        export_model(tmp_path / "x")
    run = Path(shutil.copytree(finished.folder.root, tmp_path / "run"))
    (run / "manifest" / "model_inputs.json").unlink()
    with pytest.raises(StudyError, match=r"study\.yaml"):
        export_model(tmp_path / "x", run=run)
    (run / "evaluation" / "predictions.parquet").unlink()
    with pytest.raises(StudyError, match="not evaluated"):
        export_model(tmp_path / "x", run=run)
    weights = run / "folds" / "0-1" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"model\.safetensors is not what was written"):
        export_model(tmp_path / "x", run=run)
    assert not (tmp_path / "x").exists()


def test_a_refit_learns_from_everybody(finished: RunContext, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished.folder.root, tmp_path / "run"))
    model = export_model(tmp_path / "x", run=run, study=finished.study, refit=True)
    (member,) = model.config.members
    folds = [read_json(run / "folds" / name / "config.json")["best_epoch"] for name in ("0-0", "0-1")]
    assert (member.name, member.epochs) == ("refit", round(sum(folds) / 2))
    everyone = (finished.inputs.cohorts.patients["role"] == "develop").sum()
    assert f"all {everyone} development patients" in model.config.combined_note
    assert "tested on nobody" in (model.path / "README.md").read_text()
    weights = run / "export" / "refit" / "0-0" / "model.safetensors"
    written = weights.stat().st_mtime_ns
    again = export_model(tmp_path / "again", run=run, study=finished.study, refit=True)
    assert weights.stat().st_mtime_ns == written
    assert again.sealed.sha256 == model.sealed.sha256
    with pytest.raises(StudyError, match=r"-c study\.yaml"):
        export_model(tmp_path / "y", run=run, refit=True)

"""Exported jobs: plain JSON without code, patients or paths; and what sites make of them. NVFlare is not needed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.nvflare.export import CONTROLLER, EXECUTOR, export_job
from equipoise.platform.federation.remote.job import remote_job
from equipoise.platform.run.federated_site import (
    SITE_VARIABLE,
    exported_job,
    read_site,
    write_site_study,
)
from equipoise.platform.run.loading import load_study


def strings_of(value: Any) -> list[str]:
    """All texts of plain data, keys included."""
    if isinstance(value, Mapping):
        return [text for key, item in value.items() for text in [str(key), *strings_of(item)]]
    if isinstance(value, list):
        return [text for item in value for text in strings_of(item)]
    return [value] if isinstance(value, str) else []


def test_a_job_is_plain_json_without_code_patients_or_paths(hospitals: Path, tmp_path: Path) -> None:
    study = load_study(hospitals / "study.yaml")
    folder = export_job(remote_job(study), tmp_path / "job")
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    assert files == ["app/config/config_fed_client.json", "app/config/config_fed_server.json", "meta.json"]
    contents = [json.loads((folder / name).read_text()) for name in files]
    texts = [text for content in contents for text in strings_of(content)]
    assert any(text == "MSI" for text in texts)
    for text in texts:
        assert "SECRET" not in text
        assert ".csv" not in text
        assert not Path(text).is_absolute(), text
        assert not any(str(folder) in text for folder in (hospitals, tmp_path)), text
        assert "cohorts" not in text
    assert contents[2]["deploy_map"] == {"app": ["@ALL"]}
    assert contents[1]["workflows"][0]["path"] == CONTROLLER
    assert contents[0]["executors"][0]["executor"]["path"] == EXECUTOR
    assert "nvflare" not in sys.modules
    assert exported_job(folder) == remote_job(study)
    export_job(remote_job(study), folder)  # a job is replaced, anything else is not
    (folder / "mine.txt").write_text("mine")
    with pytest.raises(StudyError, match="something else than a job"):
        export_job(remote_job(study), folder)


def test_all_arguments_are_written(hospitals: Path) -> None:
    """So that other defaults of a later version change nothing: the job says what it leaves to nobody."""
    data = remote_job(load_study(hospitals / "study.yaml")).model_dump(mode="json")
    for name, value in [("momentum", 0.0), ("optimizer", "sgd"), ("batch", 8)]:
        assert data["federation"]["local"][name] == value
    assert data["federation"]["server_aggregation"] == "mean"
    assert {"dropout", "network", "dim"} <= set(data["recipe"]["model_params"])
    assert {"epochs", "lr", "batch", "threads"} <= set(data["recipe"]["training"])
    assert data["federation"]["backend"] == "auto"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"federation.candidates": [{"strategy": "fedprox"}]}, "candidates"),
        ({"splits": {"scheme": "site_preserved"}}, "site_preserved needs others"),
        ({"splits": {"scheme": "leave_one_cohort_out"}}, "leave_one_cohort_out needs others"),
        ({"federation.clock": {"failures": 0.1}}, "are simulated"),
        (
            {"features.encoder_params": {"weights": "/models/weights.pt"}},
            "weights.pt' is a file of this machine",
        ),
    ],
)
def test_what_hospitals_cannot_do_is_refused(
    overrides: dict[str, Any], problem: str, hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (
        "features.encoder_params" in overrides
    ):  # no encoder of the study takes a file: the value is set afterwards
        study = load_study(hospitals / "study.yaml")
        study.features.encoder_params.update(overrides["features.encoder_params"])
    else:
        study = load_study(hospitals / "study.yaml", overrides)
    with pytest.raises(StudyError, match=problem):
        remote_job(study)


def test_a_site_reads_its_own_file(hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = remote_job(load_study(hospitals / "study.yaml"))
    monkeypatch.setenv(SITE_VARIABLE, str(hospitals))
    data = read_site("site-2", job)
    patients = [*data.fold.train, *data.fold.val, *data.fold.test]
    assert len(set(patients)) == len(patients) == 23
    assert all(patient.startswith("SECRET-1-") for patient in patients)
    assert data.folder == hospitals / "site-2" / "federation"
    with pytest.raises(StudyError, match="has no file that says where its data are"):
        read_site("site-9", job)
    monkeypatch.delenv(SITE_VARIABLE)
    monkeypatch.setenv("HOME", str(hospitals / "site-1"))  # the fixed place
    assert read_site("any", job).fold.train[0].startswith("SECRET-0-")

    bad = tmp_path / "site.yaml"
    monkeypatch.setenv(SITE_VARIABLE, str(bad))
    bad.write_text("cohorts: []\nmodel: {kind: joint}\n")
    with pytest.raises(StudyError, match=r"(?s)cohorts.*model"):
        read_site("a", job)
    site = yaml.safe_load((hospitals / "site-1.yaml").read_text())
    bad.write_text(yaml.safe_dump(site | {"features": {"mpp": 1.0}}))
    with pytest.raises(StudyError, match=r"features\.mpp is the same at all sites"):
        read_site("a", job)
    bad.write_text(yaml.safe_dump(site))
    with pytest.raises(DataError, match=r"clinical\.csv"):
        read_site("a", job)


def test_a_site_checks_its_tables_before_a_federation(hospitals: Path, tmp_path: Path) -> None:
    """With the study that its file and the job make."""
    home = tmp_path / "site"
    shutil.copytree(hospitals / "site-1", home)
    folder = export_job(remote_job(load_study(hospitals / "study.yaml")), tmp_path / "job")
    study = load_study(write_site_study(home / "equipoise_site.yaml", folder, home / "study.yaml"))
    assert [cohort.name for cohort in study.cohorts] == ["H0"]
    assert study.federation is not None
    assert study.federation.local.batch == 8
    assert study.model.dim == 4
    with pytest.raises(StudyError, match="lies beside its file"):
        write_site_study(home / "equipoise_site.yaml", folder, tmp_path / "study.yaml")
    with pytest.raises(StudyError, match="no exported job"):
        write_site_study(home / "equipoise_site.yaml", tmp_path, home / "study.yaml")


def test_the_command_prints_the_line_to_allow(
    hospitals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from equipoise.jobs.federate import federate

    with pytest.raises(SystemExit) as ended:
        federate(config=str(hospitals / "study.yaml"), out=str(tmp_path / "job"), export="nvflare")
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert json.loads("{" + said.out.strip() + "}") == {"class_allow_list": [CONTROLLER, EXECUTOR]}
    assert (tmp_path / "job" / "meta.json").is_file()
    assert '"job": "federate"' in said.err.splitlines()[-1]
    assert not (hospitals / "runs").exists()
    with pytest.raises(SystemExit) as ended:
        federate(config=str(hospitals / "study.yaml"), job=str(tmp_path / "job"), export="nvflare")
    assert ended.value.code == 2

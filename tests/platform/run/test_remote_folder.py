"""Run folders at addresses: a run is the one of a local folder, readers see its last commit, and it has one writer."""

import json
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from tests.run_files import comparable

from equipoise.api import load_run
from equipoise.datasets.errors import InUseError
from equipoise.datasets.remote import claims
from equipoise.jobs.outcome import run_in_folder
from equipoise.jobs.submit import _batches, command_of
from equipoise.platform.cluster.slurm_scripts import Allocation
from equipoise.platform.errors import StudyError
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder, StepResult
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.remote_folder import (
    CommittedRun,
    RemoteRunFolder,
    open_run_folder,
    read_run_folder,
    run_paths,
)
from equipoise.platform.study.schema import Study

STUDY = """\
version: 1
name: small
cohorts: [{name: A, role: develop, clinical: a.csv}]
tasks: [{name: MSI, type: binary, column: MSI, positive: MSI-H}]
tables: {clinical: [{column: AGE, type: number}]}
model: {kind: clinical}
splits: {folds: 2}
training: {epochs: 3, min_epochs: 1, batch: 8}
evaluation: {bootstrap: 50}
"""
ADDRESS = "memory://runs/small"


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "here"))
    fs = fsspec.filesystem("memory")
    if fs.exists("/runs"):
        fs.rm("/runs", recursive=True)
    rows = [f"p{n},{'MSI-H' if n % 3 == 0 else 'MSS'},{40 + n}" for n in range(30)]
    (tmp_path / "a.csv").write_text("PATIENT,MSI,AGE\n" + "\n".join(rows))
    (tmp_path / "study.yaml").write_text(STUDY)
    return load_study(tmp_path / "study.yaml")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go to another machine: its cache is empty."""
    return lambda: monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "elsewhere"))


def test_a_run_at_an_address_is_that_of_a_folder(
    study: Study, tmp_path: Path, elsewhere: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    local = RunFolder.open(study, str(tmp_path / "small"), "auto")
    steps.run_steps(study, local, ["validate", "train"])
    job = run_in_folder(study, open_run_folder(study, ADDRESS, "auto"), ["validate"])
    assert job.fields == {"out": ADDRESS}
    assert job.folder is not None
    job.folder.finish({"job": "validate", "status": "ok", "code": 0})
    elsewhere()
    assert read_run_folder(ADDRESS).status()["job"] == "validate"
    folder = open_run_folder(study, ADDRESS, "must")
    assert str(folder.root).startswith(str(tmp_path / "elsewhere"))
    assert folder.to_do() == ["extract", "train", "evaluate", "report"]
    steps.run_steps(study, folder, ["train"])
    run = read_run_folder(ADDRESS)
    mine, theirs = comparable(local.root), comparable(run.root)
    assert len([path for path in mine if path.endswith("model.safetensors")]) == 2
    assert mine == theirs
    assert load_run(ADDRESS).folds.equals(load_run(local.root).folds)
    with run_paths([ADDRESS, "runs/other"]) as paths:
        assert comparable(paths[0]) == theirs
        assert (paths[0].name, paths[1]) == ("small", Path("runs/other"))
    third = RunFolder(tmp_path / "third")
    steps.run_steps(study, third, ["train"], folds_from=[ADDRESS])
    assert "fold=0-1 taken from" in caplog.text
    assert comparable(third.root)["folds/0-1/config.json"] == theirs["folds/0-1/config.json"]
    with pytest.raises(StudyError, match=r"training\.lr"):
        open_run_folder(load_study(study.file, {"training.lr": 0.5}), ADDRESS, "auto")


def test_readers_see_whole_steps_and_whole_folds(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    commit = RemoteRunFolder.commit

    def look(folder: RemoteRunFolder) -> None:
        commit(folder)
        run = read_run_folder(ADDRESS)
        seen.append((run.state(), sorted(path.parent.name for path in run.folds.glob("*/config.json"))))

    monkeypatch.setattr(RemoteRunFolder, "commit", look)
    with pytest.raises(StudyError, match="there is no run"):
        read_run_folder(ADDRESS)
    steps.run_steps(study, open_run_folder(study, ADDRESS, "auto"), ["train"])
    both = ["0-0", "0-1"]
    assert seen == [("running", ["0-0"]), ("running", both), ("running", both), ("running", both)]
    assert read_run_folder(ADDRESS).state() == "done"


def test_a_failed_step_is_committed_too(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> StepResult:
        raise ValueError("broken on purpose")

    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", broken)
    with pytest.raises(ValueError, match="on purpose"):
        steps.run_steps(study, open_run_folder(study, ADDRESS, "auto"), ["train"])
    assert read_run_folder(ADDRESS).status()["steps"]["train"]["error"] == "broken on purpose"


def test_a_second_job_is_refused_here_and_elsewhere(
    study: Study, monkeypatch: pytest.MonkeyPatch, elsewhere: Callable[[], None]
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.02)
    monkeypatch.setattr(claims, "_WATCH_S", 0.02)
    monkeypatch.setattr(claims, "LEASE_S", 1e9)
    folder = open_run_folder(study, ADDRESS, "auto")

    def work(_: object) -> StepResult:
        with pytest.raises(InUseError, match=f"{ADDRESS}: another run is writing"):
            open_run_folder(study, ADDRESS, "auto")
        elsewhere()
        other = open_run_folder(study, ADDRESS, "auto")
        with pytest.raises(InUseError, match=f"{ADDRESS}: another job is writing .*process"):
            run_in_folder(study, other, ["train"])
        return StepResult()

    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", work)
    steps.run_steps(study, folder, ["train"])


def test_a_claim_that_is_not_renewed_is_a_killed_job(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(claims.Claim, "release", lambda _: None)
        steps.run_steps(study, open_run_folder(study, ADDRESS, "auto"), ["validate"])
    run = read_run_folder(ADDRESS)
    assert isinstance(run, CommittedRun)
    assert (run.state(), str(run.writer()).partition(" ")[0]) == ("running", "process")
    monkeypatch.setattr("equipoise.platform.run.remote_folder.LEASE_S", 0.0)
    assert (run.state(), run.writer()) == ("killed", None)


def test_what_an_address_cannot_do_is_said(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.run_steps(study, open_run_folder(study, ADDRESS, "never"), ["validate"])
    with pytest.raises(StudyError, match="a run at an address is not renamed"):
        open_run_folder(study, ADDRESS, "never")
    changed = load_study(study.file, {"resources.folds": 2, "search": {}, "resources.address": "head:6379"})
    folder = open_run_folder(changed, ADDRESS, "auto")
    with pytest.raises(StudyError, match=r"trials of a search and resources\.folds: workers on a cluster"):
        steps.run_steps(changed, folder, ["train", "search"])
    folder.require_shared(changed, ["validate", "extract", "evaluate"])
    folder.require_shared(load_study(study.file, {"resources.folds": 2}), ["train"])  # a Ray of this machine
    RunFolder(study.base / "run").require_shared(changed, ["train", "search"])  # on storage that all mount


def test_submit_leaves_addresses_as_they_are(study: Study) -> None:
    command, out = command_of("run", ["-c", str(study.file), "-o", "s3://bucket/run"])
    assert out == "s3://bucket/run"
    assert command.arguments[-2:] == ("-o", "s3://bucket/run")
    assert command_of("run", ["-c", str(study.file), "--out=s3://bucket/run"])[1] == "s3://bucket/run"
    assert json.dumps(command.arguments).count(":/") == 1
    with pytest.raises(StudyError, match="the tasks of an array write below the run folder"):
        _batches(command, out, Allocation(), None, array=True)
    (batch,) = _batches(command, out, Allocation(), None, array=False)
    assert batch.script == Path.cwd() / "run.sbatch"
    assert "-o s3://bucket/run" in batch.text

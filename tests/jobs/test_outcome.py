"""How jobs end: exit code, result line and status.json, whatever went wrong and wherever."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.jobs import outcome
from equipoise.jobs.outcome import JobError, JobResult, LogFormat, run_and_exit, run_in_folder
from equipoise.platform.errors import DataError, ToleranceError
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder, StepResult
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "study.yaml").write_text(
        "{version: 1, name: small, cohorts: [{name: A, role: develop, clinical: a.csv, slides: s.csv}], "
        "tasks: [{name: MSI, type: binary, column: MSI, positive: H}]}"
    )
    (tmp_path / "a.csv").write_text("PATIENT,MSI\np1,H\n")
    (tmp_path / "s.csv").write_text("PATIENT,FILENAME\np1,p1.tif\n")
    return load_study(tmp_path / "study.yaml")


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging is set up for a process; that of the tests stays."""
    monkeypatch.setattr(outcome, "set_up_logging", lambda *_: None)


def ended(job: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], str]:
    """Exit code, result line and standard error of a job."""
    with pytest.raises(SystemExit) as end:
        run_and_exit("train", job, LogFormat.plain, logging.INFO)
    written = capsys.readouterr()
    mark, _, line = written.err.strip().splitlines()[-1].partition(" ")
    assert mark == "EQUIPOISE-RESULT"
    assert "EQUIPOISE-RESULT" not in written.out
    return int(str(end.value.code)), json.loads(line), written.err


@pytest.mark.parametrize(
    ("error", "status", "code", "told"),
    [
        (DataError("no such slide"), "failed", 3, "error: no such slide"),
        (ToleranceError("too many failed"), "failed", 5, "error: too many failed"),
        (ValueError("a defect"), "failed", 1, "please report it"),
        (KeyboardInterrupt(), "interrupted", 1, "run the same command again"),
        (SystemExit(1), "interrupted", 1, "run the same command again"),
    ],
)
def test_a_step_that_fails_ends_the_job_with_its_folder(
    study: Study,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: str,
    code: int,
    told: str,
) -> None:
    def fail(_: object) -> StepResult:
        raise error

    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", fail)
    folder = RunFolder(tmp_path / "run")
    exit_code, result, written = ended(lambda: run_in_folder(study, folder, ["train"]), capsys)
    assert (exit_code, result["code"], result["status"], result["job"]) == (code, code, status, "train")
    assert result["out"] == str(folder.root)
    assert ("error" in result) == (status == "failed")
    assert told in written
    recorded = folder.status()
    assert (recorded["status"], recorded["code"], recorded["to_do"][0]) == (status, code, "validate")
    assert recorded["steps"]["train"]["status"] == "failed"


def test_a_job_error_carries_the_error_and_the_folder(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> StepResult:
        raise DataError("no such slide")

    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", fail)
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(JobError) as caught:
        run_in_folder(study, folder, ["train"])
    assert isinstance(caught.value.error, DataError)
    assert caught.value.result == JobResult({"out": folder.root}, folder)
    assert not vars(caught.value.error).keys() & {"result", "facts", "folder"}, (
        "nothing is set on other errors"
    )


def test_a_partial_step_is_recorded_and_stays_to_do(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", lambda _: StepResult({"trained": 1}, complete=False))
    monkeypatch.setitem(steps.STEP_FUNCTIONS, "report", lambda _: StepResult())
    folder = RunFolder(tmp_path / "run")
    code, result, _ = ended(lambda: run_in_folder(study, folder, ["train", "report"]), capsys)
    assert (code, result["status"], result["report"]) == (0, "ok", str(folder.report))
    recorded = folder.status()
    assert (recorded["steps"]["train"]["status"], recorded["steps"]["train"]["trained"]) == ("partial", 1)
    assert "train" in recorded["to_do"]
    assert "report" not in recorded["to_do"]


def test_jobs_without_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(lambda: {"checks": 3}, capsys)[:2] == (
        0,
        {"job": "train", "status": "ok", "code": 0, "checks": 3},
    )
    assert ended(lambda: None, capsys)[1] == {"job": "train", "status": "ok", "code": 0}

    def refused() -> None:
        raise DataError("no such table")

    code, result, _ = ended(refused, capsys)
    assert (code, result) == (3, {"job": "train", "status": "failed", "code": 3, "error": "no such table"})

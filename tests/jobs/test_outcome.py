"""How jobs end: exit code, result line and status.json, whatever went wrong and wherever."""

import errno
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.datasets.errors import InUseError
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
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "failed", 4, "error: a/b: No space left"),
        (MemoryError(), "failed", 4, "error: there is not enough memory"),
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
    assert recorded["steps"]["train"]["status"] == status
    assert folder.state() == status
    assert folder.writer() is None


def test_a_run_folder_has_one_writer_and_the_other_job_leaves_no_trace(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path / "run")
    left = tmp_path / "run" / "search" / ".trials.parquet.1-2.tmp"
    left.mkdir(parents=True)
    seen: list[str] = []

    def work(_: object) -> StepResult:
        assert not left.exists()
        before = folder.status_file.read_bytes()
        seen.extend([folder.state(), str(folder.writer())])
        code, result, _ = ended(lambda: run_in_folder(study, RunFolder(folder.root), ["train"]), capsys)
        assert (code, result["status"]) == (3, "failed")
        assert "another run is writing to this run folder" in result["error"]
        with pytest.raises(InUseError, match="--resume never"):
            RunFolder.open(study, str(folder.root), "never")
        assert folder.status_file.read_bytes() == before
        return StepResult()

    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", work)
    assert ended(lambda: run_in_folder(study, folder, ["train"]), capsys)[0] == 0
    assert seen[0] == "running"
    assert f"process {os.getpid()} on " in seen[1]
    assert folder.state() == "ok"


#: A job that says when it works, and goes on until it is told to end.
WAITING = """
import sys, time
from pathlib import Path
from equipoise.jobs.cli import main
from equipoise.platform.run import steps

def wait(context):
    try:
        print("works", flush=True)
        while True:
            time.sleep(0.01)
    finally:
        (context.folder.root / "tidied").touch()

steps.STEP_FUNCTIONS["train"] = wait
sys.argv = ["equipoise", "train", "-c", sys.argv[1], "-o", sys.argv[2]]
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "state"), [(signal.SIGTERM, 1, "interrupted"), (signal.SIGKILL, -9, "killed")]
)
def test_sigterm_ends_a_job_like_ctrl_c_and_status_tells_the_dead_from_the_living(
    study: Study, tmp_path: Path, number: int, code: int, state: str
) -> None:
    command = [sys.executable, "-c", WAITING, str(study.file), str(tmp_path / "run")]
    folder = RunFolder(tmp_path / "run")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == "works\n"
        assert folder.state() == "running"
        assert f"process {job.pid} on " in str(folder.writer())
        job.send_signal(number)
        _, written = job.communicate()
    assert job.returncode == code
    assert folder.state() == state
    assert folder.writer() is None
    assert (folder.root / "tidied").exists() == (state == "interrupted")
    if state == "interrupted":
        result = json.loads(written.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
        assert (result["status"], result["code"]) == ("interrupted", 1)
        assert folder.status()["steps"]["train"]["status"] == "interrupted"
    with folder.writing():
        pass
    assert folder.state() != "killed"


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
    assert caught.value.result == JobResult({"out": folder.address}, folder)
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


def test_a_full_disk_says_which_file_and_ends_with_a_result_line(tmp_path: Path) -> None:
    program = (
        "import pathlib, resource, sys\n"
        "from equipoise.datasets.atomic_io import write_text\n"
        "from equipoise.jobs.outcome import JobResult, LogFormat, run_and_exit\n"
        "from equipoise.platform.run.folder import RunFolder\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "folder = RunFolder(root)\n"
        "folder.event('start', {})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"  # as a disk without space: writing fails half way
        "def job():\n"
        "    try:\n        write_text(root / 'large.txt', 'x' * 9000)\n"
        "    except OSError as error:\n"
        "        from equipoise.jobs.outcome import JobError\n"
        "        raise JobError(error, JobResult({'out': root}, folder)) from error\n"
        "run_and_exit('run', job, LogFormat.plain, 20)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 4, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == f"error: {tmp_path / 'run' / 'large.txt'}: File too large"
    assert lines[1].startswith("  fix: ")
    assert "status.json is not written" in lines[2]
    assert json.loads(lines[-1].removeprefix("EQUIPOISE-RESULT "))["code"] == 4
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["events.jsonl"]


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


def test_an_outcome_that_does_not_reach_its_address_is_a_failure(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*_: object) -> None:
        raise DataError("does not answer", where="s3://bucket/run")

    folder = RunFolder(tmp_path / "run")
    monkeypatch.setitem(steps.STEP_FUNCTIONS, "train", lambda _: StepResult())
    monkeypatch.setattr(RunFolder, "finish", unreachable)
    code, result, _ = ended(lambda: run_in_folder(study, folder, ["train"]), capsys)
    assert (code, result["code"], result["status"]) == (3, 3, "failed")
    assert "the outcome is not committed: s3://bucket/run: does not answer" in result["error"]

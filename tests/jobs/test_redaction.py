"""Secrets are nowhere: not in what a job says, writes or hands to Ray, wherever they were planted."""

import json
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.redaction import has_credentials, masked
from equipoise.datasets.remote.addresses import connect
from equipoise.jobs.cli import JOBS, _call, module_of
from equipoise.jobs.outcome import _without_credentials
from equipoise.platform.errors import StudyError
from equipoise.platform.run.context import read_cohorts
from equipoise.platform.run.loading import load_study

#: In every planted address and variable.
SECRET = "hunter2hunter2"
ADDRESSES = (
    f"s3://AKIA123:{SECRET}@bucket/slides",
    f"https://me:{SECRET}@host.example/features?x=1",
    f"https://account.blob.example/slides?sv=2022&sig={SECRET}%3D",
    f"https://bucket.example/a.svs?X-Amz-Credential=a&X-Amz-Signature={SECRET}",
    f"https://host.example/a?access_token={SECRET}&b=1",
    f"simplecache::ftp://user:{SECRET}@host.example/a",
)
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_SECURITY_TOKEN", "AZURE_STORAGE_KEY", "HF_TOKEN",
    "WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "GOOGLE_API_KEY", "RAY_AUTH_TOKEN",
)  # fmt: skip

STUDY = """
version: 1
name: t
cohorts: [{name: A, role: develop, clinical: clini.csv, site: {scheme: column, column: SITE}}]
tasks: [{name: MSI, type: binary, column: MSI, positive: H, negative: [L], main: true}]
splits: {scheme: kfold, folds: 2}
tables: {clinical: [{column: AGE, type: number}]}
model: {kind: clinical}
training: {epochs: 2, batch: 8}
evaluation: {bootstrap: 50}
federation: {rounds: 1, strategy: fedavg, sites: {scheme: site, min_patients: 4}}
resources: {cpus: 1, folds: 2, address: local, object_store_mb: 100}
search: {scheduler: none, trials: 2, folds: 2, max_fail: 1.0, space: {training.lr: [0.001, 0.01]}}
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    rows = [f"P{i:02d},{'H' if i % 3 == 0 else 'L'},{40 + i % 30},S{i % 2}" for i in range(36)]
    (tmp_path / "clini.csv").write_text("\n".join(["PATIENT,MSI,AGE,SITE", *rows]))
    (tmp_path / "study.yaml").write_text(STUDY)
    return tmp_path / "study.yaml"


@pytest.mark.parametrize("address", ADDRESSES)
def test_credentials_are_found_and_masked(address: str) -> None:
    assert has_credentials(address)
    text = masked(f"cannot open '{address}': no such file")
    assert SECRET not in text
    assert text.endswith("': no such file")
    assert masked(text) == text
    assert SECRET not in str(DataError("no", where=address, fix=f"read {address}"))
    record = logging.LogRecord("equipoise", logging.INFO, "", 0, "opening %s", (address,), None)
    assert _without_credentials(record)
    assert SECRET not in record.getMessage()
    with pytest.raises(DataError, match="holds credentials") as refused:
        connect(address)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "plain",
    [
        "s3://bucket/a@b/c.svs",
        "ssh://user@host/a",
        "gs://b/sig=1/x",
        "https://h/a?sigma=1",
        "C: a@b",
        "ray://h:10001",
    ],
)
def test_addresses_without_credentials_stay(plain: str) -> None:
    assert masked(plain) == plain


@pytest.mark.parametrize("job", JOBS)
def test_every_job_refuses_credentials_on_the_command_line(
    job: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        _call({job: JOBS[job]}, [job, "--out", ADDRESSES[0], f"--set=features.store={ADDRESSES[3]}"])
    written = capsys.readouterr()
    assert end.value.code == 2
    assert SECRET not in written.out + written.err
    result = json.loads(written.err.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
    assert (result["job"], result["code"]) == (job, 2)


@pytest.mark.parametrize(
    "key", ["features.store", "cohorts.0.slides_dir", "cohorts.0.clinical", "resources.address"]
)
def test_a_study_with_credentials_is_refused(study: Path, key: str) -> None:
    for address in ADDRESSES:
        with pytest.raises(StudyError, match="hold credentials") as refused:
            load_study(study, {key: address})
        assert key in str(refused.value)
        assert SECRET not in str(refused.value)


def test_a_slides_table_with_credentials_is_refused(study: Path) -> None:
    lines = ["PATIENT,FILENAME", *(f"P{i:02d},{address}" for i, address in enumerate(ADDRESSES))]
    (study.parent / "slides.csv").write_text("\n".join(lines))
    changes: dict[str, Any] = {"cohorts.0.slides": "slides.csv", "cohorts.0.slides_dir": "s3://bucket"}
    with pytest.raises(DataError, match=r"slides\.csv, row 2: the address .* holds credentials") as refused:
        read_cohorts(load_study(study, {**changes, "model.kind": "mean_pool"}))
    assert SECRET not in str(refused.value)


#: Job → its arguments; every job is there.
COMMANDS: dict[str, list[str]] = {
    "doctor": [],
    "demo": ["--preset", "none"],
    "init": ["--tables", ".", "-o", "written.yaml"],
    "ls": ["models"],
    "validate": ["-c", "study.yaml", "-o", "run"],
    "synthesize": ["--preset", "none", "-o", "synthetic"],
    "extract": ["-c", "study.yaml", "-o", "run"],
    "train": ["-c", "study.yaml", "-o", "run"],
    "pretrain": ["-c", "study.yaml", "-o", "pretrained"],
    "search": ["-c", "study.yaml", "-o", "run"],
    "federate": ["-c", "study.yaml", "-o", "run"],
    "evaluate": ["-c", "study.yaml", "-o", "run"],
    "explain": ["-c", "study.yaml", "-o", "run"],
    "report": ["-c", "study.yaml", "-o", "run"],
    "run": ["-c", "study.yaml", "-o", "other", "--smoke"],
    "export": ["run", "-o", "model"],
    "import": ["model"],
    "predict": ["--model", "model", "--tables", "clinical=clinical.csv", "-o", "predicted"],
    "submit": ["validate", "-c", "study.yaml", "-o", "run", "--slurm", "--write-only"],
    "leaderboard": ["run", "other"],
    "pretrain-rna": ["--reference", "absent.h5ad", "-o", "rna"],
    "adapt-rna": ["--reference", "absent.h5ad", "--labels", "type", "--encoder", "pca", "-o", "adapter"],
    "store": ["ls", "."],
    "status": ["run"],
}


@pytest.mark.slow
def test_no_job_writes_a_secret_of_the_environment(study: Path) -> None:
    """Every job of the command line; all that it says and writes is searched, the folder of Ray's sessions included."""
    assert set(COMMANDS) == set(JOBS)
    study.write_text(STUDY + f"# store: {ADDRESSES[0]}\n")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as rays:  # paths of sockets are short
        environ = dict.fromkeys(VARIABLES, SECRET) | {"RAY_TMPDIR": rays, "EQUIPOISE_CACHE": f"{rays}/cache"}
        ended = {}
        for job, arguments in COMMANDS.items():
            done = subprocess.run(
                [sys.executable, "-m", module_of(job), *arguments],
                cwd=study.parent,
                env={**os.environ, **environ, "RAY_AUTH_MODE": "token"},
                capture_output=True,
            )
            ended[job] = done.returncode
            assert SECRET.encode() not in done.stdout + done.stderr, job
        assert [job for job in ("train", "search", "federate", "evaluate", "report") if ended[job]] == []
        sessions = list(Path(rays).glob("ray/session_*"))
        assert len(sessions) >= 2, "training and search opened Ray"
        study.unlink()
        found = [
            file
            for root in (study.parent, Path(rays))
            for file in root.rglob("*")
            if file.is_file() and SECRET.encode() in file.read_bytes()
        ]
        assert found == []

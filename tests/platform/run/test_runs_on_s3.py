"""Run folders at ``s3://``, against a server on this machine: the files of a local run, also after a kill."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.run_files import comparable
from tests.s3_server import SECRET, s3_server

from equipoise.datasets.remote import claims
from equipoise.datasets.remote.commits import committed_files, read_head
from equipoise.datasets.remote.folders import RemoteFolder
from equipoise.datasets.remote.working_copies import WorkingCopy
from equipoise.platform.run.remote_folder import read_run_folder

pytest.importorskip("s3fs", reason="make test-s3 installs it")
pytest.importorskip("moto", reason="make test-s3 installs it")

pytestmark = pytest.mark.slow

TABLES = """
version: 1
name: tables
cohorts: [{name: A, role: develop, clinical: clini.csv, omics: {rna: rna.csv}, site: {scheme: column, column: SITE}}]
tasks: [{name: MSI, type: binary, column: MSI, positive: H, negative: [L]}]
splits: {folds: 2}
tables: {rna: {transform: none}}
model: {kind: omics, network: relu, dim: 16}
training: {epochs: 3, min_epochs: 3, batch: 8, lr: 1.0e-3}
evaluation: {bootstrap: 50}
resources: {cpus: 2, address: local, object_store_mb: 100}
federation:
  {rounds: 2, strategy: fedavg, sites: {scheme: site, min_patients: 4}, evaluation: {clean_costs: false}}
search: {trials: 2, folds: 2, scheduler: none, space: {training.lr: {loguniform: [1.0e-4, 1.0e-2]}}}
"""

#: The command line, killed with all its processes when half of the files that the second fold adds are uploaded.
KILLED = """
import os, signal, sys
from equipoise.datasets.remote.folders import RemoteFolder
from equipoise.jobs.cli import main

send_all = RemoteFolder.send_all

def send_half(folder, files):
    if not any("/folds/0-1/" in str(file) for file in files.values()):
        return send_all(folder, files)
    send_all(folder, dict(list(files.items())[::2]))
    os.killpg(0, signal.SIGKILL)

RemoteFolder.send_all = send_half
sys.argv[0] = "equipoise"
main()
"""
#: The command line, which takes a claim over that is not renewed for a second.
IMPATIENT = """
import sys
from equipoise.datasets.remote import claims
from equipoise.jobs.cli import main

claims.LEASE_S = 1.0
sys.argv[0] = "equipoise"
main()
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[str]:
    """A server of buckets; its address and keys are in the environment."""
    with s3_server() as url:
        yield url


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of this process; those of jobs are named when they are started."""
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "reader"))
    return tmp_path


def equipoise(
    folder: Path, machine: str, *words: str, code: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """A command in a folder, on a machine: with a cache of its own."""
    program = ["-m", "equipoise.jobs.cli"] if code is None else ["-c", code]
    environment = os.environ | {"EQUIPOISE_CACHE": str(folder / machine)}
    return subprocess.run(
        [sys.executable, *program, *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, start_new_session=True,
    )  # fmt: skip


def objects_left(address: str) -> set[str]:
    """Objects that no commit needs."""
    folder = RemoteFolder(address)
    commit = str(read_head(folder).commit)
    needed = {commit, *(file.name for file in committed_files(folder, commit).values())}
    return set(folder.names("objects")) - needed


def test_a_run_that_was_killed_while_it_uploaded_is_that_of_a_local_folder(tmp_path: Path) -> None:
    done = equipoise(tmp_path, "one", "synthesize", "--preset", "tiny", "--out", "tiny")
    assert done.returncode == 0, done.stderr
    words = ["run", "-c", "tiny/study.yaml", "--max-cpus", "2", "-o"]
    local = equipoise(tmp_path, "one", *words, "local/run")
    assert local.returncode == 0, local.stderr

    address = "s3://here/runs/run"
    killed = equipoise(tmp_path, "one", *words, address, code=KILLED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = read_run_folder(address)
    assert [fold.name for fold in run.folds.iterdir()] == ["0-0"]
    assert run.status()["steps"]["train"]["status"] == "running"
    assert len(objects_left(address)) > 1

    again = equipoise(tmp_path, "two", *words, address, code=IMPATIENT)
    assert again.returncode == 0, again.stderr
    assert "train fold=0-0 already done" in again.stderr
    assert "fold=0-1 epochs=" in again.stderr
    assert not objects_left(address)
    run = read_run_folder(address)
    assert run.state() == "ok"
    mine, theirs = comparable(tmp_path / "local" / "run"), comparable(run.root)
    del mine["provenance/ray.json"]  # of the extraction, which the first run has done for both
    assert mine == theirs

    shared = equipoise(tmp_path, "three", "report", *words[1:3], "-o", address, "--share")
    assert shared.returncode == 0, shared.stderr
    assert (read_run_folder(address).root / "report-share.html").exists()
    said = equipoise(tmp_path, "three", "status", address)
    assert f"{address}: last job ok, complete" in said.stdout, said.stderr


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """A study of 60 patients and 20 genes at three sites."""
    rng = random.Random(7)
    clinical, genes = ["PATIENT,MSI,SITE"], ["PATIENT," + ",".join(f"G{g}" for g in range(20))]
    for i in range(60):
        values = [rng.gauss(0, 1) for _ in range(20)]
        clinical.append(f"P{i:02d},{'H' if values[0] + rng.gauss(0, 0.5) > 0 else 'L'},S{i % 3}")
        genes.append(f"P{i:02d}," + ",".join(f"{value:.4f}" for value in values))
    (tmp_path / "clini.csv").write_text("\n".join(clinical))
    (tmp_path / "rna.csv").write_text("\n".join(genes))
    (tmp_path / "study.yaml").write_text(TABLES)
    return tmp_path


def test_federation_and_search_are_those_of_a_local_folder(tables: Path) -> None:
    for out in ("local/tables", "s3://here/runs/tables"):
        done = equipoise(tables, "one", "run", "-c", "study.yaml", "-o", out)
        assert done.returncode == 0, done.stderr
    run = read_run_folder("s3://here/runs/tables")
    mine, theirs = comparable(tables / "local" / "tables"), comparable(run.root)
    assert {"search/trials.parquet", "search/best.yaml", "federated/sites.csv"} <= set(mine)
    assert mine == theirs
    folder = RemoteFolder("s3://here/runs/tables")
    names = ["head.json", *(f"objects/{name}" for name in folder.names("objects"))]
    assert not [name for name in names if SECRET.encode() in (folder.read(name) or b"")]
    best = (run.search / "best.yaml").read_text()
    assert f"path: {tables}/rna.csv" in best  # the folder is elsewhere on every machine


def test_a_second_writer_and_an_unknown_bucket_are_one_error(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.1)
    copy = WorkingCopy("s3://here/runs/busy")
    with copy.claimed("process 7 on another machine"):
        refused = equipoise(tables, "one", "train", "-c", "study.yaml", "-o", "s3://here/runs/busy")
        assert refused.returncode == 3
        assert "another job is writing to this run folder (process 7 on another machine)" in refused.stderr
        copy.root.mkdir(parents=True)
        (copy.root / "file").touch()
        copy.commit()  # the claim is still ours
    lost = equipoise(tables, "one", "train", "-c", "study.yaml", "-o", "s3://nowhere/run")
    assert lost.returncode == 3
    assert "s3://nowhere/run: there is no such bucket" in lost.stderr
    assert "defect" not in refused.stderr + lost.stderr

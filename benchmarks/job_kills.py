"""SIGTERM and SIGKILL at random moments of ``train``, ``search`` and ``federate``: what resumed jobs leave is compared.

A job runs on SYNTHETIC tables. It is ended at a random moment, by both signals in turn, ``equipoise status`` is asked
how it ended, and the same command is run again; a job that is done begins again in another folder while kills are left.
Every finished folder must hold the predictions, weights and records of an undisturbed one, and nothing half-written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.platform.run.folder import RunFolder

STUDY = """
version: 1
name: synthetic
cohorts: [{name: A, role: develop, clinical: clini.csv, omics: {rna: rna.csv}, site: {scheme: column, column: SITE}}]
tasks:
  - {name: MSI, type: binary, column: MSI, positive: H, negative: [L], main: true}
splits: {scheme: kfold, folds: 3}
tables: {rna: {transform: none}}
model: {kind: omics, network: relu, dim: 16}
training: {epochs: 80, min_epochs: 80, patience: 80, batch: 8, lr: 1.0e-3}
resources: {cpus: 2, address: local, object_store_mb: 100}
federation:
  rounds: 16
  strategy: fedavg
  sites: {scheme: site, min_patients: 4}
  evaluation: {clean_costs: false}
search: {trials: 8, folds: 2, max_fail: 0.0, scheduler: none, space: {training.lr: {loguniform: [1.0e-4, 1.0e-2]}}}
"""


@dataclass
class JobKills:
    """What was done to one job, and what came of it."""

    job: str
    kills: dict[str, int] = field(default_factory=lambda: {"SIGTERM": 0, "SIGKILL": 0})
    status_wrong: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    runs: int = 0
    finished: int = 0
    wall_s: float = 0.0

    def row(self) -> dict[str, Any]:
        """For the table of results."""
        return {
            "kills": sum(self.kills.values()),
            **self.kills,
            "runs": self.runs,
            "finished": self.finished,
            "identical": int(not self.different and self.finished > 0),
            "different": self.different[:5],
            "stale_files": len(self.stale),
            "status_right": int(not self.status_wrong),
            "status_wrong": self.status_wrong[:5],
            "wall_s": round(self.wall_s, 1),
        }


#: Job → settings that differ: with a federation, strategies would be searched, too.
CHANGES = {"search": ("federation=null", "training.epochs=30", "training.min_epochs=30", "search.trials=5")}
#: States of a folder whose job has done its work: recorded by its last step, then by the job.
_DONE = ("done", "ok")


def write_study(root: Path) -> Path:
    """The SYNTHETIC tables and their study; returns the study file."""
    rng = random.Random(7)
    clinical, genes = ["PATIENT,MSI,SITE"], ["PATIENT," + ",".join(f"G{g}" for g in range(20))]
    for i in range(60):
        values = [rng.gauss(0, 1) for _ in range(20)]
        clinical.append(f"P{i:02d},{'H' if values[0] + rng.gauss(0, 0.5) > 0 else 'L'},S{i % 3}")
        genes.append(f"P{i:02d}," + ",".join(f"{value:.4f}" for value in values))
    root.mkdir(parents=True, exist_ok=True)
    (root / "clini.csv").write_text("\n".join(clinical))
    (root / "rna.csv").write_text("\n".join(genes))
    (root / "study.yaml").write_text(STUDY)
    return root / "study.yaml"


def kill_job(job: str, root: Path, kills: int, rng: random.Random) -> JobKills:
    """End a job so many times, resume it, and compare the folders that it finished with an undisturbed one."""
    started = time.perf_counter()
    study = write_study(root)
    result = JobKills(job)
    calm = _start(job, study, root / "calm")
    if calm.wait() != 0:
        raise RuntimeError(f"{job} fails undisturbed: {(root / 'calm.log').read_text()[-2000:]}")
    expected = RESULTS[job](root / "calm")
    assert expected
    while True:
        folder = root / f"killed-{result.finished}"
        result.runs += 1
        process = _start(job, study, folder)
        if sum(result.kills.values()) < kills and _wait(process, folder, rng):
            _end(process, folder, result)
            continue
        if code := process.wait():
            raise RuntimeError(
                f"{job} ended with code {code}: {folder.with_suffix('.log').read_text()[-2000:]}"
            )
        result.finished += 1
        found = RESULTS[job](folder)
        result.different += sorted(name for name in expected | found if expected.get(name) != found.get(name))
        result.stale += [str(path) for path in stale_files(folder)]
        if RunFolder(folder).state() != "ok":
            result.status_wrong.append(f"{RunFolder(folder).state()} after the end")
        if sum(result.kills.values()) >= kills:
            break
    result.wall_s = time.perf_counter() - started
    return result


def stale_files(folder: Path) -> list[Path]:
    """What only a job that still works may leave: temporary files, unfinished folds and trials, scratch, a lock."""
    patterns = (".*.tmp", ".*.partial", "*.pt", "*.hang", "*.last")
    found = [path for pattern in patterns for path in folder.rglob(pattern)]
    found += (folder / "search" / "work").glob("*")
    found += [path for path in (folder / "search" / "ray", folder / "folds" / "ray") if path.exists()]
    if (folder / "writer.lock").stat().st_size:
        found.append(folder / "writer.lock")
    return found


def _start(job: str, study: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", f"equipoise.jobs.{job}", "-c", str(study), "-o", str(folder)]
    for setting in CHANGES.get(job, ()):
        command += ["-s", setting]
    with folder.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def _wait(process: subprocess.Popen[bytes], folder: Path, rng: random.Random) -> bool:
    """Until a random moment of the work of this process; False if it ended before."""
    run, before = RunFolder(folder), _newest(folder)
    while process.poll() is None and run.writer() is None:
        time.sleep(0.02)
    if rng.random() < 0.7:  # once something new is on disk, else while it opens tables or Ray
        while process.poll() is None and _newest(folder) <= before:
            time.sleep(0.02)
    until = time.monotonic() + rng.uniform(0.0, 3.0)
    while process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    return process.poll() is None


def _newest(folder: Path) -> float:
    """When a state of a training, a federation or a trial was last written."""
    newest = 0.0
    for pattern in ("folds/.*/checkpoint.pt", "federated/**/round_*", "search/work/*/fold-*"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                newest = max(newest, path.stat().st_mtime)
    return newest


def _end(process: subprocess.Popen[bytes], folder: Path, result: JobKills) -> None:
    """SIGTERM or SIGKILL, in turn; then status and, after SIGTERM, result line must say what happened."""
    name = "SIGTERM" if sum(result.kills.values()) % 2 == 0 else "SIGKILL"
    run = RunFolder(folder)
    before = run.state()
    if before in _DONE:  # only its interpreter was still to end
        process.wait()
        return
    if before != "running":
        result.status_wrong.append(f"{before} while it ran")
    process.send_signal(getattr(signal, name))
    code, state = process.wait(), run.state()
    if state in _DONE:  # the signal came too late
        return
    result.kills[name] += 1
    wanted = "interrupted" if name == "SIGTERM" else "killed"
    if state != wanted:
        result.status_wrong.append(f"{state} after {name}")
    if name == "SIGTERM":
        line = folder.with_suffix(".log").read_text().strip().splitlines()[-1]
        if not line.startswith("EQUIPOISE-RESULT ") or '"status": "interrupted"' not in line or code != 1:
            result.status_wrong.append(f"code {code} and {line[:80]!r} after SIGTERM")
    print(f"{time.strftime('%H:%M:%S')} {result.job}: {name}, status {state}", flush=True)


def _digests(folder: Path, *patterns: str) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
    }


def _trained(folder: Path) -> dict[str, str]:
    return _digests(folder, "folds/*/preds.parquet", "folds/*/model.safetensors", "folds/*/history.csv")


def _federated(folder: Path) -> dict[str, str]:
    patterns = ("federated/predictions/*/*.parquet", "federated/rounds.jsonl", "federated/traffic.csv")
    return _digests(folder, *patterns)


def _searched(folder: Path) -> dict[str, str]:
    """Records without times and places."""
    records = {}
    for path in sorted((folder / "search" / "trials").glob("*.json")):
        record = json.loads(path.read_text())
        folds = [{key: fold[key] for key in ("fold", "values", "history")} for fold in record["folds"]]
        records[path.name] = json.dumps([record["config"], record["status"], folds])
    return records | _digests(folder, "search/best.yaml")


#: Job → name → what must be equal after kills.
RESULTS: dict[str, Callable[[Path], dict[str, str]]] = {
    "train": _trained,
    "search": _searched,
    "federate": _federated,
}

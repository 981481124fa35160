"""Exported jobs in NVFlare's simulator: real processes, the bits of the inline engine (``make test-nvflare``)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.platform.federation.remote.simulated import simulated

from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.nvflare.export import allow_list_line, export_job
from equipoise.platform.federation.remote.job import RemoteJob, remote_job
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.run.federated_site import SITE_VARIABLE, read_site
from equipoise.platform.run.loading import load_study

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("nvflare") is None, reason="needs nvflare: make test-nvflare"
    ),
    pytest.mark.slow,
]

SITES = ("site-1", "site-2", "site-3")
#: Name of a workflow → what it changes in the study's federation.
METHODS: dict[str, dict[str, Any]] = {
    "fedavg": {},
    "scaffold": {"federation.strategy": "scaffold"},
    "median": {"federation.server_aggregation": "median"},
    "masked": {
        "federation.privacy": {"secure_aggregation": {}},
        "federation.validation": {"norm_factor": None},
    },
}


def jobs_of(hospitals: Path, **common: Any) -> dict[str, RemoteJob]:
    """Name → the exported study."""
    return {
        name: remote_job(load_study(hospitals / "study.yaml", {**common, **changes}))
        for name, changes in METHODS.items()
    }


def simulate(
    folder: Path, work: Path, hospitals: Path, *, allowed: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a job's folder with NVFlare's simulator."""
    (work / "local").mkdir(parents=True)
    if allowed:
        (work / "local" / "resources.json").write_text("{" + allow_list_line() + "}")
    paths = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(folder), "-w", str(work)]
    return subprocess.run(
        [*command, "-c", ",".join(SITES), "-t", str(len(SITES))],
        env=os.environ | {SITE_VARIABLE: str(hospitals), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )


def server_result(work: Path, job: RemoteJob) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What the server has written: ``result.json`` and the tensors of the model."""
    from safetensors.numpy import load_file

    (folder,) = (path for path in work.rglob(f"equipoise/{job.identifier}") if path.is_dir())
    return json.loads((folder / "result.json").read_text()), load_file(folder / "model.safetensors")


def inline(job: RemoteJob, hospitals: Path, sites: Sequence[str] = SITES) -> FederationResult:
    """The same federation in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SITE_VARIABLE, str(hospitals))
        data = {site: read_site(site, job) for site in sites}
    clients = {site: ClientData(read.part("train"), read.part("val")) for site, read in data.items()}
    return simulated(job, clients)


def tail(done: subprocess.CompletedProcess[str]) -> str:
    return (done.stdout + done.stderr)[-6000:]


def assert_equal(result: FederationResult, tensors: Mapping[str, np.ndarray]) -> None:
    expected = result.schema.named(result.vector)
    assert expected.keys() == tensors.keys()
    assert all(np.array_equal(expected[name], tensors[name]) for name in expected)


def test_exported_jobs_give_the_bits_of_the_inline_engine(hospitals: Path, tmp_path: Path) -> None:
    """One run of four exported workflows, one after the other, to start the processes once."""
    jobs = jobs_of(hospitals)
    folders = {name: export_job(job, tmp_path / name) for name, job in jobs.items()}
    path = "app/config/config_fed_server.json"
    configs = {name: json.loads((folder / path).read_text()) for name, folder in folders.items()}
    workflows = [config["workflows"][0] | {"id": name} for name, config in configs.items()]
    (folders["fedavg"] / path).write_text(json.dumps(configs["fedavg"] | {"workflows": workflows}))
    done = simulate(folders["fedavg"], tmp_path / "work", hospitals)
    assert done.returncode == 0, tail(done)
    for name, job in jobs.items():
        record, tensors = server_result(tmp_path / "work", job)
        here = inline(job, hospitals)
        assert_equal(here, tensors)
        assert record["history"] == [dict(row) for row in here.history], name
        assert record["backend"] == "nvflare"
        assert len(record["history"]) == 2
        for number, site in enumerate(SITES):
            table = read_predictions(
                hospitals / site / "federation" / job.identifier / "result" / "predictions.parquet"
            )
            assert set(table["patient"].str[:9]) == {f"SECRET-{number}-"}
    text = b"".join(p.read_bytes() for p in (tmp_path / "work" / "server").rglob("*") if p.is_file())
    assert b"SECRET-" not in text


def test_a_site_that_raises_is_excluded_and_the_run_ends(hospitals: Path, tmp_path: Path) -> None:
    job = remote_job(load_study(hospitals / "study.yaml", {"federation.rounds": 5, "name": "failing"}))
    folder = export_job(job, tmp_path / "job")
    home = hospitals / "site-3" / "federation" / job.identifier
    home.mkdir(parents=True)
    (home / "states").write_text("a file where a folder has to be: the site cannot keep its state")
    done = simulate(folder, tmp_path / "work", hospitals)
    assert done.returncode == 0, tail(done)
    record, tensors = server_result(tmp_path / "work", job)
    assert record["excluded"] == ["site-3"]
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    assert [row["failed"] for row in record["history"]] == [1, 1, 1, 0, 0]
    assert [row["accepted"] for row in record["history"]] == [2, 2, 2, 2, 2]
    assert set(record["predicted"]) == {"site-1", "site-2", "site-3"}


def test_without_the_line_of_the_exporter_a_job_is_refused(hospitals: Path, tmp_path: Path) -> None:
    job = remote_job(load_study(hospitals / "study.yaml", {"name": "refused"}))
    done = simulate(export_job(job, tmp_path / "job"), tmp_path / "work", hospitals, allowed=False)
    assert done.returncode == 2, tail(done)
    assert "not in allow_list" in tail(done)
    assert not list((tmp_path / "work").rglob("result.json"))

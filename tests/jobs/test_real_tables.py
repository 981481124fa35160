"""Real omics and survival through the commands: public tables of kidney papillary carcinoma, no slide."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json

STUDY = """\
version: 1
name: kirp
cohorts:
  - name: KIRP
    role: develop
    clinical: TABLE
    site: tss
    omics:
      rna: {path: TABLE, suffix: _rnaseq}
      mutation: {path: TABLE, suffix: _mut}
tasks:
  - name: OS
    type: survival
    time: {column: survival_months, unit: months}
    event: {column: censorship, event_value: 0, censored_value: 1}   # 1 is censored here
tables:
  clinical: [{column: age, type: number}, {column: is_female, type: category}]
  rna: {genes: 300}
model: {kind: omics, dim: 32}
training: {epochs: 2, batch: 32}
splits: {scheme: monte_carlo, repeats: 1}
evaluation: {bootstrap: 50}
"""


def job(name: str, folder: Path, *options: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", f"equipoise.jobs.{name}", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.mark.real
def test_omics_of_real_patients(shared_data: Path, tmp_path: Path) -> None:
    table = shared_data / "tcga" / "porpoise" / "tcga_kirp_all_clean.csv.zip"
    (tmp_path / "study.yaml").write_text(STUDY.replace("TABLE", str(table)))
    done = job("run", tmp_path, "-c", "study.yaml", "-o", "run")
    assert done.returncode == 0, done.stderr
    assert "extract: nothing to do, model omics reads tables only" in done.stderr
    result = json.loads(done.stderr.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
    assert result["status"] == "ok"
    run = tmp_path / "run"
    patients = pd.read_parquet(run / "manifest" / "patients.parquet")
    assert len(patients) == 260  # 284 rows, one per slide
    assert 0.05 < patients["OS.event"].mean() < 0.35  # read the wrong way round, it would be more than 0.65
    tables = read_json(run / "folds" / "0-0" / "targets.json")["tables"]
    assert tables["rna"]["scale"] == "none"  # z-scores
    assert len(tables["rna"]["kept"]) == 300
    high, shift, spread = (np.array(tables["rna"][part]) for part in ("high", "shift", "spread"))
    assert ((high - shift) / spread).max() < 15  # the table's z-scores reach 268
    metrics = pd.read_csv(run / "evaluation" / "metrics.csv")
    whole = metrics.query("metric == 'c_index' and role == 'test' and fold == 'all' and cohort == 'all'")
    assert np.isfinite(whole["value"].iloc[0])
    told = job("status", tmp_path, "run")
    assert "complete" in told.stdout


@pytest.mark.real
def test_label_columns_among_real_genes_are_leakage(shared_data: Path, tmp_path: Path) -> None:
    """The same file without the suffix holds survival time and status among its numeric columns."""
    table = shared_data / "tcga" / "porpoise" / "tcga_kirp_all_clean.csv.zip"
    study = STUDY.replace("{path: TABLE, suffix: _mut}", "MADE").replace("TABLE", str(table))
    frame = pd.read_csv(table)
    numbers = frame[["case_id", "survival_months", "censorship", "age"]].drop_duplicates("case_id")
    numbers.to_csv(tmp_path / "made.csv", index=False)
    (tmp_path / "study.yaml").write_text(study.replace("MADE", "made.csv"))
    refused = job("validate", tmp_path, "-c", "study.yaml", "-o", "run")
    assert refused.returncode == 3
    assert "holds column 'censorship', which a task predicts: that is leakage" in refused.stderr

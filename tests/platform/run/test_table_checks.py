"""Tables that carry their batch are named with the tasks that the batch gives away."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.evaluation.metrics import harrell_c
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections import limits, splits
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study

STUDY = """\
version: 1
name: batches
cohorts:
  - {name: ALL, role: develop, clinical: clinical.csv, omics: {rna: rna.csv}}
tasks:
  - {name: CLASS, type: binary, column: CLASS, positive: one, negative: other}
  - {name: COIN, type: binary, column: COIN, positive: head, negative: tail}
  - {name: SIZE, type: regression, column: SIZE}
  - name: OS
    type: survival
    time: {column: days, unit: days}
    event: {column: dead, event_value: "1", censored_value: "0"}
model: {kind: omics}
splits: {folds: 2}
"""


def write(folder: Path, apart: bool) -> np.ndarray:
    """Two classes whose RNA is the same noise, standardised apart or together, and that differ in survival."""
    rng = np.random.default_rng(0)
    n, group = 120, np.repeat([0, 1], [70, 50])
    rna = np.exp(rng.normal(2, 1, (n, 80))) * (rng.random((n, 80)) > 0.3)
    for part in [group == 0, group == 1] if apart else [group >= 0]:
        rna[part] = (rna[part] - rna[part].mean(axis=0)) / rna[part].std(axis=0)
    days = rng.exponential(1000, n) / np.where(group, 8, 1) + 1
    clinical = pd.DataFrame(
        {
            "PATIENT": [f"P{i}" for i in range(n)],
            "CLASS": np.where(group, "one", "other"),
            "COIN": rng.choice(["head", "tail"], n),
            "SIZE": (group + rng.normal(0, 0.2, n)).round(4),
            "days": days.round(1),
            "dead": (rng.random(n) < 0.7).astype(int),
        }
    )
    clinical.to_csv(folder / "clinical.csv", index=False)
    table = pd.DataFrame(rna.round(4), columns=[f"G{i}" for i in range(80)])
    table.insert(0, "PATIENT", clinical["PATIENT"])
    table.to_csv(folder / "rna.csv", index=False)
    (folder / "study.yaml").write_text(STUDY)
    return group


def validated(folder: Path) -> Path:
    study = load_study(folder / "study.yaml")
    steps.run_steps(study, RunFolder.open(study, str(folder / "run"), "auto"), ["validate"])
    return folder / "run"


def test_spoiled_tasks_are_named_everywhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    group = write(tmp_path, apart=True)
    run = validated(tmp_path)
    (found,) = read_json(run / "manifest" / "table_batches.json")
    assert found["groups"] == [{"ALL": 70}, {"ALL": 50}]
    tasks = {task["task"]: task for task in found["tasks"]}
    assert [name for name, task in tasks.items() if task["spoiled"]] == ["CLASS", "SIZE", "OS"]
    assert tasks["CLASS"]["value"] == 1
    clinical = pd.read_csv(tmp_path / "clinical.csv")
    assert tasks["OS"]["value"] == pytest.approx(float(harrell_c(clinical["days"], clinical["dead"], group)))
    of_group = clinical.groupby(group)["SIZE"].transform("mean")
    assert tasks["SIZE"]["value"] == pytest.approx(np.var(of_group) / np.var(clinical["SIZE"]))
    said = "rna carries its batch: 2 groups of patients share no repeated value"
    assert said in caplog.text
    assert "CLASS (balanced accuracy 1.000 by the group alone, 0.500 by chance)" in caplog.text
    assert any(said in warning for warning in read_json(run / "manifest" / "warnings.json"))
    files = RunFiles(run)
    assert any("rna carries the batch" in s and "CLASS and SIZE and OS" in s for s in limits.limits(files))
    assert "Tables that carry their batch" in str(splits.build(files, SectionParams()).blocks)


def test_a_table_that_was_prepared_once_is_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, apart=False)
    run = validated(tmp_path)
    assert read_json(run / "manifest" / "table_batches.json") == []
    assert "carries its batch" not in caplog.text


@pytest.mark.real
def test_porpoise_rna_tells_gbm_from_lgg(shared_data: Path, tmp_path: Path) -> None:
    table = shared_data / "tcga" / "porpoise" / "tcga_gbmlgg_all_clean.csv.zip"
    (tmp_path / "study.yaml").write_text(f"""\
version: 1
name: gbmlgg
cohorts:
  - name: TCGA-GBMLGG
    role: develop
    clinical: {table}
    omics:
      rna: {{path: {table}, suffix: _rnaseq}}
      cnv: {{path: {table}, suffix: _cnv}}
      mutation: {{path: {table}, suffix: _mut}}
tasks:
  - name: OS
    type: survival
    time: {{column: survival_months, unit: months}}
    event: {{column: censorship, event_value: "0", censored_value: "1"}}
model: {{kind: omics}}
splits: {{folds: 5}}
""")
    run = validated(tmp_path)
    (found,) = read_json(run / "manifest" / "table_batches.json")
    assert (found["modality"], found["reason"]) == ("rna", "exact values")
    codes = pd.read_csv(table, usecols=["case_id", "oncotree_code"]).drop_duplicates("case_id")
    glioblastomas = int((codes["oncotree_code"] == "GBM").sum())
    assert [sum(group.values()) for group in found["groups"]] == [len(codes) - glioblastomas, glioblastomas]
    (task,) = found["tasks"]
    assert task["spoiled"]
    assert 0.68 < task["value"] < 0.74  # the GBM indicator alone, as measured elsewhere: .709

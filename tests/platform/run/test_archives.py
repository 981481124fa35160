"""Runs that an earlier version began are finished by this one, with the predictions of that version.

``archives/<commit>`` was written by the version at that commit: tables and study; ``run``, which was stopped after
the second of four epochs of its second fold, and whose federation (scaffold, which keeps state at the clients) was
stopped after the second of three rounds; and under ``expected`` the predictions of the same study without a stop.
Scores are compared to 1e-5: bits depend on the machine that computes them.
"""

import shutil
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.training import checkpoint

ARCHIVES = sorted(path for path in (Path(__file__).parent / "archives").iterdir() if path.is_dir())
KEYS = ["patient", "cohort", "fold", "role", "task", "class"]


def same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(table) == len(expected) > 0
    both = table.merge(expected, on=KEYS, suffixes=("", "_before"), validate="one_to_one")
    assert len(both) == len(expected)
    assert both["score"].to_numpy() == pytest.approx(both["score_before"].to_numpy(), abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.name)
def test_an_interrupted_run_goes_on(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    base = tmp_path / "study"
    shutil.copytree(archive, base)
    # The defaults of that version, which are others by now.
    balancing = {"weighting": "uncertainty", "aggregation": "pcgrad", "weighting_params": {"reach": 0}}
    federation = {"federation.keep": "last", "federation.local.schedule": "constant"}
    then = {"training.monitor": "val_loss", "balancing": balancing} | federation
    study = load_study(base / "study.yaml", then)
    run = base / "run"
    finished = run / "folds" / "0-0" / "model.safetensors"
    before = finished.stat().st_mtime_ns
    saved: list[Path] = []
    save = checkpoint.save

    def counting(path: Path, *rest: object) -> None:
        saved.append(path)
        save(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checkpoint, "save", counting)

    def run_steps(*names: str) -> None:
        steps.run_steps(study, RunFolder.open(study, str(run), "must"), names)

    run_steps("validate", "extract", "train", "evaluate")
    assert finished.stat().st_mtime_ns == before
    assert [("0-1" in str(path)) for path in saved] == [True, True]  # epochs 3 and 4, and no other fold
    same(
        pd.read_parquet(run / "evaluation" / "predictions.parquet"),
        pd.read_parquet(archive / "expected" / "predictions.parquet"),
    )
    # Local models are judged on their own patients by now, and are trained again.
    shutil.rmtree(run / "federated" / "folds" / "local")
    with caplog.at_level("INFO", logger="equipoise"):
        run_steps("federate")
    assert "continuing after round 2" in caplog.text
    same(
        pd.read_parquet(run / "federated" / "predictions" / "folds" / "federated.parquet"),
        pd.read_parquet(archive / "expected" / "federated.parquet"),
    )

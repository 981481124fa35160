"""Baselines in the report and on the leaderboard: a table, sentences, grey rows."""

from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.evaluation.baselines import evaluate_baselines, write_baselines
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.report.baseline_rows import (
    baseline_blocks,
    baseline_limits,
    baseline_rows,
    baseline_sentence,
    strongest_baseline,
)
from equipoise.platform.report.run_files import RunFiles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, made: type, write: object) -> Path:
    """A run with two baselines: the run's own scores of MSI turned round, and its own scores of all tasks."""
    folder = write(tmp_path_factory.mktemp("baselines") / "run", made())  # type: ignore[operator]
    predictions = read_predictions(folder / "evaluation/predictions.parquet")
    msi = predictions[predictions["task"] == "MSI"]
    scored = {"cohort": msi.assign(score=1 - msi["score"]), "elastic_net, tables": predictions}
    table = evaluate_baselines(predictions, scored, EvaluationParams(bootstrap=50), 0)
    write_baselines(scored, table, folder / "evaluation")
    return folder


def test_the_table_has_a_row_per_baseline_and_the_lead(run: Path) -> None:
    files = RunFiles(run)
    msi = next(task for task in files.tasks if task.name == "MSI")
    (table,) = baseline_blocks(files, msi)
    assert [row[0] for row in table.rows] == ["cohort", "elastic_net, tables"]  # type: ignore[union-attr]
    assert "external crc-x" in " ".join(table.columns)  # type: ignore[union-attr]
    others = next(task for task in files.tasks if task.name == "LISS")
    (table,) = baseline_blocks(files, others)
    assert [row[0] for row in table.rows] == ["elastic_net, tables"]  # type: ignore[union-attr]


def test_the_strongest_is_named_and_a_model_that_is_not_ahead_of_it(run: Path) -> None:
    files = RunFiles(run)
    best = strongest_baseline(files, "MSI")
    assert best is not None
    assert best["predictor"] == "elastic_net, tables"
    assert "The strongest baseline, “elastic_net, tables”, has AUROC" in baseline_sentence(files, "MSI")
    sentences = baseline_limits(files)
    assert len(sentences) <= len(files.tasks)
    assert baseline_sentence(files, "no such task") == ""


def test_a_model_behind_its_baseline_is_a_limit(run: Path, tmp_path: Path) -> None:
    table = pd.read_csv(run / "evaluation/baselines.csv")
    mine = table["predictor"].eq("elastic_net, tables") & table["task"].eq("MSI")
    table.loc[mine, ["lead", "lead_low", "lead_high"]] = [-0.1, -0.15, -0.05]
    (tmp_path / "evaluation").mkdir()
    table.to_csv(tmp_path / "evaluation/baselines.csv", index=False)
    (tmp_path / "evaluation/predictions.parquet").write_bytes(
        (run / "evaluation/predictions.parquet").read_bytes()
    )
    (text,) = [line for line in baseline_limits(RunFiles(tmp_path)) if line.startswith("MSI")]
    assert "is behind the baseline “elastic_net, tables”" in text


def test_rows_of_the_leaderboard(run: Path) -> None:
    rows = baseline_rows({"run": RunFiles(run)}, [("MSI", "test", "all"), ("LISS", "test", "all")])
    assert [row[1].text for row in rows] == ["cohort", "elastic_net, tables"]  # type: ignore[union-attr]
    assert rows[0][-1].text == "–"  # type: ignore[union-attr]
    assert all(len(row) == 7 for row in rows)
    assert baseline_rows({}, []) == []

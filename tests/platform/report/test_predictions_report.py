"""Predictions alone: our table and STAMP's give metrics, tables and a page without a study."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.report.predictions_report import evaluate_predictions, evaluation_params


@pytest.fixture
def stamp(tmp_path: Path) -> list[Path]:
    """Two splits of a cross-validation as STAMP writes them."""
    rng = np.random.default_rng(0)
    paths = []
    for fold in range(2):
        positive = rng.random(50) < 0.4
        score = 1 / (1 + np.exp(-(1.5 * (positive - 0.5) + rng.normal(size=50))))
        names = np.where(positive, "MSIH", "nonMSIH")
        table = pd.DataFrame(
            {
                "PATIENT": [f"p{fold}{i:02d}" for i in range(50)], "isMSIH": names,
                "pred": np.where(score > 0.5, "MSIH", "nonMSIH"), "isMSIH_MSIH": score,
                "isMSIH_nonMSIH": 1 - score, "loss": 0.1,
            }
        )  # fmt: skip
        paths.append(tmp_path / f"patient-preds-{fold}.csv")
        table.to_csv(paths[-1], index=False)
    return paths


def test_stamp_tables_give_metrics_tables_and_a_page(stamp: list[Path], tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    params = evaluation_params({"evaluation.threshold.metric": "fixed", "evaluation.threshold.value": 0.5})
    done = evaluate_predictions(stamp, params, "MSIH", tmp_path / "out")
    tables = [pd.read_csv(path) for path in stamp]
    folds = [roc_auc_score(t["isMSIH"] == "MSIH", t["isMSIH_MSIH"]) for t in tables]
    rows = done.metrics.query("metric == 'auroc' and predictor == 'model' and fold == 'all'")
    assert rows["value"].tolist() == pytest.approx([np.mean(folds)])
    both = pd.concat(tables)
    found = ((both["isMSIH"] == "MSIH") & (both["isMSIH_MSIH"] >= 0.5)).sum()
    points = pd.read_csv(tmp_path / "out/evaluation/operating_points.csv")
    assert points.query("headline and metric == 'sensitivity'")["successes"].tolist() == [found]
    assert f"{found / (both['isMSIH'] == 'MSIH').sum():.3f}" in done.text
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "Decision curve, test folds" in page
    assert "patient-preds-0.csv, patient-preds-1.csv" in page
    assert "could not be created" not in page


def test_our_own_table_is_evaluated_as_in_its_run(run_folder: Path) -> None:
    path = run_folder / "evaluation/predictions.parquet"
    params = EvaluationParams(bootstrap=50)
    done = evaluate_predictions([path], params)
    assert done.page is None
    pd.testing.assert_frame_equal(done.metrics, evaluate(read_predictions(path), params))
    assert "external" in done.text


def test_what_cannot_be_read_or_set_is_one_error(stamp: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.csv"
    broken.write_bytes(b"\xff\xfe\x00PATIENT,\n1,2,3,4\n")
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    words = tmp_path / "words.csv"
    words.write_text("PATIENT,LISS,pred,loss\na,high,0.3,0\nb,low,0.2,0\n")
    for path in (broken, empty, words, tmp_path / "nowhere.csv"):
        with pytest.raises(DataError):
            evaluate_predictions([path], EvaluationParams())
    for setting in (
        {"training.lr": 1},
        {"evaluation.confidence": 7},
        {"evaluation.subgroups": ["SEX"]},
        {"evaluation.threshold": "youden", "evaluation.threshold.value": 1},
    ):
        with pytest.raises(StudyError):
            evaluation_params(setting)


def test_the_job_prints_the_answer(stamp: list[Path]) -> None:
    files = [word for path in stamp for word in ("--predictions", str(path))]
    command = [sys.executable, "-m", "equipoise.jobs.evaluate", *files, "--positive", "MSIH"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "auroc" in done.stdout
    assert done.stderr.strip().splitlines()[-1].startswith("EQUIPOISE-RESULT")

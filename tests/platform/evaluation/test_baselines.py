"""The table of baselines: their main metric, and the model's lead over them."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.baselines import evaluate_baselines, read_baselines, write_baselines
from equipoise.platform.evaluation.params import EvaluationParams

PARAMS = EvaluationParams(bootstrap=50)
N = 90


def predictions(task: str, noise: float, seed: int, kind: str = "binary") -> pd.DataFrame:
    """Two folds of test patients; the score is the truth behind noise."""
    rng = np.random.default_rng(seed)
    latent = np.random.default_rng(0).normal(size=N)
    score = latent + noise * rng.normal(size=N)
    return pd.DataFrame(
        {
            "patient": [f"P{i}" for i in range(N)],
            "cohort": "A",
            "site": "S",
            "repeat": 0,
            "fold": np.arange(N) % 2,
            "role": "test",
            "task": task,
            "class": "MSI-H" if kind == "binary" else "",
            "score": 1 / (1 + np.exp(-score)) if kind == "binary" else score,
            "target": (latent > 0.4).astype(float) if kind == "binary" else np.nan,
            "time": np.nan if kind == "binary" else np.round(400 * np.exp(-latent)) + 1,
            "event": np.nan if kind == "binary" else (np.arange(N) % 3 > 0).astype(float),
        }
    )


def both(noise: float, seed: int) -> pd.DataFrame:
    return pd.concat(
        [predictions("MSI", noise, seed), predictions("OS", noise, seed, "survival")], ignore_index=True
    )


def test_value_and_lead(tmp_path) -> None:
    model, weak = both(0.3, 1), both(3.0, 2)
    table = evaluate_baselines(
        model, {"weak": weak, "itself": model, "OS alone": weak[weak["task"] == "OS"]}, PARAMS, 0
    )
    assert table[["predictor", "task", "metric"]].to_numpy().tolist() == [
        ["weak", "MSI", "auroc"],
        ["weak", "OS", "c_index"],
        ["itself", "MSI", "auroc"],
        ["itself", "OS", "c_index"],
        ["OS alone", "OS", "c_index"],
    ]
    rows = {(row.predictor, row.task): row for row in table.itertuples()}

    def auroc(frame: pd.DataFrame) -> float:
        folds = [part for _, part in frame[frame["task"] == "MSI"].groupby("fold")]
        return float(np.mean([roc_auc_score(part["target"], part["score"]) for part in folds]))

    one = rows["weak", "MSI"]
    assert one.value == pytest.approx(auroc(weak))
    assert one.lead == pytest.approx(auroc(model) - auroc(weak))
    assert one.low < one.value < one.high
    assert 0 < one.lead_low < one.lead < one.lead_high
    assert one.p < 0.01
    assert one.n == N
    assert one.n_pos == (weak["target"] == 1).sum()
    assert rows["itself", "MSI"].lead == 0
    assert rows["OS alone", "OS"].value == rows["weak", "OS"].value
    write_baselines({"weak": weak}, table, tmp_path)
    pd.testing.assert_frame_equal(read_baselines(tmp_path / "baselines.csv"), table, check_dtype=False)
    written = pd.read_parquet(tmp_path / "baselines.parquet")
    assert written["predictor"].unique().tolist() == ["weak"]
    assert len(written) == len(weak)


def test_no_baseline_at_all(tmp_path) -> None:
    table = evaluate_baselines(both(0.3, 1), {}, PARAMS, 0)
    write_baselines({}, table, tmp_path)
    assert read_baselines(tmp_path / "baselines.csv").empty
    assert pd.read_parquet(tmp_path / "baselines.parquet").empty


def test_another_table_is_refused(tmp_path) -> None:
    (tmp_path / "baselines.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="lack the columns"):
        read_baselines(tmp_path / "baselines.csv")

"""metrics.csv and metrics.json hold the same numbers and survive odd names."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.metrics_table import read_metrics, write_metrics
from equipoise.platform.evaluation.params import EvaluationParams

FAST = EvaluationParams(bootstrap=100)


def test_round_trip_with_a_cohort_called_na(binary: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    metrics = evaluate(binary("external", cohort="NA"), FAST)
    paths = write_metrics(metrics, tmp_path / "evaluation", FAST)
    assert [p.name for p in paths] == ["metrics.csv", "metrics.json"]
    back = read_metrics(paths[0])
    pd.testing.assert_frame_equal(back, metrics)
    assert set(back["cohort"]) == {"NA"}


def test_json_is_strict_and_names_its_parameters(binary: Callable[..., pd.DataFrame], tmp_path: Path) -> None:
    metrics = evaluate(binary(), FAST)
    document = json.loads(write_metrics(metrics, tmp_path, FAST)[1].read_text(), parse_constant=pytest.fail)
    assert document["parameters"]["bootstrap"] == 100
    assert len(document["metrics"]) == len(metrics)
    first = document["metrics"][0]
    assert first["value"] == pytest.approx(metrics["value"].iloc[0])
    missing = metrics["value"].isna().to_numpy().nonzero()[0][0]
    assert document["metrics"][missing]["value"] is None
    assert json.loads(write_metrics(metrics, tmp_path)[1].read_text())["parameters"] is None


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("task,value\nMSI,0.8\n")
    with pytest.raises(DataError, match="lack the columns role"):
        read_metrics(tmp_path / "metrics.csv")

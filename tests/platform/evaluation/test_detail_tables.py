"""Tables beside the metrics are written, read again, and removed where they no longer apply."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.detail_tables import DETAIL_TABLES, read_detail, write_details
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import validate

Rows = Callable[..., pd.DataFrame]


def test_all_tables_there_and_back(everything: pd.DataFrame, tmp_path: Path) -> None:
    predictions = validate(everything.assign(cohort="NA"))
    patients = predictions["patient"].unique()
    values = pd.DataFrame({"SEX": np.where(np.arange(len(patients)) % 2, "f", "m")}, index=patients)
    write_details(predictions, tmp_path, EvaluationParams(), values)
    names = {path.stem for path in tmp_path.glob("*.csv")}
    assert names == {*DETAIL_TABLES, "subgroups"}
    for name in names:
        table = read_detail(tmp_path / f"{name}.csv")
        assert "NA" in set(table["cohort"]), name
    assert (
        pd.read_parquet(tmp_path / "subgroups.parquet")
        .set_index("patient")["SEX"]
        .equals(values["SEX"].rename_axis("patient"))
    )


def test_tables_of_an_earlier_run_go(binary: Rows, regression: Rows, tmp_path: Path) -> None:
    write_details(validate(binary("test")), tmp_path, EvaluationParams())
    assert (tmp_path / "calibration.csv").exists()
    assert write_details(validate(regression("test")), tmp_path, EvaluationParams()) == []
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_its_columns_is_refused(tmp_path: Path) -> None:
    (tmp_path / "calibration.csv").write_text("role,cohort\ntest,a\n")
    with pytest.raises(DataError, match="lacks the columns task"):
        read_detail(tmp_path / "calibration.csv")

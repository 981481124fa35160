"""Predictions in STAMP's column names."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.stamp_export import export_stamp, stamp_tables

Rows = Callable[..., pd.DataFrame]


def test_classification_columns_and_values(binary: Rows) -> None:
    rows = binary(n=12, folds=2)
    rows.loc[rows["patient"] == "pt002", "target"] = np.nan
    tables = stamp_tables(rows, {"MSI": "MSS"})
    assert set(tables) == {"MSI/test-0-0", "MSI/test-0-1"}
    table = tables["MSI/test-0-0"]
    assert list(table) == ["PATIENT", "MSI", "pred", "MSI_MSI-H", "MSI_MSS", "loss"]
    of = rows.set_index("patient").loc[table["PATIENT"]]
    assert table["MSI_MSI-H"].tolist() == of["score"].tolist()
    assert table["MSI_MSS"].tolist() == pytest.approx((1 - of["score"]).tolist())
    assert table["pred"].tolist() == np.where(of["score"] >= 0.5, "MSI-H", "MSS").tolist()
    first = table.iloc[0]
    assert first["MSI"] == "MSI-H"
    assert first["loss"] == pytest.approx(-np.log(first["MSI_MSI-H"]))
    unknown = table[table["PATIENT"] == "pt002"].iloc[0]
    assert unknown["MSI"] is None
    assert np.isnan(unknown["loss"])


def test_multiclass_regression_survival(multiclass: Rows, regression: Rows, survival: Rows) -> None:
    tables = stamp_tables(
        pd.concat([multiclass(n=8, folds=1), regression(n=8, folds=1), survival(n=8, folds=1)])
    )
    grade = tables["Grade/test-0-0"]
    assert list(grade) == ["PATIENT", "Grade", "pred", "Grade_G1", "Grade_G2", "Grade_G3", "loss"]
    assert grade[["Grade_G1", "Grade_G2", "Grade_G3"]].sum(axis=1).tolist() == pytest.approx([1.0] * 8)
    liss = tables["LISS/test-0-0"]
    assert list(liss) == ["PATIENT", "LISS", "pred", "loss"]
    assert liss["loss"].tolist() == pytest.approx((liss["LISS"] - liss["pred"]).abs().tolist())
    assert list(tables["OS/test-0-0"]) == ["PATIENT", "pred_score", "time", "event"]


def test_external_also_as_mean_and_files(binary: Rows, tmp_path: Path) -> None:
    rows = binary("external", n=5, models=2)
    written = export_stamp(rows, tmp_path)
    names = sorted(p.relative_to(tmp_path).as_posix() for p in written)
    assert names == ["MSI/external-0-0.csv", "MSI/external-0-1.csv", "MSI/external-mean.csv"]
    mean = pd.read_csv(tmp_path / "MSI/external-mean.csv").set_index("PATIENT")
    expected = rows.groupby("patient")["score"].mean()
    assert mean["MSI_MSI-H"].tolist() == pytest.approx(expected.tolist())


def test_unlabelled_external_survival_keeps_its_layout(survival: Rows) -> None:
    external = survival("external", n=5, folds=2).assign(time=np.nan, event=np.nan)
    tables = stamp_tables(pd.concat([survival(n=8, folds=2), external]))
    assert {tuple(table) for table in tables.values()} == {("PATIENT", "pred_score", "time", "event")}
    assert tables["OS/external-mean"]["time"].isna().all()

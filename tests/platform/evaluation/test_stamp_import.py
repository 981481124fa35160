"""STAMP's tables of predictions give the metrics of our own table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.stamp_export import export_stamp, stamp_tables
from equipoise.platform.evaluation.stamp_import import is_stamp, predictions_from_stamp, read_any, read_table

Rows = Callable[..., pd.DataFrame]
#: What a STAMP table keeps of a predictions table.
KEPT = ["patient", "fold", "class", "score", "target", "time", "event"]


def folds_of(rows: pd.DataFrame, negative: dict[str, str] | None = None) -> list[pd.DataFrame]:
    return list(stamp_tables(rows, negative).values())


def same(imported: pd.DataFrame, rows: pd.DataFrame) -> None:
    expected = rows.sort_values(["patient", "repeat", "fold", "class"], ignore_index=True)
    pd.testing.assert_frame_equal(imported[KEPT], expected[KEPT], check_dtype=False)
    assert set(imported["role"]) == {"test"}


def test_binary_there_and_back(binary: Rows) -> None:
    rows = binary(n=24, folds=3)
    rows.loc[rows["patient"] == rows["patient"].iloc[0], "target"] = np.nan
    folds = folds_of(rows, {"MSI": "MSS"})
    assert len(folds) == 3
    same(predictions_from_stamp(folds, positive="MSI-H"), rows)


def test_binary_without_a_positive_class_has_both(binary: Rows) -> None:
    rows = binary(n=24, folds=3)
    both = predictions_from_stamp(folds_of(rows, {"MSI": "MSS"}))
    assert set(both["class"]) == {"MSI-H", "MSS"}
    one = rows.assign(cohort="cohort", site="cohort")
    params = EvaluationParams(bootstrap=50)
    ours, theirs = (
        table[table["predictor"] == "model"] for table in (evaluate(one, params), evaluate(both, params))
    )
    auroc = ours[(ours["metric"] == "auroc") & (ours["fold"] == "all")]["value"].tolist()
    of_both = theirs[(theirs["metric"] == "auroc") & (theirs["fold"] == "all")]["value"].tolist()
    assert len(auroc) == 1
    assert of_both == pytest.approx(auroc * 3, abs=1e-12), (
        "the mean, and one class against the other both ways"
    )


def test_multiclass_regression_survival_there_and_back(
    multiclass: Rows, regression: Rows, survival: Rows
) -> None:
    for make in (multiclass, regression, survival):
        rows = make(n=24, folds=2)
        same(predictions_from_stamp(folds_of(rows)), rows)


def test_files_in_both_layouts(regression: Rows, survival: Rows, tmp_path: Path) -> None:
    rows = survival(n=20, folds=2)
    files = export_stamp(rows, tmp_path)
    tables = [read_table(file) for file in sorted(files)]
    assert all(is_stamp(table) for table in tables)
    same(predictions_from_stamp(tables), rows)
    ours = regression(n=20, folds=2)
    ours.to_csv(tmp_path / "ours.csv", index=False)
    assert not is_stamp(read_table(tmp_path / "ours.csv"))
    assert set(read_table(tmp_path / "ours.csv")["class"]) == {""}
    with pytest.raises(DataError, match="no such file"):
        read_table(tmp_path / "absent.csv")


def test_tables_of_a_spreadsheet_in_another_language(binary: Rows, tmp_path: Path) -> None:
    [table] = folds_of(binary(n=12, folds=1), {"MSI": "MSS"})
    table.to_csv(tmp_path / "en.csv", index=False)
    table.to_csv(tmp_path / "de.csv", index=False, sep=";", decimal=",")
    english, german = (read_any([tmp_path / name], "MSI-H") for name in ("en.csv", "de.csv"))
    pd.testing.assert_frame_equal(english, german)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "preds.csv: the table is empty"),
        ("PATIENT,LISS,pred,loss\n", "preds.csv: the table has column names but no rows"),
        (
            "PATIENT,LISS,pred,loss\np1,1.5,high,0\n",
            "preds.csv: column 'score' does not hold numbers: 'high'",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_words(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "preds.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_any([tmp_path / "preds.csv"])
    with pytest.raises(DataError, match="this is a folder"):
        read_any([tmp_path])


def test_without_validation_patients_no_threshold_is_said_to_lack_them(binary: Rows) -> None:
    [table] = folds_of(binary(n=40, folds=1), {"MSI": "MSS"})
    metrics = evaluate(predictions_from_stamp([table], "MSI-H"), EvaluationParams(bootstrap=50))
    [note] = metrics[(metrics["metric"] == "sensitivity") & (metrics["fold"] == "all")]["note"]
    assert "there are no validation patients to choose it on" in note


def test_patients_named_na_are_patients(tmp_path: Path) -> None:
    table = pd.DataFrame({"PATIENT": ["NA", "007"], "LISS": [1.0, ""], "pred": [1.5, 2.0], "loss": [0.5, ""]})
    table.to_csv(tmp_path / "preds.csv", index=False)
    rows = predictions_from_stamp([read_table(tmp_path / "preds.csv")])
    assert rows["patient"].tolist() == ["007", "NA"]
    assert rows["target"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="pred"), "neither our predictions table nor STAMP's"),
        (lambda t: t.drop(columns="MSI"), "which column holds the label"),
        (lambda t: t.assign(age=1), "which column holds the label"),
        (lambda t: t.replace({"MSI": {"MSS": "MSI-L"}}), "labels without a column of scores: MSI-L"),
        (lambda t: pd.concat([t, t]), "two rows for the same"),
    ],
)
def test_other_tables_are_refused(
    binary: Rows, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    [table] = folds_of(binary(n=12, folds=1), {"MSI": "MSS"})
    with pytest.raises(DataError, match=message):
        predictions_from_stamp([change(table)], positive="MSI-H")


def test_positive_must_be_a_class_and_tables_of_one_task(binary: Rows, regression: Rows) -> None:
    [table] = folds_of(binary(n=12, folds=1), {"MSI": "MSS"})
    with pytest.raises(DataError, match="'MSIH' is not one of two classes; the table has MSI-H, MSS"):
        predictions_from_stamp([table], positive="MSIH")
    [other] = folds_of(regression(n=12, folds=1))
    with pytest.raises(DataError, match="of several tasks: LISS, MSI"):
        predictions_from_stamp([table, other])
    with pytest.raises(DataError, match="no table"):
        predictions_from_stamp([])

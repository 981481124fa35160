"""The contract of the predictions table."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.predictions import (
    COLUMNS,
    KEYS,
    kind_of,
    labelled,
    read_predictions,
    validate,
    write_predictions,
)

Rows = Callable[..., pd.DataFrame]


def test_rows_come_out_typed_and_in_canonical_order(binary: Rows, survival: Rows) -> None:
    table = pd.concat([survival(), binary()]).sample(frac=1, random_state=0)
    valid = validate(table.astype({"repeat": "int64", "fold": "float64"}))
    assert list(valid) == list(COLUMNS)
    assert valid["fold"].dtype == np.int32
    assert valid["score"].dtype == np.float64
    keys = list(valid[list(KEYS)].itertuples(index=False, name=None))
    assert keys == sorted(keys)


def test_files_are_the_same_bytes_for_the_same_rows(binary: Rows, tmp_path: Path) -> None:
    table = binary()
    first = write_predictions(table, tmp_path / "a.parquet")
    second = write_predictions(table.sample(frac=1, random_state=3), tmp_path / "b.parquet")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]


def test_round_trip_keeps_names_that_look_like_missing_values(binary: Rows, tmp_path: Path) -> None:
    table = binary().assign(cohort="NA", site="01")
    table.loc[:5, "target"] = np.nan
    back = read_predictions(write_predictions(table, tmp_path / "p.parquet"))
    pd.testing.assert_frame_equal(back, validate(table))
    assert set(back["cohort"]) == {"NA"}
    assert set(back["site"]) == {"01"}


WRONG = {
    "no finite score": ({"score": np.inf}, "score is not a finite number"),
    "missing score": ({"score": np.nan}, "score is not a finite number"),
    "probability": ({"score": 1.2}, "probability in"),
    "target": ({"target": 2.0}, "target of a class is 0 or 1"),
    "infinite target": ({"target": np.inf}, "infinite"),
    "role": ({"role": "train"}, "role is not one of val, test, external"),
    "event": ({"time": 3.0, "event": 2.0}, "event is neither 0 nor 1"),
    "time alone": ({"time": 3.0}, "time and event"),
    "time zero": ({"time": 0.0, "event": 1.0}, "time is not above 0"),
    "patient": ({"patient": None}, "column 'patient' is empty"),
    "fold": ({"fold": 0.5}, "does not hold whole numbers: 0.5"),
    "text": ({"score": "high"}, "does not hold numbers: 'high'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_true_is_refused(binary: Rows, case: str) -> None:
    change, message = WRONG[case]
    table = binary().astype(object)
    for column, value in change.items():
        table.loc[7, column] = value
    with pytest.raises(DataError, match=message):
        validate(table)


def test_duplicates_name_a_patient(binary: Rows) -> None:
    table = binary()
    with pytest.raises(DataError, match=r"two rows.*'pt000' task MSI test fold 0-0"):
        validate(pd.concat([table, table.head(1)]))


def test_a_patient_in_validation_and_test_of_a_fold_is_leakage(binary: Rows) -> None:
    table = binary()
    with pytest.raises(DataError, match="leakage"):
        validate(pd.concat([table, table.head(1).assign(role="val")]))
    # The same patient may be validation of one fold and test of another.
    validate(pd.concat([table, table.head(1).assign(role="val", fold=3)]))


def test_columns_are_exactly_those(binary: Rows) -> None:
    with pytest.raises(DataError, match="lacks score and has unknown logit"):
        validate(binary().rename(columns={"score": "logit"}))


def test_classes_are_complete_and_exclusive(multiclass: Rows, binary: Rows) -> None:
    table = multiclass()
    with pytest.raises(DataError, match="lacks some of its task's classes"):
        validate(table.iloc[1:])
    several = table.copy()
    several.loc[several["patient"] == table["patient"][0], "target"] = 1.0
    with pytest.raises(DataError, match="more than one true class"):
        validate(several)
    with pytest.raises(DataError, match="with and without a class"):
        validate(pd.concat([binary(), binary().assign(**{"class": ""})]))


def test_kinds_and_labels(binary: Rows, multiclass: Rows, regression: Rows, survival: Rows) -> None:
    parts = {
        "binary": binary(),
        "multiclass": multiclass(),
        "regression": regression(),
        "survival": survival(),
    }
    assert {kind: kind_of(rows) for kind, rows in parts.items()} == {k: k for k in parts}
    late = survival()
    late.loc[:3, ["time", "event"]] = np.nan
    assert labelled(late).sum() == len(late) - 4


def test_missing_newer_and_foreign_files(binary: Rows, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no predictions yet"):
        read_predictions(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("patient,score")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_predictions(tmp_path / "text.parquet")
    newer = pa.Table.from_pandas(binary(), preserve_index=False)
    pq.write_table(newer.replace_schema_metadata({"equipoise.predictions": "2"}), tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="layout version 2"):
        read_predictions(tmp_path / "newer.parquet")

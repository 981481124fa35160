"""Covariates: from the clinical table to numbers, and from training patients to model inputs."""

import json

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.covariates import covariate_table
from equipoise.datasets.omics.fitting import CovariateTransform, fit_covariates
from equipoise.datasets.omics.params import Covariate
from equipoise.datasets.omics.statistics import LocalTable

AGE = Covariate(column="AGE", type="number", missing=["-9"])
SEX = Covariate(column="SEX", type="category", missing=["Unknown"])


def labels(**columns: list[str]) -> pd.DataFrame:
    n = len(next(iter(columns.values())))
    return pd.DataFrame(columns, index=pd.Index([f"p{i}" for i in range(n)], name="patient"))


def table(**columns: list[str]) -> pd.DataFrame:
    return covariate_table([("A", labels(**columns))], [AGE, SEX])[0]


def test_numbers_and_categories_become_columns() -> None:
    result, notes = covariate_table(
        [("A", labels(AGE=["50", "NA", "-9", "old"], SEX=["f", "m", "Unknown", ""]))], [AGE, SEX]
    )
    assert result.columns.tolist() == ["AGE", "SEX=f", "SEX=m"]
    assert result.index.tolist() == ["p0", "p1"]
    np.testing.assert_array_equal(result.loc["p0"], np.array([50, 1, 0], np.float32))
    np.testing.assert_array_equal(result.loc["p1"], np.array([np.nan, 0, 1], np.float32))
    assert any("1 values are no numbers" in note and "old" in note for note in notes)
    assert "clinical: 2 of 4 patients have no covariate at all" in notes


def test_a_column_that_one_cohort_lacks() -> None:
    parts = [("A", labels(AGE=["50"], SEX=["f"])), ("B", labels(AGE=["60"]).rename(index={"p0": "q0"}))]
    result, notes = covariate_table(parts, [AGE, SEX])
    assert np.isnan(result.loc["q0", "SEX=f"])
    assert "covariate 'SEX': cohort B has no such column; missing for its patients" in notes
    with pytest.raises(DataError, match="no cohort has the column 'SEX'; nearest: 'Sex'"):
        covariate_table(parts[1:], [SEX], ["Sex", "AGE"])


@pytest.mark.parametrize(
    ("column", "covariate", "said"),
    [
        (["old", "young", "7"], AGE, "2 of 3 values are not numbers"),
        (["0.3", "256666666667", "1"], AGE, "orders of magnitude"),
        ([str(i) for i in range(60)], SEX, "a category with 60 values"),
    ],
)
def test_columns_that_are_not_what_they_should_be(column: list[str], covariate, said: str) -> None:
    with pytest.raises(DataError, match=said):
        covariate_table([("A", labels(**{covariate.column: column}))], [covariate])


def fit(frame: pd.DataFrame) -> CovariateTransform:
    return fit_covariates(LocalTable(frame.to_numpy(), tuple(frame.columns)), [AGE, SEX])


def test_known_levels_gaps_and_unknown() -> None:
    frame = table(AGE=["40", "60", "NA", "50"], SEX=["f", "m", "f", ""])
    transform = fit(frame)
    assert transform.names == ("AGE", "AGE missing", "SEX=f", "SEX=m", "SEX=unknown")
    columns = tuple(frame.columns)
    rows = [transform.apply(row, columns) for row in frame.to_numpy()]
    assert rows[0][1:].tolist() == [0, 1, 0, 0]
    assert rows[2][1:].tolist() == [1, 1, 0, 0]
    assert rows[2][0] == pytest.approx(rows[3][0])  # the median
    assert rows[3][1:].tolist() == [0, 0, 0, 1]


def test_what_training_does_not_show_is_not_learned() -> None:
    """A value that nobody in training has is unknown; nobody unknown in training: the training shares."""
    frame = table(AGE=["40", "60", "50", "52", "x"], SEX=["f", "m", "f", "f", "diverse"])
    columns = tuple(frame.columns)
    transform = fit(frame.iloc[:4])
    assert transform.names == ("AGE", "SEX=f", "SEX=m")
    assert transform.apply(frame.to_numpy()[4], columns)[1:].tolist() == [0.75, 0.25]
    # A table of another study, with its own columns, is read by name.
    assert transform.apply(np.array([1.0, 50.0]), ("SEX=m", "AGE"))[1:].tolist() == [0, 1]


def test_constant_covariates_are_left_out() -> None:
    transform = fit(table(AGE=["50", "50", "50"], SEX=["f", "f", "m"]))
    assert transform.names == ("SEX=f", "SEX=m")
    transform = fit(table(AGE=["50", "51", "50"], SEX=["f", "f", "f"]))
    assert transform.names == ("AGE",)
    assert fit(table(AGE=["50", "50"], SEX=["f", "f"])).names == ()


def test_json_round_trip() -> None:
    transform = fit(table(AGE=["40", "60", "NA", "50"], SEX=["f", "m", "f", ""]))
    assert CovariateTransform.from_json(json.loads(json.dumps(transform.to_json()))) == transform

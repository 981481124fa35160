"""Columns that patients are grouped by, read from the clinical tables of all cohorts."""

from pathlib import Path

import pandas as pd
import pytest

from equipoise.datasets.cohorts.patient_columns import patient_columns
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource


@pytest.fixture
def sources(tmp_path: Path) -> list[CohortSource]:
    (tmp_path / "a.csv").write_text("PATIENT,SEX,AGE\np1,f,61\np2,,70\np2,m,70\np3,f,50\np3,m,50\n")
    (tmp_path / "b.csv").write_text("PATIENT,SEX\nq1,NA\nq2,m\n")
    return [
        CohortSource.model_validate({"name": name, "role": "develop", "clinical": f"{name}.csv"})
        for name in "ab"
    ]


def test_values_of_all_cohorts(sources: list[CohortSource], tmp_path: Path) -> None:
    table = patient_columns(sources, ["SEX", "AGE"], None, tmp_path, "evaluation.subgroups")
    assert table.index.tolist() == ["p1", "p2", "p3", "q1", "q2"]
    sex = table["SEX"].where(table["SEX"].notna(), "?").tolist()
    assert sex == ["f", "m", "?", "?", "m"], "a value on another row counts, a contradiction and NA do not"
    assert table.loc["p1", "AGE"] == "61"
    assert pd.isna(table.loc["q2", "AGE"]), "a cohort may lack a column"


def test_a_column_that_no_cohort_has_is_refused(sources: list[CohortSource], tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"evaluation.subgroups: no cohort has the column 'SEXX'; nearest: 'SEX'"
    ):
        patient_columns(sources, ["SEXX"], None, tmp_path, "evaluation.subgroups")

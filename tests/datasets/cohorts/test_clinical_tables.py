"""Clinical tables joined by patient: the columns of all, contradictions named, nobody joined with nobody."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from equipoise.datasets.cohorts.cohort import Cohorts, load_cohorts
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource, Columns
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask

MSI = BinaryTask(name="MSI", column="MSI", positive=["high"], main=True)
AGE = RegressionTask(name="AGE", column="AGE")


def load(folder: Path, clinical: Any, **options: Any) -> Cohorts:
    source = CohortSource.model_validate({"name": "A", "role": "develop", "clinical": clinical, **options})
    return load_cohorts([source], [MSI, AGE], Columns(), folder)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    labels = pd.DataFrame(
        {"PATIENT": list("abcd"), "MSI": ["high", "low", "high", "low"], "HOSPITAL": list("xxyy")}
    )
    labels.to_csv(tmp_path / "labels.csv", index=False)
    ages = pd.DataFrame(
        {"Patient ID": list("dcbe"), "AGE": [64, 63, 62, 65], "MSI": ["low", "NA", "high", "high"]}
    )
    with pd.ExcelWriter(tmp_path / "ages.xlsx") as book:
        ages.to_excel(book, sheet_name="Ages", index=False)
        ages.head(1).to_excel(book, sheet_name="Other", index=False)
    return tmp_path


BOTH = ["labels.csv", {"path": "ages.xlsx", "sheet": "Ages"}]


def test_patients_of_all_tables_have_the_columns_of_all(tables: Path) -> None:
    cohorts = load(tables, BOTH)
    people = cohorts.patients.set_index("patient")
    # By hand: b is low in one table and high in the other; e has a label in the second table only.
    assert people.index.tolist() == ["a", "c", "d", "e"]
    assert people["MSI"].tolist() == [1, 1, 0, 1]
    assert people["AGE"].fillna(-1).tolist() == [-1, 63, 64, 65]
    assert any(
        "2 clinical tables are joined by patient: 3 patients are in all of them, 2 are not" in n
        for n in cohorts.notes
    )


def test_a_contradiction_is_an_exclusion_that_names_both_rows(tables: Path) -> None:
    (row,) = load(tables, BOTH).exclusions.itertuples()
    assert (row.patient, row.stage) == ("b", "unique")
    assert row.reason == (
        "rows 3 of labels.csv and 4 of ages.xlsx, sheet 'Ages' contradict in 'MSI': 'low' and 'high'"
    )


def test_sites_and_slides_of_joined_tables(tables: Path) -> None:
    pd.DataFrame({"PATIENT": list("acde"), "FILENAME": list("1234")}).to_csv(
        tables / "slides.csv", index=False
    )
    cohorts = load(tables, BOTH, slides="slides.csv", site={"column": "HOSPITAL"})
    assert dict(zip(cohorts.patients["patient"], cohorts.patients["site"], strict=True)) == {
        "a": "A:x",
        "c": "A:y",
        "d": "A:y",
        "e": "A:unknown",
    }


def test_one_table_in_brackets_is_that_table(tables: Path) -> None:
    source = CohortSource.model_validate({"name": "A", "role": "develop", "clinical": ["labels.csv"]})
    assert source == CohortSource.model_validate({"name": "A", "role": "develop", "clinical": "labels.csv"})


def test_tables_without_a_common_patient_are_refused(tables: Path) -> None:
    pd.DataFrame({"PATIENT": ["A", "B"], "AGE": [1, 2]}).to_csv(tables / "other.csv", index=False)
    with pytest.raises(
        DataError, match=r"no patient is in the tables before it: 'A', 'B' here, 'a', 'b', 'c' in"
    ):
        load(tables, ["labels.csv", "other.csv"])

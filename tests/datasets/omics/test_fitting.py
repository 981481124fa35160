"""All tables of a fold: who gets which transform, and cohorts aligned by name."""

import json

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError, DataWarning
from equipoise.datasets.omics.alignment import align, row_digests
from equipoise.datasets.omics.fitting import (
    fit_tables,
    transform_from_json,
    transform_to_json,
)
from equipoise.datasets.omics.params import Covariate, TableParams
from equipoise.datasets.omics.statistics import LocalTable


def rows(values: np.ndarray, *columns: str, cohort: str = "A") -> LocalTable:
    return LocalTable(values.astype(np.float32), columns, [cohort] * len(values))


def test_every_table_has_its_own_transform() -> None:
    rng = np.random.default_rng(0)
    mutation = rng.integers(0, 2, (30, 2))
    tables = {
        "rna": rows(rng.poisson(200, (30, 3)), "A", "B", "C"),
        "cnv": rows(rng.integers(-2, 3, (30, 2)), "A", "B"),
        "mutation": rows(mutation, "TP53", "KRAS"),
        "clinical": rows(rng.normal(60, 9, (30, 1)), "AGE"),
    }
    params = TableParams.model_validate(
        {"clinical": [{"column": "AGE", "type": "number"}], "rna": {"genes": 2}}
    )
    fitted = fit_tables(tables, params)
    assert list(fitted) == ["clinical", "cnv", "mutation", "rna"]
    assert fitted["rna"].scale == "log_cpm"
    assert len(fitted["rna"].names) == 2
    out = np.stack([fitted["cnv"].apply(row, ("A", "B")) for row in tables["cnv"].rows])
    np.testing.assert_allclose(out.std(axis=0), 1, atol=1e-5)
    assert fitted["mutation"].apply(mutation[0], ("TP53", "KRAS")).tolist() == mutation[0].tolist()
    for transform in fitted.values():
        assert transform_from_json(json.loads(json.dumps(transform_to_json(transform)))) == transform


def test_a_table_in_which_nothing_differs_is_left_out_with_a_warning() -> None:
    tables = {"mutation": rows(np.zeros((5, 2)), "A", "B"), "cnv": rows(np.eye(5), *"ABCDE")}
    with pytest.warns(DataWarning, match="mutation: no column differs among training patients"):
        assert list(fit_tables(tables, TableParams())) == ["cnv"]


def test_a_named_transform_is_not_guessed() -> None:
    values = {"rna": rows(np.random.default_rng(0).poisson(200, (9, 2)), "A", "B")}
    fitted = fit_tables(values, TableParams.model_validate({"rna": {"transform": "none", "clip": None}}))
    assert fitted["rna"].scale == "none"
    assert np.isinf(fitted["rna"].high).all()


def test_covariates_are_named_once() -> None:
    with pytest.raises(ValueError, match="column 'AGE' stands 2 times under clinical"):
        TableParams(
            clinical=[Covariate(column="AGE", type="number"), Covariate(column="AGE", type="category")]
        )
    with pytest.raises(ValueError, match="'allow_wide_range' is for numbers"):
        Covariate(column="AGE", type="category", allow_wide_range=True)


def frame(patients: str, *columns: str) -> pd.DataFrame:
    values = np.arange(len(patients) * len(columns), dtype=np.float32).reshape(len(patients), -1)
    return pd.DataFrame(values, index=list(patients), columns=list(columns))


def test_development_decides_which_columns_there_are() -> None:
    genes = [f"G{i}" for i in range(20)]
    matrices = {
        "A": frame("ab", *genes, "X"),
        "B": frame("c", *genes[::-1]),
        "E": frame("e", "Y", *genes[1:]),
    }
    matrix, notes = align("rna", matrices, frozenset("AB"))
    assert matrix is not None
    assert matrix.columns.tolist() == genes
    assert matrix.index.tolist() == ["a", "b", "c", "e"]
    assert np.isnan(matrix.loc["e", "G0"])
    assert matrix.loc["e", "G1"] == 1
    assert "rna: 20 columns are in every development cohort; left out: 1 of A" in notes
    assert "cohort E lacks 1 of 20 rna columns, e.g. G0; they are filled with training medians" in notes


def test_many_missing_columns_warn_and_none_in_common_is_refused() -> None:
    with pytest.warns(DataWarning, match="cohort E lacks 1 of 2 rna columns, e.g. B"):
        align("rna", {"A": frame("a", "A", "B"), "E": frame("e", "A")}, frozenset("A"))
    with pytest.raises(DataError, match="share no rna column"):
        align("rna", {"A": frame("a", "A"), "E": frame("e", "ENSG1")}, frozenset("A"))
    matrix, notes = align("rna", {"E": frame("e", "A")}, frozenset("A"))
    assert matrix is None
    assert notes == ["rna: no development cohort has it; it is not read"]


def test_digests_change_with_values_and_columns() -> None:
    one = row_digests({"rna": frame("ab", "A", "B")})
    assert one["a"] != one["b"]
    assert row_digests({"rna": frame("ab", "A", "C")})["a"] != one["a"]
    assert row_digests({"rna": frame("ab", "A", "B")}) == one

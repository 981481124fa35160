"""Principal components beside scikit-learn, cohorts standardised apart, and both in a file."""

import json

import numpy as np
import pytest
from sklearn.decomposition import PCA

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.components import fit_components
from equipoise.datasets.omics.fitting import (
    fit_tables,
    transform_from_json,
    transform_to_json,
    with_cohorts_of,
)
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.omics.per_cohort import fit_matrix_per_cohort
from equipoise.datasets.omics.statistics import LocalTable, principal_axes_from_sums
from equipoise.datasets.omics.transforms import fit_matrix

GENES = tuple("ABCDEF")


def rows(n: int = 50, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.normal(size=(n, 3)) @ np.random.default_rng(9).normal(size=(3, 6))
    return (mixed + 0.3 * rng.normal(size=(n, 6)) + shift).astype(np.float32)


def test_scores_are_scikit_learns_divided_by_one_number() -> None:
    table = LocalTable(rows(), GENES)
    before = fit_matrix(table)
    transform = fit_components(table, before, 4)
    ours = np.stack([transform.apply(row, GENES) for row in table.rows])
    oracle = PCA(4).fit_transform(before.apply_rows(table.rows).astype(float))
    oracle *= np.sign((oracle * ours).sum(axis=0))
    np.testing.assert_allclose(ours, oracle / oracle[:, 0].std(), atol=2e-5)
    assert transform.names == ("component 1", "component 2", "component 3", "component 4")
    assert ours.std(axis=0)[0] == pytest.approx(1, abs=1e-5)
    assert ours.std(axis=0)[3] < 0.5  # not whitened


def test_sums_give_the_axes_that_rows_give() -> None:
    table = LocalTable(rows().astype(float), GENES)
    local, summed = table.principal_axes(3), principal_axes_from_sums(table, 3)
    np.testing.assert_allclose(summed.axes, local.axes, atol=1e-8)
    np.testing.assert_allclose(summed.spreads, local.spreads, atol=1e-8)


def test_there_are_fewer_components_than_patients() -> None:
    table = LocalTable(rows(5), GENES)
    assert len(fit_components(table, fit_matrix(table), 200).names) == 4


def test_no_cohort_can_be_told_by_mean_and_spread() -> None:
    values = np.concatenate([rows(40, 1), 9 * rows(30, 2, shift=50)])
    cohorts = ["A"] * 40 + ["B"] * 30
    values[:40, 2] = -7  # constant in A, not in B
    fitted = fit_matrix_per_cohort(LocalTable(values, GENES, cohorts))
    out = fitted.apply_rows(values, np.asarray(cohorts))
    for part in (out[:40], out[40:]):
        np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(out[40:].std(axis=0), 1, atol=1e-4)
    assert not out[:40, 2].any()
    single = fitted.apply(values[60], GENES, "B")
    np.testing.assert_array_equal(single, out[60])
    with pytest.raises(DataError, match="nothing was fitted for C; fitted are A, B"):
        fitted.apply(values[0], GENES, "C")


@pytest.mark.parametrize("components", [None, 3])
def test_an_external_cohort_is_standardised_on_its_own_patients(components: int | None) -> None:
    params = TableParams.model_validate(
        {"rna": {"standardise": "per_cohort", "clip": None, "genes": 4, "components": components}}
    )
    training = LocalTable(np.concatenate([rows(40, 1), rows(40, 2)]), GENES, ["A"] * 40 + ["B"] * 40)
    fitted = fit_tables({"rna": training}, params)
    assert transform_from_json(json.loads(json.dumps(transform_to_json(fitted["rna"])))) == fitted["rna"]
    # The same patients under another name, unit and offset become the same rows.
    away = 5 * training.rows[:40] + 11
    known = with_cohorts_of(fitted, {"rna": {"C": [(GENES, row) for row in away], "A": []}})
    for mine, theirs in zip(training.rows[:40], away, strict=True):
        np.testing.assert_allclose(
            known["rna"].apply(theirs, GENES, "C"), fitted["rna"].apply(mine, GENES, "A"), atol=1e-4
        )
    with pytest.raises(DataError, match="3 patients of cohort C are too few"):
        with_cohorts_of(fitted, {"rna": {"C": [(GENES, row) for row in away[:3]]}})

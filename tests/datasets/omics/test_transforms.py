"""Transforms of matrices: fitted on training rows, applied by name, robust to what real tables hold."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.expression import scale_of
from equipoise.datasets.omics.logarithms import common_scale
from equipoise.datasets.omics.statistics import LocalTable
from equipoise.datasets.omics.transforms import MatrixTransform, fit_matrix

GENES = ("A", "B", "C", "D")


def counts(n: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson([5, 50, 500, 2000], (n, 4)).astype(np.float32)


def applied(transform: MatrixTransform, rows: np.ndarray, columns: tuple[str, ...] = GENES) -> np.ndarray:
    return np.stack([transform.apply(row, columns) for row in rows])


def test_log_cpm_is_what_it_says() -> None:
    rows = counts()
    transform = fit_matrix(LocalTable(rows, GENES), scale="log_cpm")
    by_hand = np.log2(1 + 1e6 * rows / rows.sum(axis=1, keepdims=True))
    by_hand = (by_hand - by_hand.mean(axis=0)) / by_hand.std(axis=0)
    np.testing.assert_allclose(applied(transform, rows), by_hand, atol=2e-3)
    # Sequencing depth is no signal.
    np.testing.assert_allclose(
        transform.apply(7 * rows[0], GENES), transform.apply(rows[0], GENES), atol=1e-3
    )


def test_a_library_that_lacks_genes_is_scaled_up() -> None:
    rows = counts()
    transform = fit_matrix(LocalTable(rows, GENES), scale="log_cpm")
    whole = transform.apply(rows[0], GENES)
    without = transform.apply(rows[0, :3], GENES[:3])  # D is most of the library
    # Unscaled, C alone would be more than 20 standard deviations off.
    np.testing.assert_allclose(without[:3], whole[:3], atol=0.6)
    assert abs(without[3]) < 0.3  # the training median


def test_training_rows_come_out_standardised_and_others_change_nothing() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (50, 4)).astype(np.float32)
    transform = fit_matrix(LocalTable(rows, GENES))
    out = applied(transform, rows)
    np.testing.assert_allclose(out.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(out.std(axis=0), 1, atol=1e-5)
    before = transform.to_json()
    transform.apply(np.full(4, 1e6, np.float32), GENES)
    assert transform.to_json() == before


def test_outliers_move_to_the_fence_and_not_the_fence_to_them() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(200, 4)).astype(np.float32)
    calm = fit_matrix(LocalTable(rows, GENES), clip=5)
    rows[7, 0] = 36_893
    wild = fit_matrix(LocalTable(rows, GENES), clip=5)
    np.testing.assert_allclose(wild.spread, calm.spread, rtol=0.1)
    assert 4 < wild.apply(rows[7], GENES)[0] < 6
    unfenced = fit_matrix(LocalTable(rows, GENES))
    assert unfenced.spread[0] > 1000


def test_a_sparse_gene_keeps_its_variance() -> None:
    rows = np.zeros((40, 4), np.float32)
    rows[:, 1:] = np.random.default_rng(0).normal(size=(40, 3))
    rows[:4, 0] = 1  # the interquartile range is 0
    assert fit_matrix(LocalTable(rows, GENES), clip=5).names == GENES


def test_gaps_take_the_training_median() -> None:
    rows = np.arange(20, dtype=np.float32).reshape(5, 4)
    transform = fit_matrix(LocalTable(rows, GENES))
    gap = transform.apply(np.array([np.nan, 9, 10, 11], np.float32), GENES)
    np.testing.assert_allclose(gap, transform.apply(rows[2], GENES), atol=1e-6)
    assert np.isfinite(applied(fit_matrix(LocalTable(np.where(rows == 4, np.nan, rows), GENES)), rows)).all()


def test_constant_and_empty_columns_are_left_out() -> None:
    rows = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    rows[:, 1], rows[:, 3] = 7, np.nan
    transform = fit_matrix(LocalTable(rows, GENES))
    assert transform.names == ("A", "C")
    assert transform.apply(rows[0], GENES).shape == (2,)


def test_the_most_variable_columns_in_their_order() -> None:
    rows = np.random.default_rng(0).normal(size=(60, 4)) * [1, 9, 0.1, 5]
    transform = fit_matrix(LocalTable(rows.astype(np.float32), GENES), max_columns=2)
    assert transform.names == ("B", "D")
    everything = fit_matrix(LocalTable(rows.astype(np.float32), GENES), max_columns=10)
    assert everything.names == GENES


def test_mutations_stay_as_they_are() -> None:
    rows = np.eye(4, dtype=np.float32)
    assert np.array_equal(applied(fit_matrix(LocalTable(rows, GENES), standardise=False), rows), rows)


def test_columns_are_found_by_name() -> None:
    rows = np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)
    transform = fit_matrix(LocalTable(rows, GENES))
    other = ("D", "X", "B", "A", "C")
    row = np.array([rows[0, 3], 99, rows[0, 1], rows[0, 0], rows[0, 2]], np.float32)
    np.testing.assert_array_equal(transform.apply(row, other), transform.apply(rows[0], GENES))
    lacking = transform.apply(rows[0, [0, 1, 2]], GENES[:3])
    assert lacking[3] == pytest.approx((transform.fill[3] - transform.shift[3]) / transform.spread[3])
    with pytest.raises(
        DataError, match="1 of the 4 columns that the model was trained with; missing are B, C"
    ):
        transform.apply(rows[0, :1], ("A",))


@pytest.mark.parametrize(
    ("rows", "scale"),
    [
        (counts(), "log_cpm"),
        (counts() * 1.5 + 0.25, "log1p"),
        (np.log2(1 + counts()), "none"),
        (np.random.default_rng(0).normal(size=(9, 4)), "none"),
        (np.eye(4), "none"),
    ],
)
def test_scales_are_told_apart(rows: np.ndarray, scale: str) -> None:
    assert scale_of(rows.astype(np.float32)) == scale


def test_cohorts_on_different_scales_are_refused() -> None:
    rows = np.concatenate([counts(), np.log2(1 + counts())])
    with pytest.raises(DataError, match=r"cohort A as for 'log_cpm', cohort B as for 'none'") as caught:
        common_scale(LocalTable(rows, GENES, ["A"] * 40 + ["B"] * 40).scales(), "rna")
    assert "tables: {rna: {transform: " in str(caught.value)


def test_negative_values_are_no_counts() -> None:
    transform = fit_matrix(LocalTable(counts(), GENES), scale="log_cpm")
    with pytest.raises(DataError, match=r"negative \(-1\), and log_cpm is for counts"):
        transform.apply(np.array([-1, 2, 3, 4], np.float32), GENES)


@given(st.integers(0, 5), st.sampled_from(["log_cpm", "log1p", "none"]), st.booleans())
def test_json_round_trip(seed: int, scale, clipped: bool) -> None:
    rows = counts(12, seed)
    transform = fit_matrix(LocalTable(rows, GENES), scale=scale, clip=5 if clipped else None)
    again = MatrixTransform.from_json(json.loads(json.dumps(transform.to_json(), allow_nan=False)))
    assert again == transform
    np.testing.assert_array_equal(applied(again, rows), applied(transform, rows))

"""The logarithm above the floor, second fences, and order statistics from counts."""

import json

import numpy as np
import pytest

from equipoise.datasets.omics.logarithms import Logarithm
from equipoise.datasets.omics.quantiles import order_statistic_from_counts
from equipoise.datasets.omics.statistics import LocalTable
from equipoise.datasets.omics.transforms import MatrixTransform, fit_logarithm, fit_matrix

GENES = ("A", "B", "C")


def z_scores(n: int = 200, seed: int = 0) -> np.ndarray:
    """Abundances of three genes, some zero, standardised without a logarithm, as cBioPortal's are."""
    rng = np.random.default_rng(seed)
    counts = np.exp(rng.normal(3, 1.5, (n, 3))) * (rng.random((n, 3)) > 0.1)
    return ((counts - counts.mean(axis=0)) / counts.std(axis=0)).astype(np.float32)


def test_log_is_the_formula() -> None:
    rows = z_scores()
    low, quartile = rows.min(axis=0), np.quantile(rows.astype(float), 0.25, axis=0)
    by_hand = np.log1p((rows - low) / (quartile - low + 0.001))
    by_hand = (by_hand - by_hand.mean(axis=0)) / by_hand.std(axis=0)
    transform = fit_matrix(LocalTable(rows, GENES), scale="log")
    out = np.stack([transform.apply(row, GENES) for row in rows])
    np.testing.assert_allclose(out, by_hand, atol=2e-5)
    assert transform == MatrixTransform.from_json(json.loads(json.dumps(transform.to_json())))


def test_log_does_not_depend_on_how_values_were_standardised() -> None:
    # Shift and scale of a gene cancel where 0.001 is small beside the quartile: the logarithm of a z-score is the
    # logarithm of the abundance.
    rows = z_scores().astype(float)
    rows = (rows - rows.min(axis=0)) * 1000
    one, other = (fit_logarithm(LocalTable(table, GENES), "log")(table) for table in (rows, 7 * rows - 3))
    np.testing.assert_allclose(one, other, atol=1e-3)


def test_values_below_the_floor_count_as_the_floor() -> None:
    log = Logarithm("log", floor=np.float32([0.0]), unit=np.float32([1.0]))
    np.testing.assert_allclose(log(np.array([[-5.0], [0.0], [np.e - 1]])), [[0], [0], [1]], atol=1e-6)
    assert np.isnan(log(np.array([[np.nan]])))


def test_a_gene_without_values_is_left_out() -> None:
    rows = z_scores()
    rows[:, 1] = np.nan
    assert fit_matrix(LocalTable(rows, GENES), scale="log").names == ("A", "C")


def test_the_second_fence_is_in_standard_deviations() -> None:
    rows = z_scores()
    rows[0, 0] = 36_893
    once = fit_matrix(LocalTable(rows, GENES), clip=50.0)
    twice = fit_matrix(LocalTable(rows, GENES), clip=50.0, limit=2.5)
    out = np.stack([once.apply(row, GENES) for row in rows])
    assert out.max() > 2.5
    np.testing.assert_array_equal(
        np.stack([twice.apply(row, GENES) for row in rows]), np.clip(out, -2.5, 2.5)
    )


@pytest.mark.parametrize(("rank", "share"), [(1, False), (5, False), (0.25, True), (0.9, True)])
def test_counts_find_the_sorted_value(rank: float, share: bool) -> None:
    rng = np.random.default_rng(3)
    rows = np.stack([rng.normal(size=91), rng.exponential(size=91), np.repeat(4.0, 91)], axis=1)
    rows[::13, 0] = np.nan
    found = order_statistic_from_counts(LocalTable(rows, GENES), rank, share=share)
    for column, value in zip(rows.T, found, strict=True):
        known = np.sort(column[~np.isnan(column)])
        at = int(np.ceil(rank * len(known))) if share else int(rank)
        assert value == pytest.approx(known[at - 1], abs=1e-6)


def test_a_column_without_values_has_the_order_statistic_zero() -> None:
    rows = np.full((9, 3), np.nan)
    np.testing.assert_allclose(
        order_statistic_from_counts(LocalTable(rows, GENES), 5, share=False), 0, atol=1e-6
    )

"""Bins of expression values: ranks, coinciding edges, fixed edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from equipoise.models.rna.binning import fixed_bins, quantile_bins


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_distinct_values_fill_the_bins_evenly_and_nothing_is_random() -> None:
    values = np.random.default_rng(1).permutation(np.arange(1, 4901)).astype(float)
    bins = quantile_bins(values, 51, rng())
    np.testing.assert_array_equal(bins, quantile_bins(values, 51, np.random.default_rng(99)))
    assert bins.min() == 1
    assert bins[values.argmax()] == 50
    assert set(np.bincount(bins)[1:50]) == {
        100 - 1,
        100,
    }  # 49 intervals, the largest value alone in the last bin
    order = values.argsort()
    assert (np.diff(bins[order]) >= 0).all()


@given(st.integers(2, 400), st.integers(0, 10_000))
def test_only_ranks_matter(n: int, seed: int) -> None:
    values = np.random.default_rng(seed).gamma(1.0, 100.0, n) + 1e-3
    np.testing.assert_array_equal(
        quantile_bins(np.log1p(values), 51, rng()), quantile_bins(values, 51, rng())
    )


def test_a_value_on_several_edges_is_spread_over_the_bins_between_them() -> None:
    """Half of the values are 1: the first 25 of 50 edges coincide there, so its bins are 1 to 25, all equally often."""
    values = np.concatenate([np.ones(10_000), 2 + np.arange(10_000)])
    bins = quantile_bins(values, 51, rng())
    counts = np.bincount(bins[:10_000], minlength=51)
    assert set(np.flatnonzero(counts)) == set(range(1, 26))
    np.testing.assert_allclose(counts[1:26], 400, atol=100)
    assert not np.array_equal(quantile_bins(values, 51, np.random.default_rng(7)), bins)


def test_a_single_value() -> None:
    assert 1 <= quantile_bins(np.array([3.0]), 51, rng())[0] <= 50


def test_fixed_edges() -> None:
    values = np.array([-0.2, 0.0, 0.0999, 0.1, 0.55, 0.99, 1.0, 3.0])
    assert fixed_bins(values, 11).tolist() == [0, 0, 0, 1, 5, 9, 10, 10]

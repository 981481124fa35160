"""Who was prepared together is found from exact values alone, and nobody is where a table was prepared once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.datasets.omics.batch_values import batches_by_exact_values, standardised_cohorts


def abundances(n: int, genes: int = 150, seed: int = 0) -> np.ndarray:
    """Some genes are silent in hardly anybody, some in half of the patients."""
    rng = np.random.default_rng(seed)
    return np.exp(rng.normal(2, 1, (n, genes))) * (rng.random((n, genes)) > rng.uniform(0, 0.5, genes))


def standardised(rows: np.ndarray, decimals: int = 4) -> np.ndarray:
    return ((rows - rows.mean(axis=0)) / rows.std(axis=0)).round(decimals)


def test_parts_that_were_standardised_apart_are_told_apart() -> None:
    rows = abundances(200)
    order = np.random.default_rng(1).permutation(200)
    group = np.repeat([0, 1, 2], [100, 60, 40])
    apart = np.concatenate([standardised(rows[group == g]) for g in range(3)])
    found = batches_by_exact_values(apart[order].astype(np.float32))
    np.testing.assert_array_equal(found, group[order])


@pytest.mark.parametrize("table", ["together", "logarithms", "categories", "gaussian", "empty"])
def test_a_table_that_was_prepared_once_has_no_batches(table: str) -> None:
    rows = abundances(150)
    values = {
        "together": standardised(rows),
        "logarithms": np.log1p(rows),
        "categories": np.random.default_rng(0).integers(-2, 3, (150, 60)).astype(float),
        "gaussian": np.random.default_rng(0).normal(size=(150, 60)).round(2),
        "empty": np.full((150, 0), 0.0),
    }[table]
    assert batches_by_exact_values(values.astype(np.float32)).max(initial=-1) <= 0


def test_gaps_imputed_per_batch_are_found_and_a_handful_of_patients_are_no_batch() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(120, 50))
    gaps = rng.random(rows.shape) < 0.2
    for part in (slice(0, 70), slice(70, 120)):
        means = np.broadcast_to(rows[part].mean(axis=0), rows[part].shape)
        rows[part] = np.where(gaps[part], means, rows[part])
    found = batches_by_exact_values(rows.astype(np.float32))
    np.testing.assert_array_equal(found, np.repeat([0, 1], [70, 50]))
    few = batches_by_exact_values(rows[:76].astype(np.float32))
    assert set(few[:70]) == {0}
    assert set(few[70:]) == {-1}


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(0.5, 3), st.floats(-5, 5))
def test_batches_do_not_depend_on_scale_or_shift_of_a_gene(seed: int, scale: float, shift: float) -> None:
    rows = abundances(60, 100, seed)
    apart = np.concatenate([standardised(rows[:30], 6), standardised(rows[30:], 6)])
    found = batches_by_exact_values(apart)
    assert found.max() == 1
    assert set(found[:30]) & set(found[30:]) <= {-1}
    np.testing.assert_array_equal(batches_by_exact_values(apart * scale + shift), found)


def test_moments_of_zero_and_one_are_seen_per_cohort() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (90, 40))
    cohorts = ["A"] * 40 + ["B"] * 30 + ["C"] * 20
    apart = np.concatenate([standardised(rows[:40]), standardised(rows[40:70]), rows[70:]])
    assert standardised_cohorts(apart, cohorts) == ["A", "B"]
    assert standardised_cohorts(standardised(rows), cohorts) == []

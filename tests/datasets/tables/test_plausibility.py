"""Columns that lost their decimal points are refused, wide but right ones can be allowed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.plausibility import check_plausible, orders_of_magnitude, unit_note


def names(values: np.ndarray) -> list[str]:
    return [f"p{i}" for i in range(len(values))]


def test_points_lost_beside_points_kept() -> None:
    values = np.array([2.7, np.nan, 256666666667.0, 0.0])
    with pytest.raises(DataError, match=r"span 11 orders.*2\.7 of p0 beside 256666666667 of p2") as caught:
        check_plausible(values, names(values), "task 'TMB'")
    assert caught.value.where == "task 'TMB'"
    assert "allow_wide_range: true" in str(caught.value)
    check_plausible(values, names(values), "task 'TMB'", allow=True)


def test_points_lost_everywhere() -> None:
    values = np.array([846350897.0, -812409581.0, 475804314.0, 1500.0])
    with pytest.raises(DataError, match="3 of 4 values are whole numbers of nine and more digits"):
        check_plausible(values, names(values), "task 'ESTIMATE'")


@given(st.lists(st.floats(1e-3, 999.0), min_size=1, max_size=20), st.sampled_from([1.0, -1.0]))
def test_ordinary_measurements_pass(values: list[float], sign: float) -> None:
    numbers = sign * np.array(values)
    check_plausible(numbers, names(numbers), "here")


def test_nothing_known_is_no_problem() -> None:
    check_plausible(np.array([np.nan]), ["p0"], "here")
    assert orders_of_magnitude(np.array([-1.0, 0.0])) == 0.0
    assert orders_of_magnitude(np.array([1e-300, 1e300])) == pytest.approx(600)


def test_units_that_differ_between_cohorts() -> None:
    note = unit_note("LF", {"A": 0.12, "B": 12.0, "C": -1.0})
    assert note is not None
    assert "0.12 in A and 12 in B" in note
    assert unit_note("LF", {"A": 0.1, "B": 1.0}) is None
    assert unit_note("LF", {"A": 0.1}) is None

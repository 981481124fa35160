"""Numbers, intervals and lists as text."""

import numpy as np
import pytest

from equipoise.platform.report import formatting as f


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (0.8734, 3, "0.873"),
        (-0.0004, 3, "0.000"),
        (-1.25, 2, "\u22121.25"),
        (123.456, 3, "123.5"),
        (12.3456, 3, "12.3"),
        (54321.7, 2, "54\u202f322"),
        (float("nan"), 2, "not estimable"),
        (None, 2, "not estimable"),
        (float("inf"), 2, "not estimable"),
    ],
)
def test_number(value: float | None, decimals: int, text: str) -> None:
    assert f.number(value, decimals) == text


def test_intervals_and_estimates() -> None:
    assert f.interval(0.81, 0.923) == "0.810–0.923"
    assert f.interval(-0.1, 0.2, 2) == "\u22120.10 to 0.20"
    assert f.interval(np.nan, 1) == "not estimable"
    assert f.estimate({"value": 0.87, "low": 0.81, "high": 0.92}, 2) == "0.87 (0.81–0.92)"
    assert f.estimate({"value": 1.0, "low": np.nan, "high": np.nan}) == "1.000"
    assert f.estimate({"value": np.nan, "low": np.nan, "high": np.nan}) == "not estimable"


def test_p_values_percentages_counts_lists() -> None:
    assert (f.p_value(0.0321), f.p_value(1e-9)) == ("p = 0.032", "p < 0.001")
    assert f.p_value(np.nan) == "p not estimable"
    assert [f.percent(x) for x in (0.0, 0.004, 0.126, 1.0)] == ["0 %", "0.4 %", "13 %", "100 %"]
    assert f.count(1234567) == "1\u202f234\u202f567"
    assert f.count(None) == "–"
    assert (f.plural(1, "slide"), f.plural(3, "slide")) == ("1 slide", "3 slides")
    assert f.listed(["a"]) == "a"
    assert f.listed(["a", "b", "c"]) == "a, b and c"
    assert f.listed(list("abcdef"), 2) == "a, b and 4 more"

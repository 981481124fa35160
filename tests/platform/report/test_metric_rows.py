"""Colours of values: they say what the intervals say, and less where a value rests on few cases."""

import numpy as np
import pytest

from equipoise.platform.report.captions import few_cases
from equipoise.platform.report.metric_rows import tone


def row(
    low: float, high: float, n: int = 400, n_pos: float = 60, kind: str = "binary", **more: object
) -> dict:
    return {"low": low, "high": high, "n": n, "n_pos": n_pos, "kind": kind, **more}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (row(0.6, 0.9), "good"),
        (row(0.4, 0.9), "warn"),
        (row(0.2, 0.4), "bad"),
        (row(np.nan, np.nan), "muted"),
        # Seven events with a C-index of .911 say nothing, however far the interval is from chance.
        (row(0.8, 0.97, n_pos=7, kind="survival"), "warn"),
        (row(0.2, 0.4, n_pos=7, kind="survival"), "warn"),
        (row(0.6, 0.9, n=64, n_pos=60), "warn"),  # four negative patients
        (row(0.6, 0.9, n=50, n_pos=np.nan, kind="regression"), "warn"),
        (row(0.6, 0.9, n=90, n_pos=np.nan, kind="regression"), "good"),
        # Green needs both intervals: that for the procedure includes chance.
        (row(0.55, 0.9, low_procedure=0.48), "warn"),
        (row(0.55, 0.9, low_procedure=0.52), "good"),
        (row(0.55, 0.9, low_procedure=np.nan), "good"),
    ],
)
def test_a_colour_says_no_more_than_the_interval(given: dict, expected: str) -> None:
    assert tone(given, 0.5) == expected


def test_without_a_chance_level_there_is_no_colour() -> None:
    assert tone(row(0.6, 0.9), None) == "muted"


def test_the_few_cases_are_named() -> None:
    assert few_cases(row(0, 1, n_pos=1, kind="survival")) == "1 event"
    assert few_cases(row(0, 1, n=40, n_pos=31)) == "9 negative patients"
    assert few_cases(row(0, 1, n=40, n_pos=9)) == "9 positive patients"
    assert few_cases(row(0, 1, n=40, n_pos=np.nan, kind="multiclass")) == "40 patients"
    assert few_cases(row(0, 1)) == ""

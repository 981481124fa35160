"""Coverage and error of what the product reports, on simulated studies with a known truth. SYNTHETIC.

Small versions of ``python -m benchmarks.coverage``, whose simulation they use. Bounds are about three standard errors
away from the figures of the benchmark, so that a test says something about the method and not about its seed.
"""

import numpy as np
import pytest
from benchmarks.coverage import METHODS, SHIFT, interval_cell, many_rejections, pair_rejections


@pytest.mark.parametrize(("learner", "studies"), [("ridge", 150), ("network", 100)])
def test_intervals_cover_where_the_percentile_bootstrap_does_not(learner: str, studies: int) -> None:
    """100 patients, 25 positive, five folds, nominal 95 %."""
    cell = interval_cell(learner, 100, 25, studies, seed=3, new_patients=3000)
    assert cell["models"] >= 0.91
    assert cell["procedure"] >= 0.91
    assert cell["bootstrap_models"] < 0.93
    assert cell["bootstrap_procedure"] < 0.90
    assert cell["width_models"] < 1.35
    assert cell["width_procedure"] < 1.6


def test_two_equal_models_are_rarely_called_different() -> None:
    rejected, apart = pair_rejections(200, 40, 200, np.full(2, SHIFT), seed=3)
    assert abs(apart) < 0.01
    assert rejected <= 0.09


def test_sixteen_equal_models_are_rarely_told_apart_but_a_good_one_is() -> None:
    equal = np.full(METHODS, SHIFT)
    assert many_rejections(200, 40, 30, equal, seed=3)["any"] <= 0.14
    equal[0] = 1.2
    ahead = many_rejections(200, 40, 10, equal, seed=3)
    assert ahead["first"] > 0.5
    assert ahead["first_excluded"] == 0
    assert ahead["best_set"] < 4

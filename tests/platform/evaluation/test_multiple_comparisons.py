"""All pairs at once: against closed forms, on equal methods, and what the best set leaves out."""

import numpy as np
import pytest
from scipy.stats import studentized_range
from scipy.stats import t as student

from equipoise.platform.evaluation.multiple_comparisons import Contrasts, compare_all


def independent(values: list[float], df: float = 20.0) -> Contrasts:
    """Methods with independent errors of variance one."""
    m = len(values)
    return Contrasts(np.array(values), np.eye(m), tuple(range(m)), df)


def test_the_critical_value_of_independent_methods_is_tukeys() -> None:
    """Tukey's range: q / √2 for independent means with a common variance."""
    result = compare_all(list("abcde"), {"x": independent([0.0] * 5)}, draws=40_000)["x"]
    assert result.critical == pytest.approx(studentized_range.ppf(0.95, 5, 20) / np.sqrt(2), rel=0.02)


def test_a_single_pair_has_the_p_of_student() -> None:
    result = compare_all(["a", "b"], {"x": independent([3.0, 0.0])}, draws=40_000)["x"]
    assert result.p[0, 1] == pytest.approx(2 * student.sf(3 / np.sqrt(2), 20), abs=0.004)
    assert result.p[0, 1] == result.p[1, 0]
    assert result.p[0, 0] == 1


def test_best_set_is_dunnetts_one_sided_comparison_with_every_other() -> None:
    """Hsu's set with two methods: the worse one is left out where a one-sided t test rejects it."""
    critical = student.ppf(0.95, 20) * np.sqrt(2)
    for distance, size in ((0.95 * critical, 2), (1.05 * critical, 1)):
        result = compare_all(["a", "b"], {"x": independent([distance, 0.0])}, draws=40_000)["x"]
        assert len(result.best_set) == size
        assert result.best_set[0] == "a"


def test_more_methods_and_more_tasks_need_larger_differences() -> None:
    pair = compare_all(["a", "b"], {"x": independent([3.0, 0.0])})["x"]
    many = compare_all(list("abcdef"), {"x": independent([3.0, 0.0, 1.0, 1.5, 2.0, 1.0])})["x"]
    assert many.p[0, 1] > pair.p[0, 1]
    tasks = {name: independent([3.0, 0.0]) for name in "xyz"}
    for task in tasks.values():
        object.__setattr__(task, "units", tuple((id(task), u) for u in task.units))
    joint = compare_all(["a", "b"], tasks)["x"]
    assert joint.p_joint[0, 1] > joint.p[0, 1]
    same = compare_all(["a", "b"], {name: independent([3.0, 0.0], 1e9) for name in "xyz"})["x"]
    assert same.p_joint[0, 1] == pytest.approx(
        same.p[0, 1], abs=0.003
    )  # tasks whose errors are the same are one


def test_ranks_are_those_that_no_comparison_excludes() -> None:
    result = compare_all(list("abc"), {"x": independent([20.0, 0.0, 0.5])})["x"]
    assert result.rank_low.tolist() == [1, 2, 2]
    assert result.rank_high.tolist() == [1, 3, 3]
    assert result.separated == 2
    assert result.best_set == ["a"]
    assert result.matrix().loc["a", "b"] < 0.001
    assert np.isnan(result.matrix().loc["a", "a"])


def test_equal_scores_are_no_difference_and_a_sure_one_is_undecided() -> None:
    same = Contrasts(np.array([0.7, 0.7, 0.6]), np.ones((3, 4)), tuple(range(4)), 10.0)
    result = compare_all(list("abc"), {"x": same})["x"]
    assert result.p[0, 1] == 1
    assert np.isnan(result.p[0, 2])


def test_the_mean_over_tasks_adds_the_influence_of_a_patient() -> None:
    rng = np.random.default_rng(0)
    one = Contrasts(np.array([0.7, 0.6]), rng.normal(size=(2, 3)), ("p", "q", "r"), 12.0)
    other = Contrasts(np.array([0.5, 0.6]), rng.normal(size=(2, 2)), ("r", "s"), 8.0)
    mean = Contrasts.mean([one, other])
    assert mean.values.tolist() == pytest.approx([0.6, 0.6])
    assert mean.units == ("p", "q", "r", "s")
    np.testing.assert_allclose(mean.directions[:, 2], (one.directions[:, 2] + other.directions[:, 0]) / 2)
    assert mean.df == 8

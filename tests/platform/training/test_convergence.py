"""A fit that cannot be taken for converged is named."""

import math

from equipoise.platform.training.convergence import convergence_warnings
from equipoise.platform.training.loop import FitResult
from equipoise.platform.training.params import TrainingParams

PARAMS = TrainingParams(epochs=4, lr=1e-4)


def warnings_of(losses, best, *, stopped=False, exact=False, extra=None, tasks=("MSI",)):
    rows = [{f"val/{t}": value, f"train/{t}": value} for value in losses for t in tasks]
    rows = [row | (extra or {}) for row in rows]
    return convergence_warnings(
        FitResult(tuple(rows), best, stopped, exact), PARAMS, [*tasks, *("OS",) * bool(extra)]
    )


def test_a_fit_that_turned_is_fine():
    assert warnings_of([0.9, 0.6, 0.5, 0.6], 3) == []
    assert warnings_of([0.9, 0.5, 0.6], 2, stopped=True) == []


def test_a_fit_that_still_improved_at_its_last_epoch_is_named():
    (text,) = warnings_of([0.9, 0.7, 0.6, 0.5], 4)
    assert "the last of 4 epochs was the best" in text


def test_a_fit_that_did_not_move_is_named():
    (text,) = warnings_of([0.693, 0.692, 0.6925, 0.693], 2)
    assert "initialised" in text
    assert "0.0001" in text


def test_a_task_that_did_not_move_is_named():
    (text,) = warnings_of([0.9, 0.6, 0.5, 0.6], 3, extra={"val/OS": 2.0, "train/OS": 2.0})
    assert text.startswith("the loss of OS")


def test_tasks_without_labels_are_not_asked():
    assert warnings_of([0.9, 0.6, 0.5, 0.6], 3, extra={"val/OS": math.nan, "train/OS": math.nan}) == []


def test_an_exact_fit_is_at_its_optimum_and_says_where_no_column_helped():
    fits = {"penalty/MSI": 0.1, "gain/MSI": 0.1, "penalty/OS": 2.0}
    assert warnings_of([0.5], 1, exact=True, extra=fits | {"gain/OS": 0.2}) == []
    (text,) = warnings_of([0.5], 1, exact=True, extra=fits | {"gain/OS": 0.0})
    assert text.startswith("OS: no penalty was better")
    (text,) = warnings_of([0.5], 1, exact=True, extra=fits | {"gain/OS": math.nan})
    assert text.startswith("OS: too few labels")
    (text,) = warnings_of([0.5], 1, exact=True, extra=fits | {"penalty/OS": math.nan})
    assert "nothing was fitted" in text

"""Several seeds inside a trial: the same patients, other trainings, and standard errors that do not shrink."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.cohorts.splits import SplitScheme, monte_carlo
from equipoise.datasets.params import MonteCarloParams
from equipoise.platform.errors import StudyError
from equipoise.platform.search.analysis import fold_values, possible_ranks
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.patients import inner_folds
from equipoise.platform.search.search import run_inline
from equipoise.platform.search.trial_records import FoldScore, Trial, read_trials, trial_table, write_trial
from equipoise.platform.search.tune_runner import build_scheduler

Make = Callable[..., Any]

#: Values of two folds of patients with three seeds, in the order in which they are trained.
VALUES = {"0-0": 0.6, "0-1": 0.8, "1-0": 0.64, "1-1": 0.72, "2-0": 0.62, "2-1": 0.76}


def trial_of(shift: float = 0.0, upto: int = 6, index: int = 0) -> Trial:
    folds = tuple(
        FoldScore(name, {"val/mean": value + shift}, 3, 2, 10, 1.0, 1.0, (), "" if name[0] == "0" else f"0-{name[2]}")
        for name, value in list(VALUES.items())[:upto]
    )  # fmt: skip
    return Trial(index, f"{index:03d}", {}, "ok", "val/mean", folds=folds)


def test_folds_follow_once_for_every_seed(make_search: Make) -> None:
    search_context: SearchContext = make_search(seeds=3)
    folds = search_context.inputs.folds
    assert [fold.name for fold in folds] == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    for fold in folds:
        first = folds[fold.index]
        assert (fold.train, fold.val, fold.test) == (first.train, first.val, first.test)
        assert search_context.inputs.first_seed_fold(fold.name) == ("" if fold.repeat == 0 else first.name)
    drawn = inner_folds(
        search_context.cohorts,
        search_context.study.tasks,
        SplitScheme(monte_carlo, MonteCarloParams(repeats=4)),
        2,
        1,
        seeds=2,
    )
    assert [fold.name for fold in drawn] == ["0-0", "1-0", "2-0", "3-0"]
    assert drawn[2].test == drawn[0].test != drawn[1].test == drawn[3].test


def test_seeds_train_anew_and_belong_to_the_search(make_search: Make, tmp_path: Path) -> None:
    search_context: SearchContext = make_search(trials=1, seeds=2)
    (trial,) = run_inline(search_context, tmp_path / "two")
    assert [(fold.fold, fold.first) for fold in trial.folds] == [
        ("0-0", ""), ("0-1", ""), ("1-0", "0-0"), ("1-1", "0-1"),
    ]  # fmt: skip
    (single,) = run_inline(make_search(trials=1), tmp_path / "one")
    assert [fold.values for fold in trial.folds[:2]] == [fold.values for fold in single.folds]
    assert trial.folds[2].history != trial.folds[0].history
    assert trial.objective == pytest.approx(np.mean([fold.values["val/mean"] for fold in trial.folds]))
    with pytest.raises(StudyError, match=r"belong to another search(.|\n)*search.seeds: 2 → 1"):
        run_inline(make_search(trials=1), tmp_path / "two")


def test_spread_is_over_folds_of_patients(tmp_path: Path) -> None:
    trial = trial_of()
    means = [np.mean([0.6, 0.64, 0.62]), np.mean([0.8, 0.72, 0.76])]
    assert [values["val/mean"] for values in trial.fold_means] == pytest.approx(means)
    assert trial.objective == pytest.approx(np.mean(means))
    assert trial.objective_se == pytest.approx(np.std(means, ddof=1) / math.sqrt(2))
    assert trial_of(upto=3).objective == pytest.approx((0.62 + 0.8) / 2), (
        "a fold with more seeds counts no more"
    )
    write_trial(tmp_path, trial)
    assert read_trials(tmp_path) == [trial]


def test_the_table_has_one_value_for_a_fold_of_patients() -> None:
    trials = [trial_of(), trial_of(0.05, index=1)]
    table = trial_table(trials)
    assert list(table["folds"]) == [2, 2]
    assert list(table["epochs"]) == [18, 18]
    assert fold_values(table, "val/mean") == pytest.approx(np.array([[0.62, 0.76], [0.67, 0.81]]))
    assert "fold2/val/mean" not in table
    single = [Trial(t.index, t.name, {}, "ok", "val/mean", folds=_averaged(t)) for t in trials]
    pd.testing.assert_frame_equal(possible_ranks(table), possible_ranks(trial_table(single)))
    assert possible_ranks(table)["rank_high"].notna().all()


def _averaged(trial: Trial) -> tuple[FoldScore, ...]:
    return tuple(FoldScore(f"0-{k}", values, 9, 2, 10, 3.0, 3.0) for k, values in enumerate(trial.fold_means))


def test_schedulers_count_every_training() -> None:
    params = SearchParams(scheduler="asha", folds=2, seeds=3)
    bracket = build_scheduler(params, 6)._brackets[0]
    assert sorted(milestone for milestone, _ in bracket._rungs) == [1, 3], "rungs of six steps"

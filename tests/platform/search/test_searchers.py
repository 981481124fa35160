"""Random and grid search are functions of seed and index; Optuna learns from records, also after a restart."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import (
    GridSearch,
    OptunaSearch,
    RandomSearch,
    RandomSource,
    build_searcher,
    stick_breaking,
    stick_breaking_inverse,
)
from equipoise.platform.search.selection import select_winner
from equipoise.platform.search.space import Arm, Config, Dimension, Space
from equipoise.platform.search.trial_records import FoldScore, Trial, trial_table

TASKS = (BinaryTask(name="MSI", column="MSI", positive="H"), RegressionTask(name="LF", column="LF"))

SPACE = Space(
    arms=(
        Arm(None, "equal", "none"),
        Arm(None, "static", "none"),
        Arm(None, "dwa", "pcgrad"),
        Arm(None, "dwa", "none"),
    ),
    dimensions=(
        Dimension("training.lr", "training.lr", low=1e-4, high=1e-1, log=True),
        Dimension("training.batch", "training.batch", choices=(4, 8)),
        Dimension("model.layers", "model.layers", low=1, high=3, whole=True),
        Dimension("balancing.dwa.temperature", "t", low=0.5, high=5, slot="weighting", entry="dwa"),
    ),
    tasks=("MSI", "LF", "OS"),
)


def record(index: int, config: Config, value: float, status: str = "ok", parameters: int = 10) -> Trial:
    values = {"val/MSI/auroc": value, "val/LF/pearson": 1 - 2 * value, "val/mean": value}
    folds = tuple(
        FoldScore(f"0-{k}", {n: v + 0.02 * k for n, v in values.items()}, 3, 2, parameters, 1, 1)
        for k in range(2)
    )
    return Trial(index, f"{index:03d}", config, status, "val/mean", folds=folds)  # type: ignore[arg-type]


def test_functions_of_seed_and_index() -> None:
    params = SearchParams(levels=2)
    for kind in (lambda s: RandomSearch(SPACE, s), lambda s: GridSearch(SPACE, 2, s)):
        forwards = [kind(3).ask(index) for index in range(1, 30)]
        backwards = [kind(3).ask(index) for index in range(29, 0, -1)]
        assert forwards == backwards[::-1]
        assert forwards != [kind(4).ask(index) for index in range(1, 30)]
    grid, count = build_searcher(
        SPACE, params.model_copy(update={"searcher": "grid", "trials": 1000}), TASKS, 3
    )
    size = SPACE.grid_size(2)
    assert count == size + 1
    assert len({str(grid.ask(index)) for index in range(1, size + 1)}) == size, "every point once"


def test_draws_are_of_the_space_and_even() -> None:
    configs = [RandomSearch(SPACE, 1).ask(index) for index in range(1, 601)]
    methods = Counter(config["balancing.weighting"] for config in configs)
    assert all(150 < count < 250 for count in methods.values())
    assert len(configs) > 0
    for config in configs:
        assert 1e-4 <= float(config["training.lr"]) <= 1e-1  # type: ignore[arg-type]
        assert config["model.layers"] in (1, 2, 3)
        assert isinstance(config["model.layers"], int)
        assert ("balancing.dwa.temperature" in config) == (config["balancing.weighting"] == "dwa")
        shares = [config[name] for name in config if name.startswith("loss_weights.")]
        assert bool(shares) == (config["balancing.weighting"] == "static")
        assert not shares or sum(shares) == pytest.approx(1)  # type: ignore[arg-type]
    logs = [math.log10(float(config["training.lr"])) for config in configs]  # type: ignore[arg-type]
    assert np.mean(logs) == pytest.approx(-2.5, abs=0.15)


def test_pieces_of_a_stick_are_even_on_the_simplex() -> None:
    rng = np.random.default_rng(0)
    shares = np.array([stick_breaking(rng.random(3).tolist()) for _ in range(4000)])
    direct = np.array([RandomSource(rng).shares("abcd") for _ in range(4000)])
    assert shares.sum(1) == pytest.approx(1)
    assert shares.mean(0) == pytest.approx(direct.mean(0), abs=0.015)
    assert shares.std(0) == pytest.approx(direct.std(0), abs=0.015)
    assert stick_breaking(stick_breaking_inverse([0.1, 0.2, 0.3, 0.4])) == pytest.approx([0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize("searcher", ["optuna", "nsga2"])
def test_optuna_is_told_by_records_what_it_was_told_by_trials(searcher: str) -> None:
    params = SearchParams(searcher=searcher, trials=20)  # type: ignore[arg-type]
    search = OptunaSearch(SPACE, params, TASKS, 1)
    told = []
    for index in range(1, 13):
        status = {3: "failed", 4: "pruned"}.get(index, "ok")
        trial = record(index, search.ask(index), 0.5 + index / 50, status)
        search.tell(trial)
        told.append(trial)
    restored = OptunaSearch(SPACE, params, TASKS, 1, told=len(told))
    for trial in [record(0, {"training.lr": 5.0}, 0.4), *told]:  # the first lies outside the space
        restored.tell(trial)
    assert len(restored.study.trials) > 0
    for mine, theirs in zip(restored.study.trials, search.study.trials, strict=True):
        assert mine.distributions == theirs.distributions
        numbers = {name for name, value in theirs.params.items() if isinstance(value, float)}
        assert [mine.params[n] for n in numbers] == pytest.approx([theirs.params[n] for n in numbers])
        assert all(mine.params[name] == theirs.params[name] for name in set(theirs.params) - numbers)
    assert [t.state for t in restored.study.trials] == [t.state for t in search.study.trials]
    assert [t.values for t in restored.study.trials] == [t.values for t in search.study.trials]
    assert restored.ask(13)["balancing.weighting"] in {"equal", "static", "dwa"}


def test_the_estimator_goes_where_values_are_good() -> None:
    space = Space((Arm(),), (Dimension("training.lr", "training.lr", low=0.0, high=1.0),))
    search = OptunaSearch(space, SearchParams(searcher="optuna", trials=40), TASKS, 0)
    drawn = []
    for index in range(1, 41):
        config = search.ask(index)
        drawn.append(float(config["training.lr"]))  # type: ignore[arg-type]
        search.tell(record(index, config, 1 - abs(drawn[-1] - 0.8)))
    late = np.abs(np.array(drawn[20:]) - 0.8).mean()
    assert late < 0.5 * np.abs(np.array(drawn[:10]) - 0.8).mean()


def test_the_winner_is_the_best_or_the_simplest_near_it() -> None:
    methods = [("equal", "none"), ("uncertainty", "pcgrad"), ("equal", "pcgrad")]
    trials = [
        record(k, {"balancing.weighting": w, "balancing.aggregation": a}, value, parameters=size)
        for k, ((w, a), value, size) in enumerate(
            zip(
                [*methods, *methods], [0.5, 0.8, 0.795, 0.7, 0.795, 0.79], [5, 20, 20, 5, 10, 10], strict=True
            )
        )
    ]
    pruned = record(9, {}, 0.99, "pruned")
    assert select_winner([*trials, pruned], SearchParams()).index == 1
    simple = select_winner([*trials, pruned], SearchParams(select="one_standard_error"))
    assert trials[1].objective_se == pytest.approx(0.01)
    assert simple.index == 5, "of those within 0.01 the fewest parameters, then the cheaper weighting"
    with pytest.raises(ValueError, match="no trial"):
        select_winner([pruned], SearchParams())


def test_table_of_trials() -> None:
    trials = [
        record(1, {"training.batch": "auto", "training.lr": 1e-3}, 0.6),
        record(0, {"training.batch": 8}, 0.5),
    ]
    table = trial_table(trials)
    assert table["index"].tolist() == [0, 1]
    assert table["param/training.batch"].tolist() == ["8", "auto"]
    assert table["param/training.lr"].isna().tolist() == [True, False]
    assert table["val/mean"].tolist() == pytest.approx([0.51, 0.61])
    assert table["fold1/val/MSI/auroc"].tolist() == pytest.approx([0.52, 0.62])
    assert len(trial_table([])) == 0

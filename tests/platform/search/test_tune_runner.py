"""Ray Tune runs the trials: failures of every kind are recorded, and good trials equal those of a plain loop."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray import cloudpickle

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.errors import ToleranceError, is_full_disk
from equipoise.platform.run import steps
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.search import tune_runner
from equipoise.platform.search.context import SearchContext, TrialInputs
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.search import (
    finish_search,
    prepare,
    read_finished,
    restore_searcher,
    run_inline,
    run_search,
    started_configs,
    unfinished_indices,
)
from equipoise.platform.search.trial import Report, TrialRun, failure_reason, run_trial, trials_folder
from equipoise.platform.search.trial_records import FoldScore, Trial, read_trials
from equipoise.platform.training.params import TrainingParams

Make = Callable[..., Any]


class Poisoned(Mapping[str, Case]):
    """Cases that fail when they are read, in a given way."""

    def __init__(self, cases: Mapping[str, Case], way: str) -> None:
        self.cases = cases
        self.way = way

    def __getitem__(self, patient: str) -> Case:
        case = self.cases[patient]
        if self.way == "exception":
            raise RuntimeError("broken on purpose")
        if self.way == "memory":
            raise MemoryError("cannot allocate 512 GiB")
        if self.way == "hang":
            time.sleep(600)
        if self.way == "killed":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return dataclasses.replace(case, bag=np.full_like(case.bag, np.nan))

    def __iter__(self) -> Iterator[str]:
        return iter(self.cases)

    def __len__(self) -> int:
        return len(self.cases)


#: Which trial goes wrong, and how.
WAYS = {1: "nan", 2: "exception", 4: "memory", 5: "hang", 6: "killed"}


def poisoned(index: int, config: dict, inputs: TrialInputs, search: Path, report: Report) -> Trial:
    """A trial, some of them with poison in their cases."""
    if index in WAYS:
        inputs = dataclasses.replace(inputs, cases=Poisoned(inputs.cases, WAYS[index]))

    def die_once(step: dict[str, Any]) -> None:
        mark = search.parent / "died"
        if index == 3 and not mark.exists():
            import os
            import signal

            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        report(step)

    return run_trial(index, config, inputs, search, die_once)


def run_poisoned(search_context: SearchContext, folder: Path) -> list[Trial]:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test
    searcher, count = restore_searcher(search_context, [])
    ended: list[Trial] = []
    tune_runner.run_trials(
        unfinished_indices([], count), searcher, search_context.inputs, search_context.params, folder,
        started=started_configs(search_context, folder), on_end=ended.append, run=poisoned,
        training=search_context.study.training,
    )  # fmt: skip
    assert sorted(trial.index for trial in ended) == list(range(count))
    return read_trials(trials_folder(folder))


@pytest.mark.slow
def test_poison_ends_in_records_and_good_trials_are_whole(make_search: Make, tmp_path: Path) -> None:
    search_context = make_search(trials=8, trial_time_limit_s=20, max_fail=0.5)
    trials = run_poisoned(search_context, tmp_path / "search")
    reasons = {trial.index: trial.reason for trial in trials if trial.status == "failed"}
    assert set(reasons) == set(WAYS)
    assert "not a number or infinite" in reasons[1]
    assert reasons[2] == "RuntimeError: broken on purpose"
    assert reasons[4] == "MemoryError: cannot allocate 512 GiB"
    assert reasons[5].startswith("did not end within 20 s; it was at File")
    assert "process died" in reasons[6]
    assert [trial.index for trial in trials if trial.died] == [6]
    assert (tmp_path / "died").exists(), "the process of trial 3 was killed after its first fold"
    good = [trial for trial in trials if trial.ok]
    assert [trial.index for trial in good] == [0, 3, 7]
    plain = {trial.index: trial for trial in run_inline(search_context, tmp_path / "plain")}
    for trial in good:
        same = plain[trial.index]
        assert (trial.name, trial.config, trial.means) == (same.name, same.config, same.means)
        assert [fold.history for fold in trial.folds] == [fold.history for fold in same.folds]
    with pytest.raises(ToleranceError, match="5 of 8 trials failed") as error:
        finish_search(search_context, tmp_path / "search", 8)
    assert error.value.exit_code == 5
    assert (tmp_path / "search" / "best.yaml").exists()
    assert [path.name for path in (tmp_path / "search" / "work").glob("*")] == ["006"]
    assert [trial.index for trial in read_finished(tmp_path / "search")] == [0, 1, 2, 3, 4, 5, 7]
    assert started_configs(search_context, tmp_path / "search")[6] == trials[6].config


#: What happens to some of sixteen trials.
RAISE, DIE, FULL = (2, 9), 5, 11


def eventful(index: int, config: dict, inputs: TrialInputs, search: Path, report: Report) -> None:
    """A trial without a model: it notes its process, and some raise, die once or find the disk full."""
    run = TrialRun(index, config, inputs, search)
    run.begin()
    with (search / "processes").open("a") as file:
        file.write(f"{index} {os.getpid()}\n")
    if index in RAISE:
        run.end("failed", "RuntimeError: broken on purpose")
        return
    if index == DIE and not (search / "died").exists():
        (search / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if index == FULL:
        error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        run.end("failed", failure_reason(error), died=is_full_disk(error))
        return
    for fold in inputs.folds:
        run.add(FoldScore(fold.name, {"val/mean": index / 16}, 1, 1, 1, 0.0, 0.0))
        if run.complete:
            run.end("ok")
        report(run.step())


class Numbered:
    """A searcher whose trials differ by their learning rate."""

    def ask(self, index: int) -> dict[str, Any]:
        return {"balancing": "equal", "training.lr": 1e-4 * (1 + index)}

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


def test_sixteen_trials_share_two_processes_and_none_is_lost(tmp_path: Path, ray_session: None) -> None:
    """Some are stopped early, two raise, one process is killed, one finds no space."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    search = tmp_path / "search"
    search.mkdir()
    folds = tuple(Fold(0, k, ("a",), ("b",), ("c",)) for k in range(4))
    inputs = TrialInputs(settings={}, cases={}, folds=folds, metric="val/mean")
    params = SearchParams.model_validate({"trials": 16, "scheduler": "asha", "max_concurrent": 2})
    ended: list[Trial] = []
    tune_runner.run_trials(
        list(range(16)), Numbered(), inputs, params, search, started={}, training=TrainingParams(),
        on_end=ended.append, run=eventful,
    )  # fmt: skip
    assert sorted(trial.index for trial in ended) == list(range(16))
    trials = {trial.index: trial for trial in read_trials(trials_folder(search))}
    assert sorted(trials) == list(range(16))
    assert {n for n, trial in trials.items() if trial.status == "failed"} == {*RAISE, FULL}
    assert [n for n, trial in trials.items() if trial.died] == [FULL]  # tried again by the next search
    assert FULL not in {trial.index for trial in read_finished(search)}
    assert trials[15].ok
    assert any(trial.status == "pruned" for trial in trials.values())
    for n, trial in trials.items():  # nothing of a trial reaches the next one in its process
        assert {score.values["val/mean"] for score in trial.folds} <= {n / 16}
        assert trial.config["training.lr"] == 1e-4 * (1 + n)
    starts = [line.split() for line in (search / "processes").read_text().splitlines()]
    assert sorted(int(n) for n, _ in starts) == sorted([*range(16), DIE])
    assert len({process for _, process in starts}) <= 2 + 1


@pytest.mark.slow
def test_nothing_is_written_outside_the_run_and_stopped_trials_are_recorded(
    make_study: Make, tmp_path: Path
) -> None:
    home = Path.home() / "ray_results"
    before = set(home.iterdir()) if home.exists() else None
    study = make_study(
        trials=6, scheduler="asha", folds=3, space={"training.lr": {"loguniform": [1e-6, 1e-2]}}
    )
    folder = RunFolder(tmp_path / "run")
    metadata = run_search(study, RunContext(study, folder).inputs, folder.root)
    assert (set(home.iterdir()) if home.exists() else None) == before
    assert {path.name for path in folder.search.iterdir()} <= {
        "trials", "trials.parquet", "best.yaml", "best.json", "leaderboard.csv", "methods.csv", "made_by.json", "work",
    }  # fmt: skip
    trials = read_trials(trials_folder(folder.search))
    assert len(trials) == 6
    for trial in trials:
        if trial.status == "pruned":
            assert trial.reason == f"stopped by asha after {len(trial.folds)} of 3 folds"
            assert 1 <= len(trial.folds) < 3
        else:
            assert trial.ok
            assert len(trial.folds) == 3
    assert metadata["pruned"] == sum(trial.status == "pruned" for trial in trials)
    assert steps.STEP_FUNCTIONS["search"] is steps.search


@pytest.mark.slow
def test_trials_whose_folds_are_trained_by_several_workers(make_study: Make, tmp_path: Path) -> None:
    # Without dropout: every worker draws its own.
    shared = {"model": {"kind": "mean_pool", "dim": 8, "dropout": 0.0}}
    space = {"balancing": ["equal"], "training.lr": {"loguniform": [1e-3, 1e-2]}, "training.batch": 8} | {
        "training.weight_decay": 0.01, "training.bag_tiles": 8, "model.dim": 8, "model.dropout": 0.0, "model.layers": 1,
    }  # fmt: skip
    study = make_study(shared | {"training.workers": 2}, trials=2, space=space)
    folder = RunFolder(tmp_path / "run")
    metadata = run_search(study, RunContext(study, folder).inputs, folder.root)
    assert (metadata["trials"], metadata["failed"]) == (2, 0)
    single = RunContext(make_study(shared, trials=2, space=space), RunFolder(tmp_path / "single"))
    alone = run_inline(prepare(single.study, single.inputs), single.folder.search)
    assert len(alone) > 0
    for one, many in zip(alone, read_trials(trials_folder(folder.search)), strict=True):
        assert (one.name, one.config) == (many.name, many.config)
        assert [fold.epochs for fold in one.folds] == [fold.epochs for fold in many.folds]
        assert many.means == pytest.approx(one.means, abs=1e-6)

"""SIGKILL of the driver, twice: finished trials stay, the others resume, and the final result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.datasets.atomic_io import write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.search import prepare, run_inline
from equipoise.platform.search.trial import (
    StoppedError,
    run_trial,
    trials_folder,
    unfinished_configs,
    work_folder,
)
from equipoise.platform.search.trial_records import Trial, read_trials
from equipoise.platform.study.schema import Study

Make = Callable[..., Any]

#: Epochs enough for a kill to fall into a trial.
LONGER = {"training.epochs": 12, "training.min_epochs": 12, "training.patience": 12}

INLINE = """
import sys
from pathlib import Path
from equipoise.platform.run import steps
from equipoise.platform.search.search import prepare, run_inline
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.folder import RunFolder

work = steps.RunContext(load_study(sys.argv[1]), RunFolder(Path(sys.argv[2])))
run_inline(prepare(work.study, work.inputs), work.folder.search)
"""


def written(study: Study, path: Path) -> Path:
    """The study as a file beside its tables."""
    path.write_text(yaml.safe_dump(study.resolved(), sort_keys=False))
    return path


def killed_after(command: list[str], search: Path, records: int) -> None:
    """Start a command and kill it when it has written so many records."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(list(trials_folder(search).glob("*.json"))) < records:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def compared(trials: list[Trial]) -> list[Any]:
    """All of a record but times and places."""
    return [(t.index, t.name, t.config, t.status, t.means, [f.history for f in t.folds]) for t in trials]


def check(command: list[str], out: Path, study: Study, total: int) -> None:
    search = out / "search"
    killed_after(command, search, 1)
    first = {path.name: path.stat().st_mtime_ns for path in trials_folder(search).glob("*.json")}
    killed_after(command, search, len(first) + 2)
    assert len(list(trials_folder(search).glob("*.json"))) < total
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.stat().st_mtime_ns for path in trials_folder(search).glob("*.json")}
    assert len(after) == total
    assert all(after[name] == when for name, when in first.items()), "a finished trial was repeated"
    quiet = prepare(study, steps.RunContext(study, RunFolder(out.with_name("quiet"))).inputs)
    expected = run_inline(quiet, out.with_name("quiet") / "search")
    assert compared(read_trials(trials_folder(search))) == compared(expected)
    assert len({str(trial.config) for trial in expected}) > total // 2


@pytest.mark.slow
def test_random_search_on_ray_killed_twice(make_study: Make, bags: Path, tmp_path: Path) -> None:
    import ray

    study = make_study(LONGER, trials=12, searcher="random")
    file = written(study, bags / "random.yaml")
    address = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "equipoise.jobs.search", "-c", str(file), "-o", str(tmp_path / "run")]
    check([*command, "--address", address], tmp_path / "run", study, 12)
    status = RunFolder(tmp_path / "run").status()
    assert status["steps"]["search"]["trials"] == 12
    assert "winner" not in status["steps"]["search"], "nobody asked to look at the hold-out"


def test_grid_search_killed_twice(make_study: Make, bags: Path, tmp_path: Path) -> None:
    study = make_study(LONGER, trials=14, searcher="grid", levels=2)
    file = written(study, bags / "grid.yaml")
    check([sys.executable, "-c", INLINE, str(file), str(tmp_path / "run")], tmp_path / "run", study, 14)


def test_a_trial_goes_on_within_a_fold(
    make_search: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equipoise.platform.training import loop

    search_context: SearchContext = make_search(trials=1)
    config = {"training.epochs": 5, "training.min_epochs": 5}
    whole = run_trial(7, config, search_context.inputs, tmp_path / "whole")
    saved, save = [], loop.checkpoints.save

    def interrupted(*arguments: Any) -> None:
        save(*arguments)
        saved.append(arguments[0])
        if len(saved) == 8:  # in the second fold
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.checkpoints, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_trial(7, config, search_context.inputs, tmp_path / "twice")
    assert unfinished_configs(tmp_path / "twice") == {7: config}
    run_trial(7, config, search_context.inputs, tmp_path / "twice")
    assert len(saved) == 10, "epochs that were done were done again"
    (again,) = read_trials(trials_folder(tmp_path / "twice"))
    assert compared([again]) == compared([whole])
    assert not work_folder(tmp_path / "twice", 7).exists()


def test_a_stopped_trial_is_recorded_with_its_folds(make_search: Make, tmp_path: Path) -> None:
    search_context: SearchContext = make_search(trials=1)
    steps_: list[dict[str, Any]] = []

    def report(step: dict[str, Any]) -> None:
        steps_.append(step)
        raise StoppedError("hopeless")

    trial = run_trial(1, {}, search_context.inputs, tmp_path, report)
    assert (trial.status, trial.reason, len(trial.folds)) == ("pruned", "hopeless", 1)
    assert steps_[0]["folds"] == 1
    assert steps_[0]["objective"] == steps_[0]["val/mean"] == trial.objective


def test_records_of_another_search_are_refused(make_search: Make, tmp_path: Path) -> None:
    search_context: SearchContext = make_search(trials=1)
    run_inline(search_context, tmp_path)
    for change in ({"seed": 5}, {"folds": 3}, {"holdout": 0.3}, {"space": {"training.lr": 0.1}}):
        with pytest.raises(StudyError, match="belong to another search"):
            run_inline(make_search(trials=1, **change), tmp_path)
    assert len(run_inline(make_search(trials=2, max_fail=0.9), tmp_path)) == 2, (
        "more trials are the same search"
    )
    record = trials_folder(tmp_path) / "000-equal+none.json"
    write_json(record, {"format": "other"})
    with pytest.raises(ValueError, match="not a record of layout"):
        read_trials(trials_folder(tmp_path))

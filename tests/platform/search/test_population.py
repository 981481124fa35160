"""Members of a population continue from each other's states with other learning rates and loss weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.population import run_member, settings_of_member
from equipoise.platform.search.search import run_search
from equipoise.platform.search.trial import trials_folder
from equipoise.platform.search.trial_records import read_trials

Make = Callable[..., Any]

#: Members are compared after every epoch but the last.
EPOCHS = {"training.epochs": 4}


def test_a_member_goes_on_from_another_with_new_settings(make_search: Make, tmp_path: Path) -> None:
    search_context: SearchContext = make_search(trials=4, scheduler="pbt", space={})
    search_context.inputs.settings["training"] |= {"epochs": 4}
    first = {"training.lr": 1e-3, "loss_weights.MSI": 0.5, "loss_weights.LF": 0.5}
    states: list[tuple[dict[str, Any], Path]] = []

    def keep(step: dict[str, Any], folder: Path) -> None:
        import shutil

        copy = tmp_path / f"state{len(states)}"
        shutil.copytree(folder, copy)
        states.append((step, copy))

    one = settings_of_member(first, search_context.space)
    whole = run_member(1, one, search_context.inputs, tmp_path / "search", keep)
    assert [step["epoch"] for step, _ in states] == [1, 2, 3, 4]
    again = run_member(2, one, search_context.inputs, tmp_path / "search", keep, states[1][1])
    assert again.means == whole.means, "the same settings from epoch 2 on are the same training"
    changed = settings_of_member(first | {"loss_weights.MSI": 1.5, "training.lr": 5e-3}, search_context.space)
    assert changed["loss_weights.MSI"] == 0.75
    other = run_member(3, changed, search_context.inputs, tmp_path / "search", keep, states[1][1])
    assert other.ok
    assert [change["epoch"] for change in other.changes] == [1, 3]
    history, before = other.folds[0].history, whole.folds[0].history
    assert history[:2] == before[:2]
    assert [row["weight/MSI"] for row in history] == pytest.approx([1.0, 1.0, 1.5, 1.5])
    assert history[2]["lr"] == pytest.approx(before[2]["lr"] * 5)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["pbt", "pb2"])
def test_a_population_on_ray(make_study: Make, tmp_path: Path, scheduler: str) -> None:
    study = make_study(
        EPOCHS, trials=4, scheduler=scheduler, space={"training.lr": {"loguniform": [1e-5, 1e-1]}}
    )
    folder = RunFolder(tmp_path / "run")
    metadata = run_search(study, RunContext(study, folder).inputs, folder.root)
    trials = read_trials(trials_folder(folder.search))
    assert (metadata["trials"], metadata["failed"]) == (4, 0)
    assert [trial.name for trial in trials] == [f"00{k}-static+none" for k in range(4)]
    assert all(trial.ok and len(trial.folds[0].history) == 4 for trial in trials)
    assert any(len(trial.changes) > 1 for trial in trials), "nobody went on from anybody"
    for trial in trials:
        assert trial.config == trial.changes[-1]["settings"]
        assert sum(float(trial.config[f"loss_weights.{task}"]) for task in ("MSI", "LF")) == pytest.approx(1)
